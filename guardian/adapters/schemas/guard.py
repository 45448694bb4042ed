"""What a schema must be like before any compiler sees it.

The compilers are no boundary: they fetch remote references, recurse on depth, take minutes on width
and silently ignore keywords of drafts that they do not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from guardian.adapters.schemas.draft import DEFAULT_DRAFT, Draft
from guardian.adapters.schemas.loops import escaped, reference_loop
from guardian.domain.documents import JsonLimits, check_limits, parse_document
from guardian.domain.problems import Fault, Problem

#: below this a quotient overflows for numbers that documents may hold
_MIN_MULTIPLE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """How large a schema may be.

    Args:
        size_bytes: of its text.
        nodes: values in arrays and objects, all levels together.
        depth: levels of arrays and objects.
    """

    size_bytes: int = 1 << 20
    nodes: int = 10_000
    depth: int = 64


DEFAULT_LIMITS: Final = SchemaLimits()


_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")


@dataclass(frozen=True, slots=True)
class GuardedSchema:
    """A schema within the limits, ``$schema`` filled in, without references out of itself."""

    draft: Draft
    schema: dict[str, object] | bool
    patterns: tuple[str, ...]


def guard(body: bytes, limits: SchemaLimits = DEFAULT_LIMITS) -> GuardedSchema:
    """Parse and check a schema.

    Raises:
        Problem: ``schema_too_complex`` beyond the limits, ``unsupported_draft``,
            ``remote_ref_forbidden`` with the pointers, ``invalid_schema`` for what is no schema.
    """
    check_size(body, limits)
    json_limits = JsonLimits(limits.depth, limits.nodes, too_deep="schema_too_complex")
    try:
        check_limits(body, json_limits)
    except Problem as problem:
        raise Problem("schema_too_complex", problem.detail) from None
    schema = parse_document(body, json_limits)
    if isinstance(schema, bool):
        return GuardedSchema(DEFAULT_DRAFT, schema, ())
    if not isinstance(schema, dict):
        raise invalid("", "a schema is an object or a boolean")
    draft = _draft_of(schema)
    patterns: set[str] = set()
    remote: list[Fault] = []
    for pointer, node in _objects(schema):
        remote += _remote_references(pointer, node)
        patterns.update(_patterns(node))
        _check_multiple(pointer, node)
    if remote:
        raise Problem("remote_ref_forbidden", errors=tuple(remote[:100]))
    loop = reference_loop(schema, draft)
    if loop is not None:
        raise invalid(loop, "leads back to itself without going into the document")
    schema["$schema"] = draft.value + ("#" if draft.is_classic else "")
    return GuardedSchema(draft, schema, tuple(sorted(patterns)))


def check_size(body: bytes, limits: SchemaLimits = DEFAULT_LIMITS) -> None:
    """Raises ``Problem("schema_too_complex")`` for a body beyond the limit."""
    if len(body) > limits.size_bytes:
        raise Problem("schema_too_complex", f"Larger than {limits.size_bytes} bytes")


def invalid(pointer: str, message: str) -> Problem:
    """``invalid_schema`` at a pointer into the schema."""
    return Problem("invalid_schema", errors=(Fault(pointer, message),))


def _draft_of(schema: dict[str, object]) -> Draft:
    uri = schema.get("$schema", DEFAULT_DRAFT.value)
    if not isinstance(uri, str):
        raise invalid("/$schema", "must be the URI of a draft")
    try:
        return Draft(uri.removesuffix("#"))
    except ValueError:
        raise Problem(
            "unsupported_draft", errors=(Fault("/$schema", "must be draft 4 to 2020-12"),)
        ) from None


def _objects(root: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Every object in the schema with its pointer, also where it is data and no schema: the
    compilers' own walks do not tell the two apart either."""
    stack: list[tuple[str, object]] = [("", root)]
    while stack:
        pointer, node = stack.pop()
        if isinstance(node, dict):
            yield pointer, node
            stack += [(f"{pointer}/{escaped(name)}", value) for name, value in node.items()]
        elif isinstance(node, list):
            stack += [(f"{pointer}/{index}", value) for index, value in enumerate(node)]


def _remote_references(pointer: str, node: dict[str, object]) -> Iterator[Fault]:
    for name in _REFERENCES:
        target = node.get(name)
        if isinstance(target, str) and not target.startswith("#"):
            yield Fault(f"{pointer}/{name}", "must begin with '#'")


def _patterns(node: dict[str, object]) -> Iterator[str]:
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        yield pattern
    by_pattern = node.get("patternProperties")
    if isinstance(by_pattern, dict):
        yield from by_pattern


def _check_multiple(pointer: str, node: dict[str, object]) -> None:
    divisor = node.get("multipleOf")
    if isinstance(divisor, int | float) and 0 < divisor < _MIN_MULTIPLE:
        raise invalid(f"{pointer}/multipleOf", f"must not be below {_MIN_MULTIPLE}")
