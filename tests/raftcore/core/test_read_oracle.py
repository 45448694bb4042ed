"""What confirms a read, and when a lease ends, against brute force over all quorums (rules 33, 35).

Every stable and joint configuration of up to five voters, up to renaming of the peers, and every
way in which the peers can have answered. The oracle knows nothing of sorting: it tries all sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, product

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode, configuration_of
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import lease, replication
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.membership import encode_configuration
from raftcore.core.messages import Health
from raftcore.core.progress import Progress
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import Configuration, Entry, EntryType, Lease

LEADER, PEERS = "a", "bcde"
LEASE = Lease(300, 100_000)
LENGTH_NS = 270 * MS


def stable() -> Iterator[Configuration]:
    """Up to five voters, the other peers learners; with the leader, and without it (rule 41)."""
    for voters in range(len(PEERS) + 1):
        yield of(LEADER + PEERS[:voters])
        if voters:
            yield of(PEERS[:voters])


def joint() -> Iterator[Configuration]:
    """Each peer is a voter before, after, in both, or in neither; only how many matters."""
    for cuts in combinations(range(len(PEERS) + 3), 3):
        edges = (-1, *cuts, len(PEERS) + 3)
        before, both, after, _ = (high - low - 1 for low, high in pairwise(edges))
        old = PEERS[: before + both]
        new = PEERS[before : before + both + after]
        yield of(LEADER + new, LEADER + old)
        if new:
            yield of(new, LEADER + old)


def of(voters: str, old: str = "") -> Configuration:
    others = [peer for peer in PEERS if peer not in voters and peer not in old]
    return configuration_of(sorted(voters), others, sorted(old), lease=LEASE)


def quorums(configuration: Configuration) -> list[frozenset[str]]:
    """Every set of nodes that has a majority of each list of voters."""
    lists = [set(configuration.voters)]
    if configuration.old_voters:
        lists.append(set(configuration.old_voters))
    everybody = sorted(set.union(*lists))
    return [
        frozenset(chosen)
        for size in range(len(everybody) + 1)
        for chosen in combinations(everybody, size)
        if all(2 * len(voters & set(chosen)) > len(voters) for voters in lists)
    ]


CONFIGURATIONS = [*stable(), *joint()]


def leading(configuration: Configuration) -> ManualNode:
    """A leader of all that has just appended ``configuration``, which nobody else has seen."""
    cluster = ManualCluster(LEADER + PEERS, lease=LEASE)
    cluster.set_time(600 * MS)
    leader = cluster.elect(LEADER)
    leader.hold_disk = True
    s, leadership = parts(leader)
    index = s.log.last_index + 1
    raw = encode_configuration(configuration)
    entry = Entry(index, s.term, EntryType.CONFIGURATION, raw)
    replication.append_as_leader(s, leadership, (entry,))
    leader.tick()
    assert leader.raft.configuration == configuration
    return leader


def parts(leader: ManualNode) -> tuple[CoreState, Leadership]:
    s = leader.raft._s
    assert s.leadership is not None
    return s, s.leadership


def test_the_configurations_are_all_there_are_up_to_renaming() -> None:
    shapes = set()
    for c in CONFIGURATIONS:
        old, new = set(c.old_voters), set(c.voters)
        peers = ((p in old, p in new) for p in PEERS)
        shapes.add((bool(old), LEADER in new, tuple(sorted(peers))))
    assert len(shapes) == len(CONFIGURATIONS) == 9 + 35 + 30


# -- read confirmation ----------------------------------------------------------------------------

ECHOES = ("older round", "this round", "in quarantine", "lost what it had")


@pytest.mark.parametrize("part", range(4))
def test_rule_33_a_read_is_confirmed_by_exactly_the_echoes_of_a_quorum(part: int) -> None:
    outcomes = set()
    for configuration in CONFIGURATIONS[part::4]:
        leader = leading(configuration)
        before = len(leader.effects)
        leader.read(7)
        at_once = any(isinstance(e, ef.ReadReleased) for e in leader.effects[before:])
        needed = quorums(configuration)
        for echoes in product(ECHOES, repeat=len(PEERS)):
            given = dict(zip(PEERS, echoes, strict=True))
            confirming = {LEADER} | {p for p, echo in given.items() if echo == "this round"}
            expected = any(quorum <= confirming for quorum in needed)
            assert (at_once or _echoed(leader, given)) is expected, (configuration, given)
            outcomes.add(expected)
    assert outcomes == {False, True}


def _echoed(leader: ManualNode, given: dict[str, str]) -> bool:
    """Whether a copy of the leader, once it has these echoes, lets the read go."""
    raft = leader.raft.clone()
    leadership = raft._s.leadership
    assert leadership is not None
    this_round = leadership.read_counter  # a member that comes back in quarantine begins another
    for peer, echo in given.items():
        counter = this_round - (echo == "older round")
        leadership.progress[peer].regressed = echo == "lost what it had"
        health = Health(quarantined=echo == "in quarantine")
        reply = msg.HeartbeatReply(peer, raft.term, counter, health)
        effects = raft.step(ev.MessageReceived(leader.now_ns, reply))
        if any(isinstance(e, ef.ReadReleased) for e in effects):
            return True
    return False


# -- the end of a lease ---------------------------------------------------------------------------

#: The newest round of heartbeats that a peer has echoed, 0 for none; and what keeps it from
#: counting although it echoed the newest one.
ANSWERS = (0, 1, 2, "behind", "out")
SENT_NS = {1: 1000 * MS, 2: 1060 * MS}


def test_rule_35_a_lease_ends_by_the_newest_round_that_some_quorum_has_echoed() -> None:
    found: set[int | None] = set()
    for configuration in CONFIGURATIONS:
        s, leadership = parts(leading(configuration))
        leadership.rounds.clear()
        leadership.rounds.extend(SENT_NS.items())
        leadership.read_counter = 2
        s.log.committed = s.configurations.current_index
        needed = quorums(configuration)
        for answers in product(ANSWERS, repeat=len(PEERS)):
            rounds = {LEADER: 2}
            for peer, answer in zip(PEERS, answers, strict=True):
                _answer(s, leadership.progress[peer], peer, answer)
                rounds[peer] = answer if isinstance(answer, int) else 0
            newest = max(min(rounds.get(node, 0) for node in quorum) for quorum in needed)
            expected = SENT_NS[newest] + LENGTH_NS if newest else None
            assert lease.valid_until_ns(s) == expected, (configuration, answers)
            found.add(expected)
        s.log.committed -= 1
        assert lease.valid_until_ns(s) is None, "not before its terms are committed"
    assert found == {None, SENT_NS[1] + LENGTH_NS, SENT_NS[2] + LENGTH_NS}


def _answer(s: CoreState, progress: Progress, peer: str, answer: int | str) -> None:
    holds = s.configurations.current_index
    progress.match_index = holds - 1 if answer == "behind" else holds
    progress.read_counter = answer if isinstance(answer, int) else 2
    progress.regressed = answer == "out" and peer in "bd"
    progress.health = Health(quarantined=answer == "out" and peer in "ce")
