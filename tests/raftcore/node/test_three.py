"""Three nodes in this process, a network that fails on demand, and disks that take their time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftcore import (
    ChangeInProgressError,
    NodeOptions,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    StoppedError,
    StorageError,
    TransferFailedError,
    TransferringError,
    UnknownPeerError,
)
from raftcore.core.errors import InvariantError
from raftcore.core.messages import AppendReply, AppendRequest, Message, VoteReply

LATER = {"election_timeout_ms": 60_000}


def name(node: Any) -> str:
    return str(node.config.node_id)


class Said:
    """Everything that went over the network."""

    def __init__(self, world: Any) -> None:
        self.messages: list[tuple[str, str, Message]] = []
        world.network.deliver = self._note

    def _note(self, sender: str, receiver: str, message: Message) -> bool:
        self.messages.append((sender, receiver, message))
        return True

    def acknowledged(self, sender: str, index: int) -> bool:
        return any(
            s == sender and isinstance(m, AppendReply) and m.success and m.match_index >= index
            for s, _, m in self.messages
        )

    def granted(self, sender: str) -> bool:
        return any(
            s == sender and isinstance(m, VoteReply) and m.granted and not m.pre_vote
            for s, _, m in self.messages
        )


# -- who leads ------------------------------------------------------------------------------------


async def test_what_the_leader_is_given_all_nodes_apply(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    results = await asyncio.gather(*(leader.propose(b"%d" % n) for n in range(50)))
    assert [p.result for p in results] == list(range(1, 51))
    await three.until_equal([b"%d" % n for n in range(50)])
    assert {node.status().core.term for node in three.nodes.values()} == {results[0].term}


async def test_a_follower_refuses_and_says_who_leads(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    for follower in three.others(leader):
        with pytest.raises(NotLeaderError) as refused:
            await follower.propose(b"x")
        assert refused.value.leader_id == name(leader)
        assert refused.value.leader_id in str(refused.value)
        with pytest.raises(NotLeaderError):
            await follower.transfer_leadership()
    assert all(three.commands(node) == [] for node in three.nodes.values())


async def test_a_barrier_on_a_follower_sees_what_was_acknowledged_before(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    for number in range(10):
        proposed = await leader.propose(b"%d" % number)
        for follower in three.others(leader):
            assert await follower.read_barrier() >= proposed.index
            assert three.commands(follower)[-1] == b"%d" % number


async def test_followers_know_how_stale_they_are(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    follower = three.others(leader)[0]
    await three.until("the leader was heard", lambda: follower.staleness_ms() is not None)
    three.network.partition(
        {name(follower)}, {name(n) for n in three.nodes.values()} - {name(follower)}
    )
    await three.until("it grows old", lambda: (follower.staleness_ms() or 0) > 100)
    three.network.heal_all()
    await three.until("it is young again", lambda: (follower.staleness_ms() or 999) < 100)


async def test_leadership_goes_where_it_is_sent(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    target = three.others(leader)[1]
    term = leader.status().core.term
    assert await leader.transfer_leadership(name(target)) == name(target)
    assert await three.leader() is target
    assert target.status().core.term > term
    assert (await target.propose(b"x")).result == 1


def lag_entries(leader: Any, peer: str) -> int:
    """How much of its log the leader does not know to be on that peer."""
    core = leader.status().core
    (match,) = (p.match_index for p in core.peers if p.node_id == peer)
    return int(core.last_index - match)


async def test_one_transfer_at_a_time_and_its_outcome_may_stay_unknown(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    target = name(three.others(leader)[0])
    await leader.propose(b"x")
    await three.until("the target has everything", lambda: lag_entries(leader, target) == 0)
    three.network.partition({target}, set(three.nodes) - {target})
    first = asyncio.create_task(leader.transfer_leadership(target))
    await asyncio.sleep(0)
    with pytest.raises(ChangeInProgressError):
        await leader.transfer_leadership()
    with pytest.raises(OutcomeUnknownError):  # it was told to take over, and may have heard it
        await first
    assert (await leader.propose(b"still here")).result == 2


async def test_a_transfer_that_its_caller_gave_up_is_still_under_way(three: Any) -> None:
    await three.start(election_timeout_ms=2000)
    leader = await three.leader()
    target = name(three.others(leader)[0])
    await leader.propose(b"x")
    three.network.partition({target}, set(three.nodes) - {target})
    with pytest.raises(OutcomeUnknownError):
        await leader.transfer_leadership(target, timeout_s=0.01)
    with pytest.raises(ChangeInProgressError, match="under way"):
        await leader.transfer_leadership(target)


async def test_leadership_does_not_go_to_somebody_who_is_behind(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    target = name(three.others(leader)[0])
    three.network.partition({target}, set(three.nodes) - {target})
    await leader.propose(b"unknown there")
    with pytest.raises(TransferFailedError):
        await leader.transfer_leadership(target)
    assert leader.is_leader
    assert (await leader.propose(b"still here")).result == 2


@pytest.mark.parametrize(
    ("behind", "told"), [(True, TransferFailedError), (False, OutcomeUnknownError)]
)
async def test_a_transfer_that_is_aborted_is_told_to_who_awaits_it(
    three: Any, behind: bool, told: type[Exception]
) -> None:
    await three.start()
    leader = await three.leader()
    target = name(three.others(leader)[0])
    await leader.propose(b"x")
    await three.until("the target has everything", lambda: lag_entries(leader, target) == 0)
    three.network.partition({target}, set(three.nodes) - {target})
    if behind:
        await leader.propose(b"unknown there")
    waiting = asyncio.create_task(leader.transfer_leadership(target))
    await asyncio.sleep(0)
    with pytest.raises(TransferringError):
        await leader.propose(b"too soon")
    leader.abort_transfer()
    with pytest.raises(told, match="aborted"):
        await waiting
    assert (await leader.propose(b"taken")).result == (3 if behind else 2)
    leader.abort_transfer()  # nothing to abort any more


async def test_only_a_leader_aborts_a_transfer(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    with pytest.raises(NotLeaderError):
        three.others(leader)[0].abort_transfer()


async def test_a_leader_that_stops_hands_over_first(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    term = leader.status().core.term
    await leader.propose(b"x")
    rest = [name(node) for node in three.others(leader)]
    await leader.stop()
    # at once: nobody had to wait for an election timeout
    successors = [three.nodes[i] for i in rest if three.nodes[i].is_leader]
    successor = successors[0] if successors else await three.leader(*rest)
    assert successor.status().core.term == term + 1
    assert (await successor.propose(b"y")).result == 2


async def test_without_anybody_to_hand_over_to_it_stops_all_the_same(three: Any) -> None:
    await three.start(options=NodeOptions(handover_timeout_s=0.05))
    leader = await three.leader()
    for follower in three.others(leader):
        await follower.stop()
    await leader.stop()
    with pytest.raises(StoppedError):
        await leader.propose(b"x")


# -- the leader loses its followers ---------------------------------------------------------------


async def test_what_a_cut_off_leader_accepted_is_unknown_and_replaced(three: Any) -> None:
    await three.start()
    old = await three.leader()
    await old.propose(b"common")
    rest = [name(node) for node in three.others(old)]
    three.network.partition({name(old)}, rest)
    lost = asyncio.create_task(old.propose(b"lost"))
    with pytest.raises(OutcomeUnknownError):
        await lost
    new = await three.leader(*rest)
    await new.propose(b"won")
    three.network.heal_all()
    await three.until_equal([b"common", b"won"])
    assert not old.is_leader


async def test_a_cut_off_leader_confirms_no_read(three: Any) -> None:
    await three.start()
    old = await three.leader()
    three.network.partition({name(old)}, {name(node) for node in three.others(old)})
    with pytest.raises(NotLeaderError):
        await old.read_barrier(timeout_s=0.5)


async def test_after_a_crash_of_all_nothing_acknowledged_is_lost(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    for number in range(20):
        await leader.propose(b"%d" % number)
    for node in three.nodes.values():
        await node.stop(handover=False)
    await three.start()
    leader = await three.leader()
    await leader.read_barrier()
    await three.until_equal([b"%d" % n for n in range(20)])


# -- nothing is said before it is durable ---------------------------------------------------------


async def test_a_follower_acknowledges_only_what_is_durable(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    slow, away = three.others(leader)
    await away.stop()
    await leader.propose(b"before")
    said = Said(three)
    three.gates[name(slow)].close()
    proposing = asyncio.create_task(leader.propose(b"slow"))
    index = leader.status().core.last_index + 1
    await three.until("it is at the gate", lambda: three.gates[name(slow)].waiting)
    await three.until("a reply is held", lambda: slow.status().held_messages > 0)
    assert not said.acknowledged(name(slow), index)
    assert leader.status().core.commit_index < index
    assert not proposing.done()
    three.gates[name(slow)].open()
    assert (await proposing).index == index
    assert said.acknowledged(name(slow), index)


async def test_a_leader_does_not_count_itself_before_its_own_write(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    quick, away = three.others(leader)
    await away.stop()
    await leader.propose(b"before")
    said = Said(three)
    three.gates[name(leader)].close()
    proposing = asyncio.create_task(leader.propose(b"slow here"))
    index = leader.status().core.last_index + 1
    # the entry is on its way to followers while the leader's own disk is still at it
    await three.until("the follower has it", lambda: said.acknowledged(name(quick), index))
    assert leader.status().core.durable_index < index
    assert leader.status().core.commit_index < index
    assert not proposing.done()
    three.gates[name(leader)].open()
    assert (await proposing).index == index


async def test_a_vote_leaves_only_when_it_is_durable(three: Any) -> None:
    said = Said(three)
    await three.start("a")
    await three.start("b", **LATER)  # it never campaigns
    voter = three.nodes["b"]
    three.gates["b"].close()
    await three.until("the vote is at the gate", lambda: three.gates["b"].waiting)
    await three.until("the vote is held", lambda: voter.status().held_messages > 0)
    assert not said.granted("b")
    assert not three.nodes["a"].is_leader
    three.gates["b"].open()
    assert name(await three.leader("a", "b")) == "a"
    assert said.granted("b")


async def test_after_a_storage_error_a_node_says_nothing_more(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.propose(b"before")
    broken, whole = three.others(leader)
    await three.until_equal([b"before"])
    said = Said(three)
    three.disks[name(broken)].failure = StorageError("the disk is on fire")
    proposed = await leader.propose(b"after")
    with pytest.raises(StorageError, match="on fire"):
        await broken.wait_stopped()
    await broken.stop()
    assert not said.acknowledged(name(broken), proposed.index)
    said.messages.clear()
    for number in range(5):
        await leader.propose(b"%d" % number)
    assert not [m for s, _, m in said.messages if s == name(broken)]
    assert three.commands(whole)[:2] == [b"before", b"after"]


async def test_a_leader_whose_disk_fails_is_replaced(three: Any) -> None:
    await three.start()
    old = await three.leader()
    await old.propose(b"before")
    three.disks[name(old)].failure = StorageError("the disk is on fire")
    with pytest.raises(OutcomeUnknownError):
        await old.propose(b"perhaps")
    with pytest.raises(StorageError):
        await old.wait_stopped()
    rest = [name(node) for node in three.others(old)]
    new = await three.leader(*rest)
    await new.propose(b"next")
    assert three.commands(new)[0] == b"before"
    assert three.commands(new)[-1] == b"next"


# -- snapshots ------------------------------------------------------------------------------------


async def test_a_follower_far_behind_is_sent_a_snapshot(three: Any) -> None:
    settings: dict[str, Any] = {
        "options": NodeOptions(snapshot_entries=20),
        "trailing_entries": 0,
        "snapshot_chunk_bytes": 64,
    }
    await three.start(**settings)
    leader = await three.leader()
    lagging = name(three.others(leader)[0])
    await three.nodes.pop(lagging).stop()
    held = three.disks[lagging].shape.last_index
    commands: list[bytes] = []
    while leader.status().core.first_index <= held + 1:
        assert len(commands) < 500, "the log was never cut"
        commands.append(b"%030d" % len(commands))
        await leader.propose(commands[-1])
    await three.start(lagging, **settings)
    node = three.nodes[lagging]
    await three.until_equal(commands)
    assert node.status().counters.snapshots_installed == 1
    assert three.machines[lagging].installed == 1
    commands.append(b"and on")
    await leader.propose(commands[-1])
    await three.until_equal(commands)
    # what was installed is also what it starts from again
    await node.stop()
    await three.start(lagging, **settings)
    await three.leader()
    await three.nodes[lagging].read_barrier()
    assert three.commands(lagging) == commands


# -- requests of the application ------------------------------------------------------------------


async def test_members_can_ask_each_other(three: Any) -> None:
    async def answer(sender: str, payload: bytes) -> bytes:
        if payload == b"refuse":
            raise OverloadedError("not now")
        return sender.encode() + b" said " + payload

    await three.start("a", on_request=answer)
    await three.start("b")
    a, b = three.nodes["a"], three.nodes["b"]
    assert await b.request("a", b"hello", timeout_s=5.0) == b"b said hello"
    with pytest.raises(OverloadedError):
        await b.request("a", b"refuse", timeout_s=5.0)
    with pytest.raises(StoppedError):
        await a.request("b", b"hello", timeout_s=5.0)  # it has nobody who answers
    with pytest.raises(UnknownPeerError):
        await a.request("c", b"hello", timeout_s=5.0)


async def test_what_no_member_would_say_is_dropped(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    leader.on_message(VoteReply(name(leader), 1, granted=True, pre_vote=False))  # from ourselves
    assert leader.status().counters.peer_violations == 1
    assert (await leader.propose(b"x")).result == 1


async def test_a_second_leader_in_one_term_ends_the_node(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    term = leader.status().core.term
    rival = name(three.others(leader)[0])
    leader.on_message(AppendRequest(rival, term, 1, 1, 1, 1, 1))
    with pytest.raises(InvariantError, match="leads term"):
        await leader.wait_stopped()
