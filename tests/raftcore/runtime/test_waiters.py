"""Who waits is answered once, and never told more than is known."""

from __future__ import annotations

import asyncio

import pytest

from raftcore.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RefusedError,
    StoppedError,
)
from raftcore.runtime.waiters import Proposals, Reads


@pytest.fixture
def proposals() -> Proposals:
    return Proposals(limit=3)


def accepted(proposals: Proposals, index: int, term: int) -> asyncio.Future[object]:
    """A proposal that the core has put at ``index``."""
    future = proposals.add(asyncio.get_running_loop(), b"x", b"", 0)
    (given,) = proposals.take_incoming(7)
    assert given.timestamp_ms == 7
    proposals.accepted(given.token, index, term)
    return future


async def test_a_result_goes_to_who_proposed_that_entry(proposals: Proposals) -> None:
    future = accepted(proposals, 5, 2)
    proposals.applied(4, 2, "another's", None)
    assert not future.done()
    proposals.applied(5, 2, "mine", None)
    assert await future == "mine"
    assert len(proposals) == 0


async def test_when_another_leaders_entry_takes_the_place_it_never_happened(
    proposals: Proposals,
) -> None:
    future = accepted(proposals, 5, 2)
    proposals.applied(5, 3, "theirs", "b")
    with pytest.raises(NotLeaderError, match="took its place") as refused:
        await future
    assert refused.value.leader_id == "b"


async def test_what_is_truncated_here_may_still_commit_elsewhere(proposals: Proposals) -> None:
    first, second = accepted(proposals, 5, 2), accepted(proposals, 5, 4)
    with pytest.raises(OutcomeUnknownError):
        await first
    proposals.applied(5, 4, "second", None)
    assert await second == "second"


async def test_what_a_snapshot_jumped_over_is_unknown(proposals: Proposals) -> None:
    inside, outside = accepted(proposals, 5, 2), accepted(proposals, 6, 2)
    proposals.jumped_to(5)
    with pytest.raises(OutcomeUnknownError):
        await inside
    assert not outside.done()


async def test_who_gave_up_before_the_core_saw_it_is_not_proposed(proposals: Proposals) -> None:
    future = proposals.add(asyncio.get_running_loop(), b"x", b"", 0)
    future.cancel()
    assert proposals.take_incoming(0) == ()
    assert len(proposals) == 0


async def test_there_is_a_limit_to_those_who_wait(proposals: Proposals) -> None:
    for index in range(3):
        accepted(proposals, index, 1)
    with pytest.raises(OverloadedError):
        proposals.add(asyncio.get_running_loop(), b"x", b"", 0)


async def test_at_the_end_only_what_nobody_saw_is_certain(proposals: Proposals) -> None:
    known = accepted(proposals, 5, 2)
    unseen = proposals.add(asyncio.get_running_loop(), b"x", b"", 0)
    proposals.end(OutcomeUnknownError("end"), StoppedError("end"))
    with pytest.raises(OutcomeUnknownError):
        await known
    with pytest.raises(StoppedError):
        await unseen
    assert len(proposals) == 0


async def test_a_round_of_reads_is_released_or_refused_together() -> None:
    loop, reads = asyncio.get_running_loop(), Reads(100, 9)
    assert reads.start_rounds() == []
    first, second = reads.add(loop), reads.add(loop)
    ((number, _),) = reads.start_rounds()
    assert number == 101
    reads.release(number, 9)
    assert (await first, await second) == (9, 9)
    third = reads.add(loop)
    ((again, _),) = reads.start_rounds()
    assert again == 102
    reads.refuse(again, NotLeaderError("b"))
    with pytest.raises(RefusedError):
        await third


async def test_a_round_that_nobody_waits_for_is_forgotten() -> None:
    loop, reads = asyncio.get_running_loop(), Reads(0, 9)
    gone, kept = reads.add(loop), reads.add(loop)
    ((number, _),) = reads.start_rounds()
    gone.cancel()
    reads.gave_up = True
    assert reads.abandoned() == [], "one still waits"
    kept.cancel()
    reads.gave_up = True
    assert reads.abandoned() == [number]
    assert reads.abandoned() == []


async def test_there_is_a_limit_to_those_who_read_whatever_round_they_are_in() -> None:
    loop, reads = asyncio.get_running_loop(), Reads(0, 3)
    first = reads.add(loop)
    ((number, _),) = reads.start_rounds()
    second, third = reads.add(loop), reads.add(loop, lease=True)
    with pytest.raises(OverloadedError):
        reads.add(loop)
    second.cancel()
    reads.release(number, 5)
    assert await first == 5
    await asyncio.sleep(0)
    assert not third.done()
    reads.add(loop), reads.add(loop)
    with pytest.raises(OverloadedError):
        reads.add(loop)


async def test_at_the_end_all_reads_are_refused() -> None:
    loop, reads = asyncio.get_running_loop(), Reads(0, 9)
    started = reads.add(loop)
    reads.start_rounds()
    waiting = reads.add(loop)
    reads.end(StoppedError("end"))
    for future in (started, waiting):
        with pytest.raises(StoppedError):
            await future
