"""What is wrong with a document, and where: RFC 6901 pointers and short messages.

Messages never quote the document: it may hold secrets, and problem documents end up in logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from guardian.adapters.schemas.guard import escaped

if TYPE_CHECKING:
    import jsonschema_rs

MAX_FAULTS: Final = 100
_MAX_MESSAGE_CHARS: Final = 200

#: messages by the keyword that failed; ``value`` is what the keyword holds in the schema, or, for
#: the first three, what is amiss
_MESSAGES: Final[dict[str, Callable[[Any], str]]] = {
    "required": lambda value: f"must have the member {value!r}",
    "additionalProperties": lambda value: f"has members that are not allowed: {_listed(value)}",
    "unevaluatedProperties": lambda value: f"has members that are not allowed: {_listed(value)}",
    "type": lambda value: f"must be {' or '.join(value)}",
    "enum": lambda value: "must be one of the listed values",
    "const": lambda value: "must be the one value that is allowed",
    "minimum": lambda value: f"must be at least {value}",
    "maximum": lambda value: f"must be at most {value}",
    "exclusiveMinimum": lambda value: f"must be above {value}",
    "exclusiveMaximum": lambda value: f"must be below {value}",
    "multipleOf": lambda value: f"must be a multiple of {value}",
    "minLength": lambda value: f"must have at least {value} characters",
    "maxLength": lambda value: f"must have at most {value} characters",
    "minItems": lambda value: f"must have at least {value} items",
    "maxItems": lambda value: f"must have at most {value} items",
    "minProperties": lambda value: f"must have at least {value} members",
    "maxProperties": lambda value: f"must have at most {value} members",
    "pattern": lambda value: f"must match the pattern {value!r}",
    "format": lambda value: f"must be a valid {value}",
    "uniqueItems": lambda value: "must not have an item twice",
    "contains": lambda value: "must contain an item that fits 'contains'",
    "anyOf": lambda value: "must fit at least one of the alternatives of 'anyOf'",
    "oneOf": lambda value: "must fit exactly one of the alternatives of 'oneOf'",
    "not": lambda value: "must not fit the schema of 'not'",
    "falseSchema": lambda value: "is not allowed here",
    "propertyNames": lambda value: "has a member whose name is not allowed",
}


def listed(errors: Iterator[jsonschema_rs.ValidationError]) -> tuple[tuple[str, str], ...]:
    """Up to 100 faults as (pointer, message)."""
    return tuple(
        (pointer_of(error.instance_path), message_of(error.kind.name, error.kind.value))
        for error in islice(errors, MAX_FAULTS)
    )


def pointer_of(path: list[str | int]) -> str:
    """The pointer with those reference tokens."""
    return "".join(f"/{escaped(str(token))}" for token in path)


def message_of(keyword: str, value: object) -> str:
    """One line on the keyword that failed."""
    known = _MESSAGES.get(keyword)
    text = f"does not satisfy {keyword!r}" if known is None else known(value)
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[: _MAX_MESSAGE_CHARS - 1] + "…"


def pointer_of_name(name: str, document: object) -> str:
    """The pointer for fastjsonschema's dotted name, such as ``data.rates[0]``.

    The name alone is ambiguous, as keys may hold dots and brackets; the document decides. The
    deepest place that can be found is given.
    """
    path: list[str | int] = []
    rest = name.removeprefix("data")
    node = document
    while rest:
        step = _step(rest, node)
        if step is None:
            break
        token, rest = step
        path.append(token)
        node = node[token]  # type: ignore[index]  # _step found it there
    return pointer_of(path)


def _step(rest: str, node: object) -> tuple[str | int, str] | None:
    if isinstance(node, dict) and rest.startswith("."):
        keys = [key for key in node if rest.startswith("." + key)]
        # the longest that ends where another step, or nothing, begins
        for key in sorted(keys, key=len, reverse=True):
            after = rest[1 + len(key) :]
            if after[:1] in ("", ".", "["):
                return key, after
    if isinstance(node, list) and rest.startswith("["):
        digits, bracket, after = rest[1:].partition("]")
        if bracket and digits.isdigit() and int(digits) < len(node):
            return int(digits), after
    return None


def _listed(names: list[object]) -> str:
    return ", ".join(repr(name) for name in names[:10])
