"""API keys: what they look like, and what is kept of them.

``cfg_``, 30 random base62 characters (178 bits), then the CRC-32 of those in 6 base62 characters.
The checksum lets a mistyped or invented key be refused without asking anything, and lets scanners
of leaked secrets be sure. A key has too much entropy to guess, so a plain SHA-256 is kept of it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from zlib import crc32

PREFIX = "cfg_"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_CHARS = 30
_CHECK_CHARS = 6
_SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM_CHARS + _CHECK_CHARS}}}", re.ASCII)


class ApiKeys:
    """:class:`guardian.usecases.ports.ApiKeyCodec`."""

    def generate(self) -> tuple[str, bytes]:
        """A new key: its text, to be shown once, and the digest to keep."""
        body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARS))
        text = PREFIX + body + _checksum(body)
        return text, self.digest(text)

    def well_formed(self, text: str) -> bool:
        """Whether shape and checksum are right. No I/O."""
        if _SHAPE.fullmatch(text) is None:
            return False
        body, check = text[len(PREFIX) : -_CHECK_CHARS], text[-_CHECK_CHARS:]
        return check == _checksum(body)

    def digest(self, text: str) -> bytes:
        """SHA-256 of the text. A look-up by digest leaks no more time than a hash's prefix tells,
        which is nothing about the key."""
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _checksum(body: str) -> str:
    value = crc32(body.encode("ascii"))
    digits = []
    for _ in range(_CHECK_CHARS):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
