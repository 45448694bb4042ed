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
    assert isinstance(parse_document(at_limit), list)
    assert compact(at_limit) == at_limit
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
    assert parse_document(raw, JsonLimits(3, 4, "document_too_deep")) == json.loads(raw)


@pytest.mark.parametrize(
    "number",
    [
        *("9007199254740991", "-9007199254740991", "9007199254740991.0", "9007199254740990.999"),
        *("123456789012345678.5", "1.00000000000000000000000000001", "5e-324", "1e15", "1.50"),
        *("1E2", "1e2", "1e-0", "10E+0", "1.0", "-0.0", "0e0", "-0e-0", "0.000"),
    ],
)
def test_a_number_keeps_the_senders_text(number: str) -> None:
    raw = f' [ {number} , {{ "-0" : {number} }} ]\r\n'.encode()
    assert parse_document(raw) == json.loads(raw)
    assert compact(raw) == f'[{number},{{"-0":{number}}}]'.encode()


def test_the_integer_minus_zero_becomes_zero() -> None:
    raw = b'[-0, -0.5, -0e1, 1e-0, "-0", -0 ,"\\"-0"]'
    assert compact(raw) == b'[0,-0.5,-0e1,1e-0,"-0",0,"\\"-0"]'
    assert compact(b"-0") == b"0"
    value = parse_document(b"-0.0")
    assert isinstance(value, float)
    assert math.copysign(1, value) == 1


@pytest.mark.parametrize(
    ("number", "detail"),
    [
        *(
            (text, "An integer is beyond 2^53-1")
            for text in (
                "9007199254740993.0 9007199254740992e0 -9007199254740992.000 1e20 -1E+16 1e300 "
                "9007199254740993" + "0" * 400 + "e-400"
            ).split()
        ),
        *((text, "A number is too large") for text in ("1e309", "-1e999", "1.8e308")),
        *(
            (text, "A number is too close to 0")
            for text in ("1e-400", "-1e-999999999999999999999", "0.1e-330", "0." + "0" * 400 + "1")
        ),
    ],
)
def test_a_number_that_others_would_change_is_refused(number: str, detail: str) -> None:
    for raw in (number.encode(), f'{{"a":[{number}]}}'.encode()):
        with pytest.raises(Problem) as caught:
            parse_document(raw)
        assert (caught.value.code, caught.value.detail) == ("invalid_json", detail)


def test_compact_keeps_the_senders_order_and_text() -> None:
    raw = b' { "b" : 1 , "a b" : [ true , null , "\\u00e9 \\" \\\\" ] } '
    assert compact(raw) == b'{"b":1,"a b":[true,null,"\\u00e9 \\" \\\\"]}'


def test_nul_is_content_like_any_other() -> None:
    assert parse_document(b'"\\u0000"') == "\0"
    assert compact(b'"\\u0000"') == b'"\\u0000"'


def test_content_out_of_a_body_has_its_own_limits() -> None:
    with pytest.raises(Problem) as caught:
        content_bytes(b"[" * 65 + b"]" * 65)
    assert caught.value.code == "document_too_deep"
    with pytest.raises(Problem) as caught:
        content_bytes(b"[" + b"0," * 100_000 + b"0]")
    assert caught.value.code == "too_many_items"
    assert content_bytes(b" null\n") == b"null"


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab.[/~\\"', max_size=3), inner),
    max_leaves=20,
)


#: numbers as people and machines write them
number_texts = st.from_regex(
    r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,25})?([eE][+-]?[0-2])?", fullmatch=True
).filter(lambda text: text != "-0" and abs(float(text)) <= MAX_SAFE_INTEGER)
spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def spaced_texts(draw: st.DrawFn) -> tuple[str, str]:
    """A JSON text with white space between its tokens, and without."""
    numbers: list[str] = []

    def written(value: object) -> str:
        if isinstance(value, float):
            numbers.append(draw(number_texts))
            return numbers[-1]
        if isinstance(value, str):
            return json.dumps(value, ensure_ascii=draw(st.booleans()))
        if isinstance(value, list):
            return "[\0" + "\0,\0".join(map(written, value)) + "\0]"
        if isinstance(value, dict):
            members = (f"{written(name)}\0:\0{written(item)}" for name, item in value.items())
            return "{\0" + "\0,\0".join(members) + "\0}"
        return json.dumps(value)

    text = "\0" + written(draw(documents)) + "\0"  # JSON texts hold no NUL
    pieces = text.split("\0")
    return "".join(piece + draw(spaces) for piece in pieces), "".join(pieces)


@given(spaced_texts())
def test_what_is_stored_is_what_was_sent_without_white_space(texts: tuple[str, str]) -> None:
    sent, bare = (text.encode() for text in texts)
    value = parse_document(sent)
    stored = compact(sent)
    assert stored == bare
    assert json.loads(stored) == json.loads(sent) == value
    assert compact(stored) == stored


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0dae1-.nt ', max_size=60).map(str.encode))
def test_any_bytes_parse_or_are_a_problem_of_the_client(raw: bytes) -> None:
    try:
        value = parse_document(raw)
    except Problem as problem:
        refused_with = problem.info.status
    else:
        refused_with = 0
        assert json.loads(compact(raw)) == value
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
