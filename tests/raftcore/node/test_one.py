"""One node: what proposers and readers are told, and what its end looks like."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftcore import (
    AppliedPosition,
    CoreConfig,
    EntryTooLargeError,
    ExitCode,
    NodeOptions,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    StateMachineError,
    StoppedError,
    StorageError,
    UnknownPeerError,
)
from raftcore.errors import IdentityError, LogCorruptError, StorageFullError
from raftcore.runtime import driver as driver_module
from raftcore.trace import Kind


async def proposals(node: Any, count: int, **more: Any) -> list[asyncio.Task[Any]]:
    """Proposals on their way, each made in a turn of the loop of its own."""
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(node.propose(b"%d" % number, **more)))
        for _ in range(3):
            await asyncio.sleep(0)
    return tasks


async def held_up(world: Any, node: Any, count: int = 1) -> list[asyncio.Task[Any]]:
    """Proposals that were accepted and wait for a write that does not become durable."""
    world.gates["a"].close()
    tasks = await proposals(node, count)
    await world.until("the write is at the gate", lambda: world.gates["a"].waiting == 1)
    assert node.status().pending_proposals == count
    return tasks


# -- asking ---------------------------------------------------------------------------------------


async def test_a_proposal_gives_the_machines_result_and_its_place_in_the_log(one: Any) -> None:
    node = await one.lone()
    first, second = await node.propose(b"x"), await node.propose(b"y")
    assert (first.result, second.result) == (1, 2)
    assert second.index == first.index + 1
    assert first.term == second.term == node.status().core.term
    assert one.commands(node) == [b"x", b"y"]


async def test_after_a_barrier_everything_acknowledged_is_applied(one: Any) -> None:
    node = await one.lone()
    proposed = await node.propose(b"x")
    assert await node.read_barrier() >= proposed.index
    assert node.status().counters.reads_confirmed >= 1


async def test_the_status_says_what_happened(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"x")
    status = node.status()
    assert (status.core.role, status.core.leader_id) == ("leader", "a")
    assert status.core.applied_index == status.core.commit_index == status.core.last_index
    assert status.counters.elections_won == 1
    assert (status.pending_proposals, status.held_messages, status.failed) == (0, 0, None)
    assert node.configuration == one.configuration
    assert node.staleness_ms() == 0


async def test_callbacks_hear_of_leadership(one: Any) -> None:
    node = one.build("a")
    heard: list[Any] = []
    node.on_leadership(heard.append)
    await node.start()
    await one.leader()
    assert [change.role for change in heard][-1] == "leader"
    assert heard[-1].leader_id == "a"


# -- refusals: nothing happened and nothing will --------------------------------------------------


async def test_a_proposal_that_is_too_large_is_refused(one: Any) -> None:
    node = await one.lone(options=NodeOptions(max_entry_bytes=10))
    last = node.status().core.last_index
    with pytest.raises(EntryTooLargeError):
        await node.propose(b"x" * 11)
    await node.propose(b"x" * 10)
    assert node.status().core.last_index == last + 1


async def test_too_many_waiting_proposals_are_refused(one: Any) -> None:
    node = await one.lone(options=NodeOptions(max_pending_proposals=3))
    waiting = await held_up(one, node, 3)
    with pytest.raises(OverloadedError):
        await node.propose(b"one too many")
    one.gates["a"].open()
    assert [p.result for p in await asyncio.gather(*waiting)] == [1, 2, 3]
    assert (await node.propose(b"now")).result == 4


async def test_too_many_waiting_reads_are_refused_although_they_share_a_round(one: Any) -> None:
    node = await one.lone(max_pending_reads=3)
    await held_up(one, node)  # not applied yet
    waiting = [asyncio.create_task(node.read_barrier()) for _ in range(4)]
    await one.until("one is refused", lambda: any(task.done() for task in waiting))
    with pytest.raises(OverloadedError):
        await waiting.pop()
    one.gates["a"].open()
    await asyncio.gather(*waiting)
    await node.read_barrier()


async def test_too_many_uncommitted_bytes_are_refused(one: Any) -> None:
    node = await one.lone(max_uncommitted_bytes=800)
    one.gates["a"].close()
    accepted = asyncio.create_task(node.propose(b"x" * 900))  # alone it may be larger
    await one.until("it is at the gate", lambda: one.gates["a"].waiting == 1)
    with pytest.raises(OverloadedError):
        await node.propose(b"y")
    one.gates["a"].open()
    assert (await accepted).result == 1
    assert node.status().counters.proposals_refused == 1
    assert one.commands(node) == [b"x" * 900]


async def test_ahead_of_a_full_disk_proposals_are_refused(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"x")
    one.disks["a"].free_bytes = 1000

    async def refused() -> bool:
        try:
            await node.propose(b"y")
        except StorageFullError:
            return True
        return False

    async with asyncio.timeout(20):
        while not await refused():  # noqa: ASYNC110 (the disk is looked at now and then)
            await asyncio.sleep(0.01)
        kept = list(one.commands(node))
        one.disks["a"].free_bytes = 1 << 40
        while await refused():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert one.commands(node) == [*kept, b"y"]


async def test_before_and_after_its_life_a_node_refuses(one: Any) -> None:
    node = one.build("a")
    assert (node.is_leader, node.leader_id) == (False, None)
    with pytest.raises(StoppedError):
        await node.propose(b"early")
    await node.stop()  # harmless: it never ran
    await node.start()
    await one.leader()
    with pytest.raises(StoppedError):
        await node.start()
    await node.stop()
    await node.stop()
    await node.wait_stopped()
    for late in (
        node.propose(b"late"),
        node.read_barrier(),
        node.transfer_leadership(),
        node.snapshot(),
        node.request("b", b"", timeout_s=1.0),
        node.on_request("b", b""),
    ):
        with pytest.raises(StoppedError):
            await late
    with pytest.raises(StoppedError):
        node.status()
    assert one.machines["a"].closed
    assert one.logs["a"].closed


async def test_leadership_can_not_go_to_somebody_unknown(one: Any) -> None:
    node = await one.lone()
    with pytest.raises(UnknownPeerError):
        await node.transfer_leadership("nobody")
    assert node.is_leader


# -- outcome unknown ------------------------------------------------------------------------------


async def test_a_proposal_not_answered_in_time_may_still_take_effect(one: Any) -> None:
    node = await one.lone()
    one.gates["a"].close()
    with pytest.raises(OutcomeUnknownError):
        await node.propose(b"slow", timeout_s=0.05)
    one.gates["a"].open()
    await one.until("it took effect all the same", lambda: one.commands(node) == [b"slow"])


async def test_what_was_accepted_when_the_node_stops_is_unknown(one: Any) -> None:
    node = await one.lone()
    (accepted,) = await held_up(one, node)
    stopping = asyncio.create_task(node.stop())
    with pytest.raises(OutcomeUnknownError):
        await accepted
    one.gates["a"].open()
    await stopping
    # and indeed it was on its way to the disk
    await one.start()
    await one.leader()
    await one.nodes["a"].read_barrier()
    assert one.commands("a") == [b"0"]


async def test_what_the_core_never_saw_when_the_node_stops_is_refused(one: Any) -> None:
    node = await one.lone()
    proposing = asyncio.create_task(node.propose(b"too late"))
    await asyncio.sleep(0)  # asked for, and not given to the core before the end of this turn
    stopping = asyncio.create_task(node.stop())
    results = await asyncio.gather(proposing, stopping, return_exceptions=True)
    refused = isinstance(results[0], StoppedError)
    assert refused or isinstance(results[0], OutcomeUnknownError)
    if refused:
        assert one.disks["a"].entry_at(one.disks["a"].shape.last_index)[0].data != b"too late"


async def test_a_cancelled_proposal_leaves_nothing_behind(one: Any) -> None:
    node = await one.lone()
    (accepted,) = await held_up(one, node)
    accepted.cancel()
    one.gates["a"].open()
    with pytest.raises(asyncio.CancelledError):
        await accepted
    assert (await node.propose(b"next")).result == 2
    assert node.status().pending_proposals == 0


# -- group commit ---------------------------------------------------------------------------------


async def test_proposals_that_arrive_during_a_write_share_the_next_one(one: Any) -> None:
    node = await one.lone()
    writes = node.status().counters.writes
    waiting = await held_up(one, node, 20)
    one.gates["a"].open()
    results = await asyncio.gather(*waiting)
    assert [p.result for p in results] == list(range(1, 21))
    assert node.status().counters.writes - writes <= 3
    assert node.status().counters.entries_applied > node.status().counters.apply_batches


async def test_reads_of_one_turn_share_a_round(one: Any) -> None:
    node = await one.lone()
    before = node.status().counters.reads_confirmed
    indexes = await asyncio.gather(*(node.read_barrier() for _ in range(50)))
    assert len(set(indexes)) == 1
    assert node.status().counters.reads_confirmed == before + 1


# -- failures are final ---------------------------------------------------------------------------


async def test_a_storage_error_ends_the_node_and_its_promises(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"before")
    error = one.disks["a"].failure = StorageError("the disk is on fire")
    with pytest.raises(OutcomeUnknownError):
        await node.propose(b"lost")
    with pytest.raises(StorageError) as raised:
        await node.wait_stopped()
    assert raised.value is error
    assert not node.is_leader
    with pytest.raises(StoppedError):
        await node.propose(b"after")
    await node.stop()
    assert one.commands(node) == [b"before"]
    assert one.logs["a"].closed
    assert one.machines["a"].closed


async def test_a_failed_write_that_reached_the_disk_is_found_again(one: Any) -> None:
    node = await one.lone()
    one.disks["a"].failed_write_survives = True
    one.disks["a"].failure = StorageError("the cable fell out")
    with pytest.raises(OutcomeUnknownError):
        await node.propose(b"perhaps")
    await node.stop()
    again = await one.lone()
    assert (await again.propose(b"next")).result == 2
    assert one.commands(again) == [b"perhaps", b"next"]


async def test_a_state_machine_that_fails_ends_the_node(one: Any) -> None:
    node = await one.lone()
    one.machines["a"].fail_on = b"poison"
    with pytest.raises(OutcomeUnknownError):
        await node.propose(b"poison")
    with pytest.raises(RuntimeError, match="can not go on"):
        await node.wait_stopped()


@pytest.mark.parametrize(("results", "said"), [([], "0"), ([1, 2], "2"), (None, "NoneType")])
async def test_a_state_machine_without_one_result_per_entry_ends_the_node(
    one: Any, monkeypatch: pytest.MonkeyPatch, results: Any, said: str
) -> None:
    node = await one.lone()
    monkeypatch.setattr(one.machines["a"], "apply", lambda entries, position: results)
    with pytest.raises(OutcomeUnknownError):
        await node.propose(b"x")
    with pytest.raises(StateMachineError, match=f"one result per entry.* returned {said}") as ended:
        await node.wait_stopped()
    assert (ended.value.code, ended.value.exit_code) == ("E_STATE_MACHINE", ExitCode.INVARIANT)


async def test_a_worker_that_hangs_does_not_hold_up_the_end(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "WORKER_STOP_S", 0.05)
    node = await one.lone()
    (accepted,) = await held_up(one, node)
    await node.stop()
    with pytest.raises(OutcomeUnknownError):
        await accepted
    assert not one.logs["a"].closed, "it is in use by the worker"


async def test_a_view_that_opens_while_the_node_stops_is_closed_before_the_machine(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await one.lone()
    await node.propose(b"x")
    machine, opening = one.machines["a"], one.snapshot_gates["a"]
    opening.close()
    still_open: list[int] = []
    open_snapshot, close = machine.open_snapshot, machine.close

    def slow_open() -> Any:
        opening.pass_through()
        return open_snapshot()

    def watched_close() -> None:
        still_open.append(sum(not view.closed for view in machine.views))
        close()

    monkeypatch.setattr(machine, "open_snapshot", slow_open)
    monkeypatch.setattr(machine, "close", watched_close)
    taking = asyncio.create_task(node.snapshot())
    await one.until("the view is being opened", lambda: opening.waiting)
    stopping = asyncio.create_task(node.stop())
    with pytest.raises(StoppedError):
        await taking
    opening.open()
    await stopping
    assert len(machine.views) == 1
    assert still_open == [0]


async def test_a_failure_while_the_node_starts_is_what_starting_raises(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = one.build("a")
    transport = node._transport
    start = transport.start

    async def fail_first(receiver: Any) -> None:
        await start(receiver)
        node._driver._fail(StorageError("the disk is gone"))

    monkeypatch.setattr(transport, "start", fail_first)
    with pytest.raises(StorageError, match="the disk is gone"):
        await node.start()
    assert one.logs["a"].closed
    assert node._driver.maintenance._timer is None
    assert not one.traces["a"].of(Kind.NODE_STARTED)


async def test_a_node_that_is_stopped_while_it_starts_does_not_pretend_to_run(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = one.build("a")
    transport = node._transport
    monkeypatch.setattr(transport, "start", lambda _receiver: node.stop())
    with pytest.raises(StoppedError, match="before it had started"):
        await node.start()


async def test_a_start_that_is_cancelled_is_no_failure_of_the_node(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, recovering = one.build("a"), one.gates["a"]
    recovering.close()
    machine = one.machines["a"]
    last_applied = machine.last_applied

    def slow() -> AppliedPosition:
        recovering.pass_through()
        return last_applied()

    monkeypatch.setattr(machine, "last_applied", slow)
    starting = asyncio.create_task(node.start())
    await one.until("it recovers", lambda: recovering.waiting)
    starting.cancel()
    recovering.open()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await node.wait_stopped()
    assert one.logs["a"].closed


async def test_an_end_that_is_interrupted_still_closes_everything(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await one.lone()
    closed: list[str] = []
    close = node._transport.close

    async def interrupted() -> None:
        raise asyncio.CancelledError

    async def watched() -> None:
        closed.append("transport")
        await close()

    monkeypatch.setattr(node._admission, "close", interrupted)
    monkeypatch.setattr(node._transport, "close", watched)
    with pytest.raises(asyncio.CancelledError):
        await node.stop()
    assert closed == ["transport"]
    assert one.logs["a"].closed


# -- recovery -------------------------------------------------------------------------------------


async def test_a_state_that_kept_up_is_not_replayed(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"x")
    await node.stop()
    again = await one.lone()
    await again.read_barrier()
    assert not again.rebuilt
    assert one.machines["a"].discarded == 0
    assert one.commands(again) == [b"x"]


async def test_an_empty_state_is_rebuilt_from_the_log(one: Any) -> None:
    node = await one.lone()
    for number in range(5):
        await node.propose(b"%d" % number)
    await node.stop()
    one.stored["a"].commands.clear()
    one.stored["a"].position = AppliedPosition()
    again = await one.lone()
    await again.read_barrier()
    assert again.rebuilt
    assert one.commands(again) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_state_of_another_history_is_thrown_away_and_rebuilt(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"right")
    await node.stop()
    stored = one.stored["a"]
    stored.commands[:] = [b"wrong"]
    stored.position = AppliedPosition(stored.position.index, stored.position.term, b"?" * 32)
    again = await one.lone()
    await again.read_barrier()
    assert again.rebuilt
    assert one.machines["a"].discarded == 1
    assert one.commands(again) == [b"right"]


async def test_a_state_ahead_of_the_log_means_that_the_log_went_back(one: Any) -> None:
    node = await one.lone()
    old = one.disks["a"].copy()
    await node.propose(b"lost")
    await node.stop()
    one.disks["a"] = old
    failing = one.build("a")
    with pytest.raises(LogCorruptError, match="went back"):
        await failing.start()
    assert one.logs["a"].closed
    assert one.machines["a"].closed
    with pytest.raises(StoppedError):
        await failing.propose(b"x")


async def test_a_state_older_than_the_log_begins_with_the_snapshot(one: Any) -> None:
    settings = {"options": NodeOptions(snapshot_entries=10_000), "trailing_entries": 0}
    node = await one.lone(**settings)
    for number in range(20):
        await node.propose(b"%d" % number)
    await node.snapshot()
    for number in range(20, 30):
        await node.propose(b"%d" % number)
    await node.snapshot()
    await one.until("the log is cut", lambda: one.disks["a"].shape.first_index > 10)
    await node.stop()
    one.stored["a"].commands.clear()
    one.stored["a"].position = AppliedPosition()
    again = await one.lone(**settings)
    await again.read_barrier()
    assert one.machines["a"].installed == 1
    assert one.commands(again) == [b"%d" % n for n in range(30)]


# -- snapshots ------------------------------------------------------------------------------------


async def test_a_snapshot_stands_at_what_is_applied_and_is_not_taken_twice(one: Any) -> None:
    node = await one.lone()
    proposed = await node.propose(b"x")
    assert await node.snapshot() == proposed.index
    assert await node.snapshot() == proposed.index
    assert node.status().counters.snapshots_taken == 1
    assert node.status().core.snapshot_index == proposed.index
    await node.stop()
    assert [view.closed for view in one.machines["a"].views] == [1, 1]


@pytest.mark.parametrize(
    "options", [NodeOptions(snapshot_entries=10), NodeOptions(snapshot_bytes=400)]
)
async def test_snapshots_are_taken_as_entries_or_bytes_add_up(
    one: Any, options: NodeOptions
) -> None:
    node = await one.lone(options=options, trailing_entries=2)
    for number in range(40):
        await node.propose(b"%040d" % number)
    await one.until("two were taken", lambda: node.status().counters.snapshots_taken >= 2)
    await one.until("the log was cut", lambda: node.status().core.first_index > 1)
    assert len(one.disks["a"].snapshots) <= 2


async def test_writes_go_on_while_a_snapshot_is_written(one: Any) -> None:
    node = await one.lone()
    first = await node.propose(b"inside")
    one.snapshot_gates["a"].close()
    taking = asyncio.create_task(node.snapshot())
    await one.until("it is being written", lambda: one.snapshot_gates["a"].waiting)
    assert (await node.propose(b"outside")).result == 2
    with pytest.raises(OverloadedError):
        await node.snapshot()
    one.snapshot_gates["a"].open()
    assert await taking == first.index
    ((meta, _),) = one.disks["a"].snapshots.values()
    assert list(one.logs["a"].snapshot_records(meta)) == [b"inside"]


async def test_who_waits_for_a_snapshot_is_told_that_the_node_stops(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"x")
    one.snapshot_gates["a"].close()
    taking = asyncio.create_task(node.snapshot())
    await one.until("it is being written", lambda: one.snapshot_gates["a"].waiting)
    stopping = asyncio.create_task(node.stop())
    with pytest.raises(StoppedError):
        await taking
    one.snapshot_gates["a"].open()
    await stopping
    assert [view.closed for view in one.machines["a"].views] == [1]


async def test_a_barrier_without_a_leader_says_so(make_world: Any) -> None:
    world = make_world("a", "b", "c")
    await world.start("a")
    with pytest.raises(NotLeaderError) as refused:
        await world.nodes["a"].read_barrier(timeout_s=0.2)
    assert refused.value.leader_id is None
    with pytest.raises(NotLeaderError):
        await world.nodes["a"].propose(b"x")
    assert world.nodes["a"].staleness_ms() is None


# -- beginning ------------------------------------------------------------------------------------


async def test_a_node_has_one_life(one: Any) -> None:
    node = await one.lone()
    with pytest.raises(StoppedError, match="started once"):
        await node.start()
    assert (await node.propose(b"x")).result == 1
    await node.stop()
    with pytest.raises(StoppedError, match="started once"):
        await node.start()


async def test_there_is_no_end_to_wait_for_before_the_start(one: Any) -> None:
    node = one.build("a")
    with pytest.raises(StoppedError, match="not started"):
        await node.wait_stopped()
    await node.start()
    assert (await one.leader()) is node


async def test_a_log_of_another_node_is_refused_before_anything_happens(one: Any) -> None:
    node = one.build("a")
    node.config = CoreConfig("b")
    with pytest.raises(IdentityError, match="the log belongs to a"):
        await node.start()
    assert not one.logs["a"].closed
    assert not one.machines["a"].closed
    assert one.network.nodes() == frozenset()
    node.config = CoreConfig("a")
    await node.start()
    assert (await one.leader()) is node
