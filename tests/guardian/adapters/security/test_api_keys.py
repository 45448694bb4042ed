from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.adapters.security.api_keys import ApiKeys

_KEYS = ApiKeys()


def test_a_key_has_the_documented_shape_and_digest() -> None:
    text, digest = _KEYS.generate()
    assert re.fullmatch(r"cfg_[0-9A-Za-z]{36}", text)
    assert _KEYS.well_formed(text)
    assert digest == _KEYS.digest(text) == hashlib.sha256(text.encode()).digest()


def test_keys_do_not_repeat() -> None:
    assert len({_KEYS.generate()[0] for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text", ["cfg_0000000000000000000000000000002C8GjS", "cfg_Aa0Aa0Aa0Aa0Aa0Aa0Aa0Aa0Aa0Aa04M2KCF"]
)
def test_keys_that_exist_stay_valid(text: str) -> None:
    assert _KEYS.well_formed(text)


@given(st.integers(min_value=4, max_value=39), st.sampled_from("0aZ9xQ"))
def test_one_mistyped_character_is_noticed(position: int, character: str) -> None:
    text, _ = _KEYS.generate()
    changed = text[:position] + character + text[position + 1 :]
    assert _KEYS.well_formed(changed) is (changed == text)


@pytest.mark.parametrize(
    "text",
    ["", "cfg_", "cfg_" + "a" * 35, "cfg_" + "a" * 37, "CFG_" + "a" * 36, "cfg_" + "ü" * 36],
)
def test_other_shapes_are_not_keys(text: str) -> None:
    assert not _KEYS.well_formed(text)


def test_a_key_with_something_after_it_is_no_key() -> None:
    text, _ = _KEYS.generate()
    for changed in (text + "\n", " " + text, text + "0", text.replace("cfg_", "cfg-")):
        assert not _KEYS.well_formed(changed)


@given(st.text())
def test_any_text_is_answered(text: str) -> None:
    assert not _KEYS.well_formed(text)
    assert len(_KEYS.digest(text)) == 32
