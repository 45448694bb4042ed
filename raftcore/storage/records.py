"""Small sealed records: a JSON object with its own checksum and format version.

IDENTITY, FOUNDING, the marker and every record of the log's ``meta`` table are such records. The
envelope never changes, so that any release can tell a *newer* record from a *damaged* one.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from raftcore.errors import FormatTooNewError

#: The newest format that this release understands. Each kind of record says for itself which one it
#: is written in, and which reader it needs at least: what has not changed keeps the bytes that an
#: older release gave it.
FORMAT_VERSION = 2
FIRST_FORMAT_VERSION = 1


class RecordError(ValueError):
    """The bytes are not a sealed record; the caller knows what that means there."""


def seal(body: dict[str, Any]) -> bytes:
    """Canonical bytes of ``body``: compact JSON with sorted keys, then a line with its CRC-32."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return b"%b\n%08x\n" % (text, zlib.crc32(text))


def unseal(raw: bytes) -> dict[str, Any]:
    """The body of a sealed record.

    Raises:
        RecordError: wrong shape or wrong checksum.
    """
    text, _, tail = raw.partition(b"\n")
    if tail != b"%08x\n" % zlib.crc32(text):
        raise RecordError("checksum does not match")
    try:
        body = json.loads(text)
    except ValueError as error:
        raise RecordError("not JSON") from error
    if not isinstance(body, dict):
        raise RecordError("not an object")
    return body


def stamp(
    body: dict[str, Any],
    version: int = FIRST_FORMAT_VERSION,
    min_reader: int = FIRST_FORMAT_VERSION,
) -> dict[str, Any]:
    """``body`` with the format it is written in and the oldest reader that understands it."""
    return {"format_version": version, "min_reader_version": min_reader, **body}


def check_format(body: dict[str, Any], what: str) -> None:
    """Refuse what a newer release wrote and says this one cannot read.

    Raises:
        FormatTooNewError: ``min_reader_version`` is above this release's format.
        RecordError: the record carries no versions.
    """
    try:
        written, reader = int(body["format_version"]), int(body["min_reader_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError("no format version") from error
    if reader > FORMAT_VERSION:
        raise FormatTooNewError(
            f"{what} has format {written} and needs a reader of {reader}; this is {FORMAT_VERSION}"
        )
