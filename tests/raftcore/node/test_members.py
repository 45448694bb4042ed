"""Changing the members of a running cluster, seen from its nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from raftcore import (
    ChangeInProgressError,
    Configuration,
    IncarnationError,
    InvalidChangeError,
    Member,
    NodeOptions,
    NotAdmittedError,
    NotCaughtUpError,
    NotLeaderError,
    NotReadyError,
    OutcomeUnknownError,
    RaftcoreError,
    RefusedError,
    RemovedError,
    StaleVersionError,
    TransferringError,
)
from raftcore.trace import Kind


def name(node: Any) -> str:
    return str(node.config.node_id)


def ids(configuration: Configuration) -> tuple[str, ...]:
    return tuple(member.node_id for member in configuration.members)


async def retried(call: Any) -> Any:
    """The result of ``call()``, asked again while it is refused for now."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except (NotLeaderError, NotReadyError, ChangeInProgressError, StaleVersionError):
                await asyncio.sleep(0.02)


async def changed(world: Any, form: str, *arguments: Any) -> Configuration:
    """Ask whoever leads for a change until one that was asked for is done."""

    async def ask() -> Configuration:
        leader = await world.leading()
        configuration, version = await getattr(leader, form)(*arguments, timeout_s=20)
        assert leader.configuration_version >= version
        assert isinstance(configuration, Configuration)
        return configuration

    found: Configuration = await retried(ask)
    return found


class Load:
    """Writes without end; what was acknowledged must be there at the end, once, in order."""

    def __init__(self, world: Any) -> None:
        self.acknowledged: list[bytes] = []
        self._world = world
        self._number = 0

    async def run(self) -> None:
        while True:
            self._number += 1
            command = b"w%d" % self._number
            for node in list(self._world.nodes.values()):
                if not node.is_leader:
                    continue
                try:
                    await node.propose(command, timeout_s=5)
                except (RefusedError, OutcomeUnknownError):
                    continue
                self.acknowledged.append(command)
                break
            await asyncio.sleep(0.001)

    async def more(self, count: int = 5) -> None:
        """Until some more writes went through."""
        target = len(self.acknowledged) + count
        await self._world.until("writes go on", lambda: len(self.acknowledged) >= target)


@asynccontextmanager
async def under_load(world: Any) -> AsyncIterator[Load]:
    load = Load(world)
    task = asyncio.create_task(load.run())
    try:
        yield load
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def check_nothing_lost(world: Any, load: Load) -> None:
    leader = await world.leading()
    await leader.read_barrier()
    commands = list(world.commands(leader))
    kept = [command for command in commands if command in set(load.acknowledged)]
    members = await world.members()
    assert kept == load.acknowledged, "an acknowledged write is missing, twice there or displaced"
    await world.until(
        "all members have the same",
        lambda: all(world.commands(i) == commands for i in members),
    )


# -- growing, shrinking, replacing ----------------------------------------------------------------


async def test_a_cluster_grows_from_one_to_five_and_shrinks_back_under_load(
    make_world: Any,
) -> None:
    world = make_world("a")
    await world.lone()
    async with under_load(world) as load:
        for joiner in ("b", "c", "d", "e"):
            await world.join(joiner)
            configuration = await changed(world, "add_voter", world.member(joiner))
            assert joiner in configuration.voters
            await load.more()
        assert configuration.voters == ("a", "b", "c", "d", "e")
        for gone in ("a", "b", "c", "d"):
            configuration = await changed(world, "remove", gone)
            assert gone not in ids(configuration)
            await load.more()
    assert configuration.voters == ("e",)
    assert not configuration.old_voters
    await check_nothing_lost(world, load)
    assert world.nodes["e"].is_leader


