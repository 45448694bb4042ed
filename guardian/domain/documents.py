"""Strict JSON (I-JSON, RFC 7493): what is accepted, and the bytes that are kept of it.

The standard library's parser is lenient where a service must not be: it keeps the last of duplicate
keys, turns ``1e999`` into infinity, accepts ``NaN`` and lone surrogates, and overflows its stack on
deep nesting. Everything here is decided before or while parsing, in time linear in the input.

What is kept is the sender's own text without the white space between its tokens: every number and
every string is stored, hashed and served in the very characters it was sent in. Values are parsed
to be checked, never to be written again, as no number type would give all texts back.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NoReturn

import msgspec

from guardian.domain.problems import Problem

#: integers beyond this are not exact everywhere (RFC 7493 2.2)
MAX_SAFE_INTEGER: Final = 2**53 - 1
_MAX_INTEGER_CHARS: Final = len(str(-MAX_SAFE_INTEGER))


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """How large a JSON text may be.

    Args:
        depth: levels of arrays and objects.
        members: values in arrays and objects, all levels together.
        too_deep: the problem code when ``depth`` is exceeded.
    """

    depth: int
    members: int
    too_deep: str


#: a document that is stored
CONTENT_LIMITS: Final = JsonLimits(depth=64, members=100_000, too_deep="document_too_deep")
#: a request body, which holds a document and a few members of its own
BODY_LIMITS: Final = JsonLimits(depth=200, members=100_100, too_deep="json_too_deep")

_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
#: splits a text into what is outside strings and, in between, the strings
_STRINGS: Final = re.compile(b"(" + _STRING.pattern + b")", re.DOTALL)
_SPACE: Final = b" \t\n\r"
#: the integer, not the exponent of 1e-0
_MINUS_ZERO: Final = re.compile(rb"(?<![eE])-0(?![.0-9eE])")
_ZERO: Final = re.compile(r"-?[0.]+(?:[eE].*)?")
_EMPTY: Final = re.compile(rb"\[\s*\]|\{\s*\}")
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def parse_document(raw: bytes, limits: JsonLimits = CONTENT_LIMITS) -> object:
    """The JSON value of ``raw``.

    Raises:
        Problem: ``invalid_json`` for anything but one JSON value in UTF-8 without duplicate keys,
            NaN, infinities, lone surrogates, integers beyond 2^53-1 (however they are written) or
            numbers that a double can not tell from 0 or infinity; ``limits.too_deep``;
            ``too_many_items``.
    """
    check_limits(raw, limits)
    try:
        value = _decoder.decode(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise Problem("invalid_json", "The text is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem("invalid_json", f"The text is not JSON at {where}") from None
    if _SURROGATE_ESCAPE.search(raw):
        _check_surrogates(value)
    return value


def compact(raw: bytes) -> bytes:
    """The text without white space between its tokens; ``-0`` becomes ``0``, nothing else changes.

    Args:
        raw: a text that :func:`parse_document` accepts.
    """
    # strings are at odd places
    parts = _STRINGS.split(raw) if b"\\" in raw else raw.split(b'"')
    parts[::2] = [part.translate(None, _SPACE) for part in parts[::2]]
    if b"-0" in raw:
        parts[::2] = [_MINUS_ZERO.sub(b"0", part) for part in parts[::2]]
    return (b"" if b"\\" in raw else b'"').join(parts)


def content_bytes(raw: bytes, limits: JsonLimits = CONTENT_LIMITS) -> bytes:
    """The bytes to store for a document that came as a member of a body that was parsed.

    Raises:
        Problem: ``limits.too_deep`` or ``too_many_items``.
    """
    check_limits(raw, limits)
    return compact(raw)


def check_limits(raw: bytes, limits: JsonLimits) -> None:
    """Refuse a text that is too deep or too wide, without parsing it.

    Raises:
        Problem: ``limits.too_deep`` or ``too_many_items``; nothing for a text that is not JSON.
    """
    opened = raw.count(b"[") + raw.count(b"{")
    if opened <= limits.depth and opened + raw.count(b",") <= limits.members:
        return  # an upper bound, as brackets inside strings count too
    bare = _without_strings(raw)
    if depth_of(bare) > limits.depth:
        raise Problem(limits.too_deep, f"Nested deeper than {limits.depth} levels")
    # every container that is not empty holds one value more than it has commas
    filled = bare.count(b"[") + bare.count(b"{") - len(_EMPTY.findall(bare))
    if bare.count(b",") + filled > limits.members:
        raise Problem("too_many_items", f"More than {limits.members} members")


def _without_strings(raw: bytes) -> bytes:
    """The text with a digit in place of each string."""
    if b"\\" not in raw:
        return b"0".join(raw.split(b'"')[::2])  # four times as fast
    return _STRING.sub(b"0", raw)


def depth_of(bare: bytes) -> int:
    """Levels of nesting of a JSON text from which the strings have been taken out."""
    depth = deepest = 0
    for byte in bare.translate(None, _NOT_BRACKETS):
        if byte in b"[{":
            depth += 1
            deepest = max(depth, deepest)
        else:
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Problem("invalid_json", "An object names a member twice")
    return members


def _integer(text: str) -> int:
    if len(text) <= _MAX_INTEGER_CHARS:
        number = int(text)
        if -MAX_SAFE_INTEGER <= number <= MAX_SAFE_INTEGER:
            return number
    raise Problem("invalid_json", "An integer is beyond 2^53-1")


def _float(text: str) -> float:
    number = float(text)
    if number == 0.0:
        if _ZERO.fullmatch(text) is None:
            raise Problem("invalid_json", "A number is too close to 0")
        return 0.0  # the same zero, whatever its sign
    if abs(number) > MAX_SAFE_INTEGER:
        if math.isinf(number):
            raise Problem("invalid_json", "A number is too large")
        exact = Decimal(text)  # every double of this size is whole; the text may not be
        if exact == exact.to_integral_value():
            raise Problem("invalid_json", "An integer is beyond 2^53-1")
    return number


def _check_surrogates(value: object) -> None:
    """Raises ``Problem("invalid_json")`` for a lone surrogate in a string."""
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise Problem("invalid_json", "A string holds half of a surrogate pair") from None


def _constant(name: str) -> NoReturn:
    raise Problem("invalid_json", f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)
