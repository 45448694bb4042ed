"""Failures are counted in a sliding window, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.domain.problems import Problem
from guardian.usecases.throttle import FailureWindow


class Time:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_the_attempt_after_the_limit_is_refused_until_the_first_leaves_the_window() -> None:
    now = Time()
    window = FailureWindow(3, 60.0, now)
    for _ in range(3):
        window.begin("a")
        now.s += 10
    with pytest.raises(Problem) as caught:
        window.begin("a")
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_s == 30.0
    window.begin("b")
    now.s += 30
    window.begin("a")
    with pytest.raises(Problem):
        window.check("a")


def test_an_attempt_that_succeeded_is_taken_back() -> None:
    window = FailureWindow(1, 60.0, Time())
    for _ in range(5):
        window.take_back("a", window.begin("a"))
    window.begin("a")
    window.clear("a")
    window.check("a")
    window.take_back("a", 1.0)
    window.take_back("never seen", 1.0)


def test_names_are_bounded_and_the_quietest_is_forgotten() -> None:
    window = FailureWindow(1, 60.0, Time(), max_names=3)
    for name in "abcd":
        window.begin(name)
    window.check("a")
    for name in "bcd":
        with pytest.raises(Problem):
            window.check(name)
    assert len(window._attempts) == 3


def test_names_that_left_the_window_take_no_memory() -> None:
    now = Time()
    window = FailureWindow(1, 60.0, now)
    window.begin("a")
    now.s += 61
    window.check("a")
    assert not window._attempts


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60))
def test_no_window_ever_holds_more_than_the_limit(steps: list[tuple[str, float]]) -> None:
    now = Time()
    window = FailureWindow(4, 60.0, now)
    let_through: list[tuple[str, float]] = []
    for name, pause_s in steps:
        now.s += pause_s
        recent = [at for who, at in let_through if who == name and at > now.s - 60.0]
        try:
            window.begin(name)
        except Problem as problem:
            wait_s = problem.retry_after_s or 0.0
            refused = True
        else:
            wait_s, refused = 0.0, False
            let_through.append((name, now.s))
        assert refused == (len(recent) >= 4)
        assert not refused or 1.0 <= wait_s <= 60.0
