"""Hostile input: refused with a typed error, and nothing has changed (rules 15, 24, 29)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.sim.manual import ManualCluster, ManualNode, configuration_of
from raftcore.core import messages as msg
from raftcore.core.errors import InvariantError, PeerViolationError
from raftcore.core.membership import encode_configuration
from raftcore.core.messages import Message
from raftcore.core.types import MAX_INDEX, MAX_TERM, Configuration, Entry, EntryType, SnapshotMeta

META = SnapshotMeta(5, 1, b"", configuration_of("abc"), 10, b"")


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, EntryType.COMMAND, b"x")


def append(prev: tuple[int, int], *entries: Entry, term: int = 3) -> msg.AppendRequest:
    return msg.AppendRequest("b", term, prev[0], prev[1], 0, 1, 0, entries)


def configuration_entry(data: bytes) -> msg.AppendRequest:
    return append((0, 0), Entry(1, 1, EntryType.CONFIGURATION, data))


def chunk(offset: int, data: bytes, meta: SnapshotMeta = META) -> msg.SnapshotChunk:
    return msg.SnapshotChunk("b", 3, meta, offset, data, 1, 0)


def state_of(node: ManualNode) -> object:
    s = node.raft._s
    contacts = s.leadership and [(p.match_index, p.last_contact_ns, p.next_index, len(p.inflight))
                                 for p in s.leadership.progress.values()]  # fmt: skip
    return (node.raft.status(), s.incoming, s.staged, contacts, s.election_deadline_ns)


FROM_ANYBODY: dict[str, Message] = {
    "ourselves": msg.Heartbeat("a", 3, 0, 0),
    "negative term": msg.Heartbeat("b", -1, 0, 0),
    "term beyond the bound": msg.Heartbeat("b", MAX_TERM + 1, 0, 0),
    "absurd jump of the term": msg.HeartbeatReply("b", 2**40, 0),
    "absurd term in a vote": msg.VoteRequest("b", 2**61, 9, 9),
    "vote with a negative index": msg.VoteRequest("b", 3, -1, 0),
    "vote with an absurd index": msg.VoteRequest("b", 3, MAX_INDEX + 1, 1),
    "vote with a log from the future": msg.VoteRequest("b", 3, 1, 4),
    "pre-vote with a negative term": msg.VoteRequest("b", 3, 1, -1, pre_vote=True),
    "append before the log": append((-1, 0)),
    "append after a future term": append((1, 4)),
    "append with a gap": append((0, 0), entry(1, 1), entry(3, 1)),
    "append that starts elsewhere": append((0, 0), entry(2, 1)),
    "append with falling terms": append((0, 0), entry(1, 2), entry(2, 1)),
    "append below its prev term": append((1, 2), entry(2, 1)),
    "append of a future entry": append((0, 0), entry(1, 4)),
    "append of no configuration": configuration_entry(b"{}"),
    "append of brackets without end": configuration_entry(b"[" * 200_000),
    "append of another cluster's configuration": configuration_entry(
        encode_configuration(replace(configuration_of("abc"), cluster_id="other"))
    ),
    "append of a configuration without a voter": configuration_entry(
        encode_configuration(configuration_of("", "abc"))
    ),
    "snapshot of another cluster": chunk(
        0, b"x", replace(META, configuration=replace(META.configuration, cluster_id="other"))
    ),
    "snapshot without a voter": chunk(
        0, b"x", replace(META, configuration=configuration_of("", "abc"))
    ),
    "snapshot of nobody": chunk(0, b"x", replace(META, configuration=Configuration("sim", ()))),
    "snapshot whose configuration contradicts itself": chunk(
        0, b"x", replace(META, configuration=replace(META.configuration, leaving=("a",)))
    ),
    "append of the configuration of nobody": configuration_entry(
        encode_configuration(Configuration("sim", ()))
    ),
    "append of a configuration that contradicts itself": configuration_entry(
        encode_configuration(replace(META.configuration, old_voters=("x",)))
    ),
    "snapshot bytes before the file": chunk(-1, b"x"),
    "snapshot bytes beyond the file": chunk(5, b"x" * 6),
    "empty chunk": chunk(0, b""),
    "snapshot of the future": chunk(0, b"x", SnapshotMeta(5, 4, b"", META.configuration, 10, b"")),
    "snapshot at a negative index": chunk(
        0, b"x", SnapshotMeta(-5, 1, b"", META.configuration, 10, b"")
    ),
}


@pytest.mark.parametrize("name", FROM_ANYBODY)
@pytest.mark.parametrize("role", ["follower", "leader"])
def test_an_impossible_message_is_refused_and_changes_nothing(name: str, role: str) -> None:
    c = ManualCluster()
    node = c.elect("a") if role == "leader" else c["a"]
    node.now_ns += 1
    before = state_of(node)
    with pytest.raises(PeerViolationError):
        node.receive(FROM_ANYBODY[name])
    assert state_of(node) == before
    node.tick()  # it goes on


ANSWERS: dict[str, Message] = {
    "append sequence": msg.AppendReply("b", 1, True, 1, 0, 0, 10**6, 0),
    "append match": msg.AppendReply("b", 1, True, 9, 0, 0, 1, 0),
    "negative match": msg.AppendReply("b", 1, True, -1, 0, 0, 1, 0),
    "append read round": msg.AppendReply("b", 1, True, 1, 0, 0, 1, 7),
    "heartbeat read round": msg.HeartbeatReply("b", 1, 7),
    "snapshot sequence": msg.SnapshotReply("b", 1, 1, 0, True, 10**6, 0),
    "snapshot index": msg.SnapshotReply("b", 1, 99, 0, True, 1, 0),
    "snapshot read round": msg.SnapshotReply("b", 1, 1, 0, True, 1, 7),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_to_what_was_never_sent_is_refused_and_changes_nothing(name: str) -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.now_ns += 1
    before = state_of(leader)
    with pytest.raises(PeerViolationError):
        leader.receive(ANSWERS[name])
    assert state_of(leader) == before
    follower = c["b"]
    assert follower.receive(msg.AppendReply("a", 1, True, 9, 0, 0, 10**6, 7)) == []


def test_answers_never_asked_for_mean_nothing_to_a_node_that_waits_for_none() -> None:
    node = ManualCluster()["a"]
    before = state_of(node)
    for message in (
        msg.VoteReply("b", 0, True),
        msg.VoteReply("b", 1, True, pre_vote=True),
        msg.VoteReply("b", 0, False),
        msg.AppendReply("b", 0, True, 5, 0, 0, 5, 5),
        msg.HeartbeatReply("b", 0, 9),
        msg.SnapshotReply("b", 0, 5, 0, True, 1, 1),
        msg.ReadIndexReply("b", 0, 3, 9),
    ):
        assert node.receive(message) == []
    assert state_of(node) == before


def test_a_heartbeat_that_commits_what_is_not_here_stops_the_node() -> None:
    """The leader proved that it was here: the log went back."""
    node = ManualCluster()["a"]
    with pytest.raises(InvariantError, match="beyond the last index"):
        node.receive(msg.Heartbeat("b", 1, 5, 0))


numbers = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 7, 2**32, 2**62, 2**63, 2**70])
entries = st.lists(
    st.builds(Entry, numbers, numbers, st.sampled_from(list(EntryType)), st.binary(max_size=3)),
    max_size=3,
).map(tuple)
metas = st.builds(
    SnapshotMeta, numbers, numbers, st.just(b""), st.just(META.configuration), numbers, st.just(b"")
)
senders = st.sampled_from(["a", "b", "c", "stranger", ""])
hostile = st.one_of(
    st.builds(msg.VoteRequest, senders, numbers, numbers, numbers, st.booleans(), st.booleans()),
    st.builds(msg.VoteReply, senders, numbers, st.booleans(), st.booleans()),
    st.builds(
        msg.AppendRequest, senders, numbers, numbers, numbers, numbers, numbers, numbers, entries
    ),
    st.builds(
        msg.AppendReply,
        senders,
        numbers,
        st.booleans(),
        numbers,
        numbers,
        numbers,
        numbers,
        numbers,
    ),
    st.builds(msg.Heartbeat, senders, numbers, numbers, numbers),
    st.builds(msg.HeartbeatReply, senders, numbers, numbers),
    st.builds(
        msg.SnapshotChunk, senders, numbers, metas, numbers, st.binary(max_size=3), numbers, numbers
    ),
    st.builds(
        msg.SnapshotReply, senders, numbers, numbers, numbers, st.booleans(), numbers, numbers
    ),
    st.builds(msg.TimeoutNow, senders, numbers),
    st.builds(msg.ReadIndexRequest, senders, numbers, numbers),
    st.builds(msg.ReadIndexReply, senders, numbers, numbers, numbers),
)


@given(st.lists(hostile, max_size=12), st.sampled_from(["follower", "leader"]))
@settings(max_examples=300)
def test_whatever_comes_is_handled_refused_or_stops_the_node_with_a_typed_error(
    messages: list[Message], role: str
) -> None:
    c = ManualCluster(logs={n: [1, 1] for n in "abc"})
    node = c.elect("a") if role == "leader" else c["a"]
    for message in messages:
        before = state_of(node)
        term = node.raft.term
        try:
            node.receive(message)
        except PeerViolationError:
            assert state_of(node) == before
        except InvariantError:
            with pytest.raises(InvariantError):
                node.tick()
            return
        assert term <= node.raft.term <= MAX_TERM
        assert node.raft.commit_index <= node.raft.status().last_index
