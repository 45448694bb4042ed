"""Strict JSON: what is refused, with which code, and what is kept."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.domain.documents import (
    BODY_LIMITS,
    CONTENT_LIMITS,
    MAX_SAFE_INTEGER,
    JsonLimits,
    compact,
    content_bytes,
    parse_document,
)
from guardian.domain.problems import Problem


def code_of(raw: bytes, limits: JsonLimits = CONTENT_LIMITS) -> str:
    with pytest.raises(Problem) as caught:
        parse_document(raw, limits)
    return caught.value.code


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"   ",
        b"{",
        b"[1,]",
        b"{'a':1}",
        b"{} {}",
        b"1 x",
        b"// c\n1",
        b"nul",
        b'{"a":1,"a":2}',
        b'[{"x":{"a":1,"b":2,"a":1}}]',
        b'{"a":1,"\\u0061":2}',
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"1e999",
        b"[-1e999]",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'["\\udc00\\ud800"]',
        b"\xef\xbb\xbf{}",
        '{"a":"é"}'.encode("utf-16"),
        '{"a":"é"}'.encode("latin-1"),
        b"\xff",
        b'"\x01"',
        b'"\\x"',
        b'"' * 99999,
    ],
)
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    assert code_of(raw) == "invalid_json"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_deep_nesting_is_refused_without_parsing(opening: bytes) -> None:
    assert code_of(opening * 100_000) == "document_too_deep"
    assert code_of(opening * 100_000, BODY_LIMITS) == "json_too_deep"


def test_the_depth_limit_is_exact() -> None:
    at_limit = b"[" * 64 + b"]" * 64
    assert compact(parse_document(at_limit)) == at_limit
    assert code_of(b"[" + at_limit + b"]") == "document_too_deep"
    in_body = b'{"content":' + b"[" * 199 + b"]" * 199 + b"}"
    assert isinstance(parse_document(in_body, BODY_LIMITS), dict)


def test_the_member_limit_is_exact_and_counts_all_levels() -> None:
    pairs = ",".join(['["x"]'] * 50_000)
    assert len(parse_document(f"[{pairs}]".encode())) == 50_000  # type: ignore[arg-type]
    assert code_of(f"[{pairs},1]".encode()) == "too_many_items"
    empties = ",".join(["[]", "{ }"] * 50_000)
    assert len(parse_document(f"[{empties}]".encode())) == 100_000  # type: ignore[arg-type]
    assert code_of(f"[{empties},[]]".encode()) == "too_many_items"


@pytest.mark.parametrize("filler", ["[" * 1000, "{,[" * 400, '\\"[[' * 300, "\\\\" * 500])
def test_brackets_and_commas_inside_strings_do_not_count(filler: str) -> None:
    raw = f'["{filler}", [["{filler}"]]]'.encode()
    assert compact(parse_document(raw, JsonLimits(3, 4, "document_too_deep")))


def test_edges_of_numbers_are_kept() -> None:
    raw = f"[{MAX_SAFE_INTEGER},{-MAX_SAFE_INTEGER},-0,-0.0,1.0,5e-324,1e300]".encode()
    value = parse_document(raw)
    assert isinstance(value, list)
    assert value[:2] == [MAX_SAFE_INTEGER, -MAX_SAFE_INTEGER]
    assert compact(value[2]) == b"0"
    assert math.copysign(1, value[3]) == 1
    assert compact(value[4]) == b"1.0"
    assert json.loads(compact(value)) == value


def test_compact_keeps_the_senders_order_and_text() -> None:
    raw = b' { "b" : 1 , "a" : [ true , null , "\\u00e9\\ud83d\\ude00" ] } '
    assert compact(parse_document(raw)) == '{"b":1,"a":[true,null,"é😀"]}'.encode()


def test_nul_is_content_like_any_other() -> None:
    assert compact(parse_document(b'"\\u0000"')) == b'"\\u0000"'


def test_content_out_of_a_body_has_its_own_limits() -> None:
    deep: object = 1
    for _ in range(65):
        deep = [deep]
    with pytest.raises(Problem) as caught:
        content_bytes(deep)
    assert caught.value.code == "document_too_deep"
    with pytest.raises(Problem) as caught:
        content_bytes([0] * 100_001)
    assert caught.value.code == "too_many_items"
    assert content_bytes(None) == b"null"


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab.[/~\\"', max_size=3), inner),
    max_leaves=20,
)


@given(documents)
def test_what_is_stored_reads_back_as_what_was_sent(value: object) -> None:
    stored = compact(parse_document(json.dumps(value).encode()))
    assert json.loads(stored) == value
    assert compact(parse_document(stored)) == stored


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0dae1-.nt ', max_size=60).map(str.encode))
def test_any_bytes_parse_or_are_a_problem_of_the_client(raw: bytes) -> None:
    try:
        value = parse_document(raw)
    except Problem as problem:
        refused_with = problem.info.status
    else:
        refused_with = 0
        assert json.loads(compact(value)) == value
    assert refused_with in (0, 400, 422)


@given(documents, st.integers(1, 5), st.integers(1, 8))
def test_the_scan_counts_what_a_walk_counts(value: object, depth: int, members: int) -> None:
    raw = json.dumps(value, indent=1).encode()
    deepest, count = _walk(value)
    limits = JsonLimits(depth, members, "document_too_deep")
    if deepest > depth:
        assert code_of(raw, limits) == "document_too_deep"
    elif count > members:
        assert code_of(raw, limits) == "too_many_items"
    else:
        parse_document(raw, limits)


def _walk(value: object) -> tuple[int, int]:
    if not isinstance(value, dict | list):
        return 0, 0
    inner = list(value.values()) if isinstance(value, dict) else value
    below = [_walk(item) for item in inner]
    return 1 + max((d for d, _ in below), default=0), len(inner) + sum(c for _, c in below)