async def test_a_node_added_late_is_filled_from_a_snapshot_first(make_world: Any) -> None:
    world = make_world("a")
    settings = {"options": NodeOptions(snapshot_entries=10), "trailing_entries": 0}
    leader = await world.lone(**settings)
    commands = [b"%d" % number for number in range(60)]
    for command in commands:
        await leader.propose(command)
    await world.until("the log was cut", lambda: leader.status().core.first_index > 10)
    await world.join("b", **settings)
    await changed(world, "add_voter", world.member("b"))
    assert world.nodes["b"].status().counters.snapshots_installed >= 1
    assert world.traces["b"].of(Kind.SNAPSHOT_INSTALLED)
    assert leader.status().counters.snapshot_bytes_sent > 0
    await world.nodes["b"].read_barrier()
    assert world.commands("b") == commands


async def test_a_dead_member_is_replaced_by_a_new_one(three: Any) -> None:
    await three.start()
    async with under_load(three) as load:
        leader = await three.leader()
        dead = name(three.others(leader)[0])
        await three.nodes.pop(dead).stop(handover=False)
        await load.more()
        await three.join("d")
        configuration = await changed(three, "replace_member", dead, three.member("d"))
        assert "d" in configuration.voters
        assert dead not in ids(configuration)
        assert three.member(dead).incarnation in configuration.retired
        await load.more()
    await check_nothing_lost(three, load)


async def test_a_leader_that_is_removed_hands_over_and_stays_as_a_silent_follower(
    three: Any,
) -> None:
    await three.start()
    old = await three.leader()
    await old.propose(b"x")
    configuration, version = await old.remove(name(old))
    rest = ids(configuration)
    assert name(old) not in rest
    new = await three.leader(*rest)
    await new.propose(b"y")
    await three.until("the removed one knows", lambda: old.removed)
    assert "no longer has it" in old.removed
    assert three.traces[name(old)].of(Kind.REMOVED)
    for refused in (old.propose(b"z"), old.read_barrier(), old.transfer_leadership()):
        with pytest.raises(RemovedError):
            await refused
    with pytest.raises(RemovedError):
        await old.change_members(configuration.members, version=version)
    status = old.status()
    assert status.removed == old.removed
    assert status.core.role == "follower"
    assert "removed: " in status.describe()
    assert new.configuration_version == version
    await old.stop()
    await three.start(name(old))
    again = three.nodes[name(old)]
    await three.until("it knows that after a restart too", lambda: again.removed)


