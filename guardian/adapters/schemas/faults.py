"""What is wrong with a document, and where: RFC 6901 pointers and short messages.

Messages never quote the document: it may hold secrets, and problem documents end up in logs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from guardian.adapters.schemas.loops import escaped

if TYPE_CHECKING:
    import jsonschema_rs

_Path: TypeAlias = list[str | int]

MAX_FAULTS: Final = 100
_MAX_MESSAGE_CHARS: Final = 200
_MISSING: Final = object()

#: messages by the keyword that failed; the value is what the keyword holds in the schema or, for
#: the first two, the members that are amiss
_MESSAGES: Final = {
    "required": "must have the member {value!r}",
    "additionalProperties": "has members that are not allowed: {value}",
    "unevaluatedProperties": "has members that are not allowed: {value}",
    "type": "must be {value}",
    "enum": "must be one of the listed values",
    "const": "must be the one value that is allowed",
    "minimum": "must be at least {value}",
    "maximum": "must be at most {value}",
    "exclusiveMinimum": "must be above {value}",
    "exclusiveMaximum": "must be below {value}",
    "multipleOf": "must be a multiple of {value}",
    "minLength": "must have at least {value} characters",
    "maxLength": "must have at most {value} characters",
    "minItems": "must have at least {value} items",
    "maxItems": "must have at most {value} items",
    "minProperties": "must have at least {value} members",
    "maxProperties": "must have at most {value} members",
    "pattern": "must match the pattern {value!r}",
    "format": "must be a valid {value}",
    "uniqueItems": "must not have an item twice",
    "contains": "must contain an item that fits 'contains'",
    "anyOf": "must fit at least one of the alternatives of 'anyOf'",
    "oneOf": "must fit exactly one of the alternatives of 'oneOf'",
    "oneOfMultipleValid": "must fit exactly one of the alternatives of 'oneOf'",
    "oneOfNotValid": "must fit exactly one of the alternatives of 'oneOf'",
    "not": "must not fit the schema of 'not'",
    "falseSchema": "is not allowed here",
    "propertyNames": "has a member whose name is not allowed",
}


def listed(
    errors: Iterator[jsonschema_rs.ValidationError], document: object, raw: bytes
) -> tuple[tuple[str, str], ...]:
    """Up to 100 faults of the document (as value and as text), each once: (pointer, message)."""
    has_empty_keys = b'""' in raw
    found: dict[tuple[str, str], None] = {}  # alternatives of a schema may find the same fault
    for error in islice(errors, MAX_FAULTS):
        path = error.instance_path
        if has_empty_keys:
            path = _with_empty_keys(path, document, error.instance) or path
        found[pointer_of(path), message_of(error.kind.name, error.kind.value)] = None
    return tuple(found)


def pointer_of(path: _Path) -> str:
    """The pointer with those reference tokens."""
    return "".join(f"/{escaped(str(token))}" for token in path)


def message_of(keyword: str, value: object) -> str:
    """One line on the keyword that failed."""
    template = _MESSAGES.get(keyword, f"does not satisfy {keyword!r}")
    shown = ", ".join(str(item) for item in value[:10]) if isinstance(value, list) else value
    text = template.format(value=shown)
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[: _MAX_MESSAGE_CHARS - 1] + "…"


def pointer_of_name(name: str, document: object) -> str:
    """The pointer for fastjsonschema's dotted name, such as ``data.rates[0]``.

    The name alone is ambiguous, as keys may hold dots and brackets; the document decides. The
    deepest place that can be found is given.
    """
    return pointer_of(_resolved(name.removeprefix("data"), document)[0])


def _resolved(rest: str, node: object) -> tuple[_Path, int]:
    """The path that explains most of ``rest``, and how many characters it leaves over."""
    best: tuple[_Path, int] = [], len(rest)
    for token, value, after in _steps(rest, node):
        path, left = _resolved(after, value)
        if left < best[1]:
            best = [token, *path], left
    return best


def _steps(rest: str, node: object) -> Iterator[tuple[str | int, object, str]]:
    if isinstance(node, dict) and rest.startswith("."):
        for key, value in node.items():
            after = rest[1 + len(key) :]
            if rest.startswith(key, 1) and after[:1] in ("", ".", "["):
                yield key, value, after
    elif isinstance(node, list) and rest.startswith("["):
        digits, bracket, after = rest[1:].partition("]")
        if bracket and digits.isdecimal() and int(digits) < len(node):
            yield int(digits), node[int(digits)], after


def _with_empty_keys(path: _Path, node: object, target: object) -> _Path | None:
    """The path to ``target`` with the empty keys that jsonschema-rs leaves out of its paths."""
    if path:
        token, value = path[0], _MISSING
        if isinstance(node, dict):
            token = str(token)
            value = node.get(token, _MISSING)
        elif isinstance(node, list) and isinstance(token, int) and token < len(node):
            value = node[token]
        if value is not _MISSING:
            rest = _with_empty_keys(path[1:], value, target)
            if rest is not None:
                return [token, *rest]
    elif node == target:
        return []
    if isinstance(node, dict) and "" in node:
        rest = _with_empty_keys(path, node[""], target)
        return None if rest is None else ["", *rest]
    return None
