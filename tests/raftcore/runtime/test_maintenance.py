"""The pace of the background check."""

from __future__ import annotations

import pytest

from raftcore.runtime.maintenance import SCRUB_STEP_ENTRIES, Pace


@pytest.mark.parametrize(("entries", "interval"), [(10, 100), (1000, 100), (7, 10), (100, 1000)])
def test_one_pass_takes_the_interval(entries: int, interval: int) -> None:
    pace = Pace(interval)
    steps = [pace.step(entries, 1.0) for _ in range(interval + 1)]
    assert entries <= sum(steps) <= entries + entries // interval + 1
    assert max(steps) - min(steps) <= 1 or entries < interval, "evenly"


def test_a_step_is_bounded_and_what_was_missed_is_not_made_up_for() -> None:
    pace = Pace(1)
    assert pace.step(1_000_000, 60.0) == SCRUB_STEP_ENTRIES
    assert sum(pace.step(0, 1.0) for _ in range(10)) <= SCRUB_STEP_ENTRIES


def test_an_empty_log_and_an_interval_of_zero_ask_for_nothing() -> None:
    assert Pace(10).step(0, 100.0) == 0
    assert Pace(0).step(100, 100.0) == 0
