"""What a decoded command must look like beyond its types to be storable.

The edge refuses such input long before; this is the last door, so that no bytes in the log can make
the state machine raise. The verdict depends on the command alone.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guardian.fsm.commands import AnyCommand

#: Bytes of UTF-8. The longest key made of them, (project, config key, version), stays well within
#: LMDB's 511.
ID_SIZE: Final = 64
CONFIG_KEY_SIZE: Final = 256
TEXT_SIZE: Final = 1024
DIGEST_SIZE: Final = 32
COMMAND_ID_SIZE: Final = 16
MAX_NUMBER: Final = 2**53 - 1

_REQUIRED_TEXT: Final = {
    "project_id": ID_SIZE,
    "key_id": ID_SIZE,
    "schema_id": ID_SIZE,
    "attempt_id": ID_SIZE,
    "key": CONFIG_KEY_SIZE,
}
_OPTIONAL_TEXT: Final = {"key_name": TEXT_SIZE}
_DIGESTS: Final = frozenset({"key_digest", "body_digest"})
_NUMBERS: Final = frozenset(
    {"expected_version", "schema_version", "to_version", "usage_seen", "limit"}
)


def _fields(
    kind: type[AnyCommand],
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...], tuple[str, ...]]:
    """What to check of a command of that type: texts with their limits, digests, numbers."""
    names = [field.name for field in msgspec.structs.fields(kind)]
    texts = tuple((name, _REQUIRED_TEXT[name]) for name in names if name in _REQUIRED_TEXT)
    digests = tuple(name for name in names if name in _DIGESTS)
    numbers = tuple(name for name in names if name in _NUMBERS)
    known = len(texts) + len(digests) + len(numbers)
    known += sum(name in _OPTIONAL_TEXT or name in ("head", "content") for name in names)
    assert known == len(names), f"{kind.__name__} has a field without a rule"
    return texts, digests, numbers


_RULES: Final = {kind: _fields(kind) for kind in AnyCommand.__args__}


def _is_text(value: str, limit: int, *, required: bool = True) -> bool:
    """No NUL (it joins keys), not too long, and not empty where it names something."""
    if len(value) * 4 > limit and len(value.encode()) > limit:
        return False
    return "\0" not in value and bool(value or not required)


def is_well_formed(command: AnyCommand) -> bool:
    """Whether every field has a size and range that can be stored."""
    head = command.head
    if (
        len(head.command_id) != COMMAND_ID_SIZE
        or not _is_text(head.actor, TEXT_SIZE)
        or not _is_text(head.idempotency_key, TEXT_SIZE, required=False)
        or len(head.fingerprint) > DIGEST_SIZE
    ):
        return False
    texts, digests, numbers = _RULES[type(command)]
    for name, limit in texts:
        if not _is_text(getattr(command, name), limit):
            return False
    for name in digests:
        if len(getattr(command, name)) != DIGEST_SIZE:
            return False
    for name in numbers:
        if not 0 <= getattr(command, name) <= MAX_NUMBER:
            return False
    return _is_text(getattr(command, "key_name", ""), TEXT_SIZE, required=False)
