"""Regular expressions: which engine matches, and what neither may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.adapters.schemas.patterns import Pattern
from guardian.domain.problems import Problem


@pytest.mark.parametrize(
    ("pattern", "fits", "misfits"),
    [
        ("^a$", ["a"], ["a\n", "b", ""]),
        ("a", ["xax"], ["x"]),
        (r"^\d+$", ["12"], ["٣", ""]),
        (r"^\w$", ["a", "_"], ["é", "-"]),
        (r"^\p{L}+$", ["é"], ["1"]),
        ("^(a+)+$", ["a" * 40], ["a" * 40 + "!"]),
        ("^(?!x)[a-z]+$", ["ab"], ["xb"]),
        ("^(?=.*[0-9]).{4,8}$", ["abc1"], ["abcd", "1"]),
        ("(?<!a)b", ["cb"], ["ab"]),
        ("", ["", "a"], []),
    ],
)
def test_what_matches(pattern: str, fits: list[str], misfits: list[str]) -> None:
    compiled = Pattern(pattern)
    assert [text for text in fits if not compiled.search(text)] == []
    assert [text for text in misfits if compiled.search(text)] == []


@pytest.mark.parametrize("pattern", ["[", "(", "a{2,1}", "*", "(?<n", "\\"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(Problem) as caught:
        Pattern(pattern)
    assert caught.value.code == "invalid_schema"


@pytest.mark.parametrize(
    "pattern",
    [
        "^(?=(a+)+$)",
        r"^(a*)\1$",
        "(?!x)(a*)*$",
        "(?!x)(?:a+?)+?$",
        "(?=a)((ab){70,}|c)*",
        "(?<=x)(?:[^y]|z*)+",
        r"(?P<q>a)(?P=q)",
        r"(a)?(?(1)b|c)",
    ],
)
def test_what_could_explode_or_refers_back(pattern: str) -> None:
    with pytest.raises(Problem) as caught:
        Pattern(pattern)
    assert caught.value.code in ("schema_too_complex", "invalid_schema")


@given(st.text("ab()|*+?^$[]{},\\d1", max_size=12), st.text("ab1\n", max_size=8))
def test_any_text_is_a_pattern_or_a_problem(pattern: str, text: str) -> None:
    try:
        compiled = Pattern(pattern)
    except Problem as problem:
        refused_with = problem.code
    else:
        refused_with = ""
        assert compiled.search(text) in (True, False)
    assert refused_with in ("", "invalid_schema", "schema_too_complex")
