"""Majority arithmetic, plain and joint. Recomputed by sorting every time, never kept up to date
incrementally (rule 23); tests hold each function against a brute-force oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from raftcore.core.types import Configuration, NodeId


class VoteResult(Enum):
    WON = "won"
    LOST = "lost"
    PENDING = "pending"


def majority_size(voters: Sequence[NodeId]) -> int:
    """How many of ``voters`` are a majority."""
    return len(voters) // 2 + 1


def _majority_value(voters: Sequence[NodeId], value_of: Callable[[NodeId], int]) -> int:
    """The largest value that a majority of ``voters`` has reached."""
    return sorted(map(value_of, voters))[-majority_size(voters)]


def quorum_value(configuration: Configuration, value_of: Callable[[NodeId], int]) -> int:
    """The largest value (log index, read counter, time) that a quorum has reached.

    In a joint configuration both majorities must have reached it (thesis 4.3). ``value_of`` gives
    each voter's value; the configuration must have voters.
    """
    reached = _majority_value(configuration.voters, value_of)
    if configuration.old_voters:
        reached = min(reached, _majority_value(configuration.old_voters, value_of))
    return reached


def _count(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    needed = majority_size(voters)
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= needed:
        return VoteResult.WON
    if len(voters) - refused < needed:
        return VoteResult.LOST
    return VoteResult.PENDING


def vote_result(configuration: Configuration, votes: Mapping[NodeId, bool]) -> VoteResult:
    """Outcome of an election in which ``votes`` were cast; only voters count (rule 6)."""
    result = _count(configuration.voters, votes)
    if not configuration.old_voters:
        return result
    old = _count(configuration.old_voters, votes)
    if VoteResult.LOST in (result, old):
        return VoteResult.LOST
    if result is old is VoteResult.WON:
        return VoteResult.WON
    return VoteResult.PENDING