async def test_a_removed_node_disturbs_nobody(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    gone = name(three.others(leader)[0])
    await changed(three, "remove", gone)
    term = leader.status().core.term
    await three.until("it knows", lambda: three.nodes[gone].removed)
    # longer than any election timeout: it would have campaigned by now
    for number in range(50):
        await leader.propose(b"%d" % number)
        await asyncio.sleep(0.01)
    assert leader.is_leader
    assert leader.status().core.term == term
    assert not three.nodes[gone].is_leader


async def test_votes_are_given_and_taken_without_joining_or_leaving(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    other = name(three.others(leader)[0])
    configuration = await changed(three, "demote", other)
    assert configuration.learners == (other,)
    await leader.propose(b"x")
    await three.until_equal([b"x"])
    configuration = await changed(three, "promote", other)
    assert configuration.voters == ("a", "b", "c")


# -- learners and reads ---------------------------------------------------------------------------


async def test_a_learner_follows_and_gives_linearizable_reads_and_never_votes(
    make_world: Any,
) -> None:
    world = make_world("a")
    leader = await world.lone()
    for number in range(10):
        await leader.propose(b"%d" % number)
    await world.join("l")
    configuration = await changed(world, "add_learner", world.member("l", voter=False))
    assert (configuration.voters, configuration.learners) == (("a",), ("l",))
    learner = world.nodes["l"]
    for number in range(10, 15):
        proposed = await leader.propose(b"%d" % number)
        assert await learner.read_barrier() >= proposed.index
        assert world.commands("l")[-1] == b"%d" % number
    assert not world.traces["l"].of(Kind.VOTE_GRANTED)
    await leader.stop(handover=False)
    await asyncio.sleep(0.5)
    assert not learner.is_leader


async def test_reads_go_through_every_member_while_the_members_change(three: Any) -> None:
    await three.start()
    async with under_load(three) as load:
        await three.join("d")
        await changed(three, "add_voter", three.member("d"))
        for node_id in await three.members():
            before = len(load.acknowledged)
            await load.more(2)
            await retried(three.nodes[node_id].read_barrier)
            seen = set(three.commands(node_id))
            assert set(load.acknowledged[:before]) <= seen


# -- refusals -------------------------------------------------------------------------------------


async def test_two_changes_made_at_once_can_not_undo_each_other(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.read_barrier()
    seen, version = leader.configuration, leader.configuration_version
    await leader.update_address("b", "b:2")
    with pytest.raises(StaleVersionError) as stale:
        await leader.change_members(seen.members, version=version)
    assert stale.value.version == leader.configuration_version > version
    assert leader.configuration.member("b").address == "b:2"


async def test_what_can_not_be_is_refused_and_changes_nothing(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.read_barrier()
    members, version = leader.configuration.members, leader.configuration_version
    b = leader.configuration.member("b")
    wrong: list[tuple[Member, ...]] = [
        (),
        tuple(replace(m, voter=False) for m in members),
        (*members, b),
        (*members, Member("d", "b:1", b"d" * 16)),
        (*(m for m in members if m != b), replace(b, incarnation=b"?" * 16)),
        (*members, Member("d", "d:1", b"")),
    ]
    for wanted in wrong:
        with pytest.raises(InvalidChangeError):
            await leader.change_members(wanted, version=version)
    assert (leader.configuration.members, leader.configuration_version) == (members, version)
    follower = three.others(leader)[0]
    with pytest.raises(NotLeaderError) as refused:
        await follower.change_members(members, version=version)
    assert refused.value.leader_id == name(leader)


async def test_while_new_voters_are_made_another_change_of_an_old_version_is_refused(
    three: Any,
) -> None:
    await three.start()
    leader = await three.leader()
    await leader.read_barrier()
    version = leader.configuration_version
    # d does not run, so that its change stays where it is
    adding = asyncio.create_task(leader.add_voter(three.member("d"), timeout_s=20))
    await three.until("it is being added", lambda: leader.status().stage == "staging")
    with pytest.raises((ChangeInProgressError, StaleVersionError)):
        await leader.change_members(leader.configuration.members, version=version)
    text = leader.status().describe()
    assert "wanted: voters a, b, c, d" in text
    assert "change of members waits for: " in text
    # who looks again may put another change in its place
    await retried(lambda: leader.remove("d"))
    with pytest.raises(OutcomeUnknownError):
        await adding
    assert ids(leader.configuration) == ("a", "b", "c")


async def test_a_voter_that_does_not_catch_up_becomes_a_learner_and_the_caller_is_told(
    three: Any,
) -> None:
    await three.start(catch_up_ms=300)
    leader = await three.leader()
    await leader.read_barrier()
    with pytest.raises(NotCaughtUpError) as given_up:
        await leader.add_voter(three.member("d"), timeout_s=20)
    assert not isinstance(given_up.value, RefusedError)
    assert leader.configuration.learners == ("d",)
    assert leader.configuration_version == given_up.value.version
    assert (await leader.propose(b"x")).result == 1


async def test_a_caller_who_stops_waiting_does_not_know_and_the_change_goes_on(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.read_barrier()
    with pytest.raises(OutcomeUnknownError):
        await leader.add_voter(three.member("d"), timeout_s=0.1)
    await three.join("d")
    await three.until("it came about", lambda: "d" in leader.configuration.voters)


# -- joining --------------------------------------------------------------------------------------


async def test_a_joiner_that_is_welcome_becomes_a_voter(three: Any) -> None:
    async def welcome(joiner: Member) -> bool:
        return joiner.node_id == "d"

    await three.start(on_join=welcome)
    leader = await three.leader()
    await leader.read_barrier()
    await three.join("d")
    configuration = await retried(lambda: leader.on_join(three.member("d")))
    assert configuration.member("d") is not None
    await three.until("it votes", lambda: "d" in leader.configuration.voters)
    assert (await leader.on_join(three.member("d"))).member("d") is not None
    with pytest.raises(NotAdmittedError):
        await leader.on_join(three.member("e"))
    asked = [event.fields for event in three.traces[name(leader)].of(Kind.JOINER_ASKED)]
    assert {"joiner": "e", "address": "e:1", "voter": True, "admitted": False} in asked
    with pytest.raises(NotLeaderError) as hint:
        await three.others(leader)[0].on_join(three.member("e"))
    assert hint.value.leader_id == name(leader)


async def test_an_operator_lets_in_who_waits(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await three.join("d")
    with pytest.raises(NotAdmittedError):
        await leader.on_join(three.member("d"))
    assert leader.pending_joiners == leader.status().joiners == (three.member("d"),)
    assert "asks to join: d at d:1" in leader.status().describe()
    # the operator need not copy the incarnation
    await retried(lambda: leader.add_voter(replace(three.member("d"), incarnation=b"")))
    assert leader.pending_joiners == ()
    assert leader.configuration.member("d") == three.member("d")


async def test_a_wiped_member_comes_back_only_after_it_was_removed(three: Any) -> None:
    async def welcome(_joiner: Member) -> bool:
        return True

    await three.start(on_join=welcome)
    leader = await three.leader()
    await leader.propose(b"x")
    gone = name(three.others(leader)[0])
    old = three.member(gone)
    await three.nodes.pop(gone).stop(handover=False)
    new = three.wipe(gone)
    assert new.incarnation != old.incarnation
    with pytest.raises(IncarnationError, match="remove it first"):
        await leader.on_join(new)
    await changed(three, "remove", gone)
    with pytest.raises(RemovedError):
        await leader.on_join(old)
    await three.join(gone)
    await retried(lambda: leader.on_join(new))
    await three.until("it is a voter again", lambda: gone in leader.configuration.voters)
    assert leader.configuration.member(gone) == new
    await three.nodes[gone].read_barrier()
    assert three.commands(gone) == [b"x"]


async def test_refusals_while_leadership_moves_name_the_one_to_ask(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    target = name(three.others(leader)[0])
    await leader.propose(b"x")
    three.gates[target].close()
    moving = asyncio.create_task(leader.transfer_leadership(target))
    await asyncio.sleep(0)
    try:
        with pytest.raises((TransferringError, NotLeaderError)):
            await leader.propose(b"y")
    finally:
        three.gates[target].open()
    with suppress(RaftcoreError):  # the target's disk was slow: it may have failed
        await moving


async def test_a_joiner_is_told_that_it_is_a_member_only_once_that_is_committed(three: Any) -> None:
    """Told earlier it would ask no more, and be lost when the configuration goes back."""

    async def welcome(_joiner: Member) -> bool:
        return True

    await three.start(on_join=welcome)
    old = await three.leader()
    await old.propose(b"x")
    others = [name(node) for node in three.others(old)]
    three.network.partition([name(old)], others)
    joiner = three.member("d")
    asking = asyncio.create_task(old.on_join(joiner))
    await three.until("the change is in the log", lambda: old.configuration.member("d"))
    await three.until("another leads", lambda: any(three.nodes[i].is_leader for i in others))
    assert not asking.done()
    assert old.pending_joiners == (joiner,)
    three.network.heal_all()
    with pytest.raises(NotAdmittedError):
        await asking
    await three.leader()
    assert all(node.configuration.member("d") is None for node in three.nodes.values())


async def test_a_member_is_told_that_it_was_removed_only_once_that_is_committed(three: Any) -> None:
    await three.start()
    old = await three.leader()
    await retried(lambda: old.add_learner(three.member("d")))
    others = [name(node) for node in three.others(old)]
    three.network.partition([name(old)], others)
    removing = asyncio.create_task(old.remove("d"))
    await three.until("the change is in the log", lambda: old.configuration.member("d") is None)
    assert (await old.on_join(three.member("d"))).member("d") is not None
    three.network.heal_all()
    with suppress(OutcomeUnknownError):
        await removing
