"""Cursors of lists: the last position of a page, in text that is safe in a URL.

A cursor holds a position, not an offset, so it is valid on any node and does not shift when items
come and go. It is bound to the list it came from by a checksum. The checksum is no secret and needs
to be none: a position grants nothing, as every page is subject to the same rights as the first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final, TypeVar

from guardian.domain.problems import Problem

P = TypeVar("P", str, int)

_FORMAT: Final = b"\x01"
_CHECKSUM_BYTES: Final = 8
#: well above the longest position (a config key of 256 characters)
_MAX_CHARS: Final = 1024
_TEXT: Final = re.compile(r"[A-Za-z0-9_-]+")


def encode_cursor(scope: str, position: str | int) -> str:
    """The cursor that goes on after ``position`` in the list named ``scope``."""
    kind, text = ("i", str(position)) if isinstance(position, int) else ("s", position)
    payload = _FORMAT + kind.encode() + text.encode()
    return base64.urlsafe_b64encode(_checksum(scope, payload) + payload).rstrip(b"=").decode()


def decode_cursor(scope: str, cursor: str, kind: type[P]) -> P:
    """The position in ``cursor``.

    Raises:
        Problem: ``invalid_cursor`` if it is not a cursor of that list.
    """
    if len(cursor) > _MAX_CHARS or _TEXT.fullmatch(cursor) is None:
        raise Problem("invalid_cursor")
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except binascii.Error:
        raise Problem("invalid_cursor") from None
    payload = raw[_CHECKSUM_BYTES:]
    if raw[:_CHECKSUM_BYTES] != _checksum(scope, payload):
        raise Problem("invalid_cursor")
    if payload[:2] != _FORMAT + (b"i" if kind is int else b"s"):
        raise Problem("invalid_cursor")
    # the rest is as it was encoded, or the checksum were another; a forger gets no further
    try:
        return kind(payload[2:].decode())
    except ValueError:
        raise Problem("invalid_cursor") from None


def _checksum(scope: str, payload: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES, person=b"guardian cursor")
    digest.update(len(scope).to_bytes(4, "big") + scope.encode() + payload)
    return digest.digest()
