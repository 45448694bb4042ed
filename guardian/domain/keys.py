"""The rules of names: config keys, projects, schemas, e-mail addresses, passwords.

Each ``check_*`` raises ``Problem("validation_failed")``, or ``Problem("invalid_string")`` for what
a Postgres text can not hold, with the pointer it is given.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from guardian.domain.problems import Fault, Problem

MAX_KEY_CHARS: Final = 256
MAX_NAME_CHARS: Final = 200
MIN_PASSWORD_BYTES: Final = 12
MAX_PASSWORD_BYTES: Final = 256
#: RFC 5321 4.5.3.1: a path is at most 256 octets with its brackets, a local part 64
MAX_EMAIL_CHARS: Final = 254
_MAX_LOCAL_CHARS: Final = 64

_KEY: Final = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The addr-spec of RFC 5322 without comments, quoted strings and address literals; a domain may be
# one label, as in admin@localhost.
_EMAIL: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


def is_config_key(key: str) -> bool:
    """1 to 256 of letters, digits, ``.``, ``_``, ``-``, ``/``; no slash at either end, no empty,
    ``.`` or ``..`` segment."""
    if len(key) > MAX_KEY_CHARS or _KEY.fullmatch(key) is None:
        return False
    return "." not in key or not {".", ".."}.intersection(key.split("/"))


def is_id(text: str) -> bool:
    """Whether it can be one of our ids; anything else is known to name nothing."""
    return _ID.fullmatch(text) is not None


def check_config_key(key: str, pointer: str = "/key") -> None:
    """For a key in a body; in a path an ill-formed key is simply not found."""
    if not is_config_key(key):
        raise _invalid(
            pointer,
            "must be 1 to 256 of letters, digits, '.', '_', '-' and '/', without slashes at the "
            "ends and without empty, '.' or '..' segments",
        )


def check_name(name: str, pointer: str) -> None:
    """A name for people: 1 to 200 characters, none of them a control, no space at the ends."""
    _check_storable(name, pointer)
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise _invalid(pointer, f"must be 1 to {MAX_NAME_CHARS} characters")
    if name != name.strip():
        raise _invalid(pointer, "must not begin or end with space")
    if any(unicodedata.category(char) == "Cc" for char in name):
        raise _invalid(pointer, "must not hold control characters")


def is_email(email: str) -> bool:
    """Whether it has the form of an address; whether mail arrives there is another question."""
    if len(email) > MAX_EMAIL_CHARS or _EMAIL.fullmatch(email) is None:
        return False
    return email.index("@") <= _MAX_LOCAL_CHARS


def check_email(email: str, pointer: str) -> None:
    """See :func:`is_email`."""
    _check_storable(email, pointer)
    if not is_email(email):
        raise _invalid(pointer, "must be an e-mail address")


def normal_email(email: str) -> str:
    """The form under which accounts are found and counted; empty for what is no address."""
    return email.lower() if is_email(email) else ""


def normal_password(password: str) -> str | None:
    """The password as it is hashed (NFC), or None if it can be nobody's."""
    # composed forms are never longer than three times the text, so this bounds the work before it
    if len(password) > 3 * MAX_PASSWORD_BYTES or "\0" in password:
        return None
    normal = unicodedata.normalize("NFC", password)
    try:
        size_bytes = len(normal.encode())
    except UnicodeEncodeError:
        return None
    return normal if MIN_PASSWORD_BYTES <= size_bytes <= MAX_PASSWORD_BYTES else None


def check_password(password: str, pointer: str) -> str:
    """The password as it is hashed: 12 to 256 bytes of UTF-8 after NFC, without NUL."""
    normal = normal_password(password)
    if normal is None:
        limits = f"{MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes"
        raise _invalid(pointer, f"must be {limits} of UTF-8, without NUL")
    return normal


def _check_storable(text: str, pointer: str) -> None:
    """Postgres text holds neither U+0000 nor half of a surrogate pair."""
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        fault = Fault(pointer, "must not hold U+0000 or lone surrogates")
        raise Problem("invalid_string", errors=(fault,))


def _invalid(pointer: str, message: str) -> Problem:
    return Problem("validation_failed", errors=(Fault(pointer, message),))
