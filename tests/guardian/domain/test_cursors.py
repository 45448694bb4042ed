"""Cursors are bound to their list and to what was encoded."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.domain.cursors import decode_cursor, encode_cursor
from guardian.domain.problems import Problem


def refused(scope: str, cursor: str, kind: type = str) -> bool:
    try:
        decode_cursor(scope, cursor, kind)
    except Problem as problem:
        return problem.code == "invalid_cursor"
    return False


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=256), st.text("ab:", max_size=9))
def test_a_position_comes_back_and_is_safe_in_a_url(position: str, scope: str) -> None:
    cursor = encode_cursor(scope, position)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", cursor)
    assert decode_cursor(scope, cursor, str) == position


@given(st.integers(0, 2**63))
def test_a_number_comes_back_as_a_number(position: int) -> None:
    cursor = encode_cursor("r", position)
    assert decode_cursor("r", cursor, int) == position
    assert refused("r", cursor, str)


def test_a_cursor_of_another_list_is_refused() -> None:
    assert refused("configs:b", encode_cursor("configs:a", "k"))
    assert refused("configs:a", encode_cursor("configs:", "ak"))


@given(st.data())
def test_a_changed_cursor_is_refused(data: st.DataObject) -> None:
    cursor = encode_cursor("configs:a", "some/key")
    index = data.draw(st.integers(0, len(cursor) - 2))  # the last character has spare bits
    char = data.draw(st.sampled_from("ABab01-_").filter(lambda c: c != cursor[index]))
    assert refused("configs:a", cursor[:index] + char + cursor[index + 1 :])
    assert refused("configs:a", cursor[:index])


@pytest.mark.parametrize("cursor", ["", "a", "AAAA", "é", "a b", "=", "A" * 5000, "../x", "\0"])
def test_what_never_was_a_cursor_is_refused(cursor: str) -> None:
    assert refused("s", cursor)
    assert refused("s", cursor, int)


def test_cursors_do_not_depend_on_the_node_or_the_run() -> None:
    assert encode_cursor("configs:p1", "a/b") == GOLDEN
    assert decode_cursor("configs:p1", GOLDEN, str) == "a/b"


GOLDEN = "eyEKH5eMzoUBc2EvYg"
