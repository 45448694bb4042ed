"""The pace of the background check."""

from __future__ import annotations

import pytest

from raftcore.maintenance import SCRUB_STEP_ENTRIES, Scrub


def walk(scrub: Scrub, first: int, last: int, seconds: int) -> list[int]:
    """The entries verified within that time, a step a second."""
    seen: list[int] = []
    for _ in range(seconds):
        step = scrub.step(first, last, 1.0)
        if step is not None:
            seen += range(step[0], step[1] + 1)
            scrub.next_index = step[1] + 1
    return seen


@pytest.mark.parametrize(("entries", "interval"), [(10, 100), (1000, 100), (7, 10), (100, 1000)])
def test_one_pass_takes_the_interval_and_leaves_nothing_out(entries: int, interval: int) -> None:
    seen = walk(Scrub(interval), 5, 4 + entries, interval + 1)
    assert seen[:entries] == list(range(5, 5 + entries))
    assert len(seen) <= entries + entries // interval + 1


def test_a_step_is_bounded_and_what_was_missed_is_not_made_up_for() -> None:
    scrub = Scrub(1)
    first, last = scrub.step(1, 1_000_000, 1.0) or (0, 0)
    assert last - first + 1 == SCRUB_STEP_ENTRIES
    scrub.next_index = last + 1
    assert len(walk(scrub, 1, 1_000_000, 10)) <= 10 * SCRUB_STEP_ENTRIES


def test_it_follows_the_log_when_that_is_cut_and_begins_again_at_its_end() -> None:
    scrub = Scrub(10)
    assert walk(scrub, 1, 10, 5) == [1, 2, 3, 4, 5]
    assert walk(scrub, 8, 10, 11)[:3] == [8, 9, 10]
    assert scrub.step(8, 10, 10.0) == (8, 10), "the next pass"


def test_an_empty_log_and_an_interval_of_zero_ask_for_nothing() -> None:
    assert Scrub(10).step(5, 4, 100.0) is None
    assert Scrub(0).step(1, 100, 100.0) is None
