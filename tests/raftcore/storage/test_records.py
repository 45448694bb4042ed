"""Sealed records tell damaged from newer."""

from __future__ import annotations

import zlib

import pytest

from raftcore.errors import FormatTooNewError
from raftcore.storage.records import (
    FORMAT_VERSION,
    RecordError,
    check_format,
    seal,
    stamp,
    unseal,
)


def test_golden_bytes() -> None:
    """These bytes are on disks: a change here needs a new format version."""
    assert seal({"b": 1, "a": "x"}) == b'{"a":"x","b":1}\n1ffe9fd7\n'


def test_a_record_comes_back() -> None:
    assert unseal(seal({"x": [1, None, "line\nbreak"]})) == {"x": [1, None, "line\nbreak"]}


def test_every_single_bit_flip_is_found() -> None:
    raw = seal(stamp({"x": 1}))
    for position in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(RecordError):
            unseal(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 5, -1])
def test_a_cut_record_is_found(length: int) -> None:
    with pytest.raises(RecordError):
        unseal(seal({"x": 1})[:length])


@pytest.mark.parametrize(
    ("text", "message"), [(b"nonsense", "not JSON"), (b"[1]", "not an object")]
)
def test_what_is_not_a_json_object_is_no_record(text: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        unseal(b"%b\n%08x\n" % (text, zlib.crc32(text)))


def test_a_newer_record_is_refused_only_if_it_needs_a_newer_reader() -> None:
    check_format({"format_version": FORMAT_VERSION + 5, "min_reader_version": FORMAT_VERSION}, "x")
    with pytest.raises(FormatTooNewError):
        check_format({"format_version": 2, "min_reader_version": FORMAT_VERSION + 1}, "x")
    with pytest.raises(RecordError):
        check_format({}, "x")
