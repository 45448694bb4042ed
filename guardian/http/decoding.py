"""From the bytes of a request body to its Struct, strictly, with a pointer to every fault."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

import msgspec

from guardian.domain.documents import JsonLimits, compact, content_bytes, parse_document
from guardian.domain.problems import Fault, Problem
from guardian.http.bodies import Body, Content

B = TypeVar("B", bound=Body)

#: larger bodies are parsed in a thread, so that the event loop keeps its rhythm
INLINE_BYTES: Final = 64 * 1024
MAX_FAULTS: Final = 20
MAX_MESSAGE_CHARS: Final = 200


def escape_pointer(token: str) -> str:
    """One reference token of a JSON Pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds on a body as a whole, and on a document (``Content``) in it."""

    body: JsonLimits
    content: JsonLimits


async def decode_body(raw: bytes, kind: type[B], limits: BodyLimits) -> B:
    """The body of type ``kind`` that ``raw`` holds.

    Raises:
        Problem: ``invalid_json`` or ``json_too_deep`` for bytes that are not acceptable JSON,
            ``unknown_field`` and ``validation_failed`` with pointers from the body's root,
            ``document_too_deep`` and ``too_many_items`` for a document beyond its limits.
    """
    if len(raw) > INLINE_BYTES:
        return await asyncio.to_thread(_decode, raw, kind, limits)
    return _decode(raw, kind, limits)


def _decode(raw: bytes, kind: type[B], limits: BodyLimits) -> B:
    document = parse_document(raw, limits.body)
    if not isinstance(document, dict):
        raise Problem("validation_failed", errors=(Fault("", "must be an object"),))
    fields = _fields(kind)
    unknown = [name for name in document if name not in fields]
    if unknown:
        raise Problem("unknown_field", errors=_faults(unknown, "is not a known member"))
    missing = [name for name, field in fields.items() if field.required and name not in document]
    if missing:
        raise Problem("validation_failed", errors=_faults(missing, "is required"))
    faults: list[Fault] = []
    values: dict[str, Any] = {}
    texts = _texts(raw) if _keeps_texts(kind) else {}
    for name, value in document.items():
        field = fields[name]
        try:
            if field.type == Content:
                values[field.name] = msgspec.Raw(content_bytes(texts[name], limits.content))
            elif field.type is msgspec.Raw:
                values[field.name] = msgspec.Raw(compact(texts[name]))
            else:
                values[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            message = str(error)[:MAX_MESSAGE_CHARS]
            faults.append(Fault("/" + escape_pointer(name), message))
    if faults:
        raise Problem("validation_failed", errors=tuple(faults))
    return kind(**values)


def _texts(raw: bytes) -> dict[str, bytes]:
    """The members of an object that was parsed already, each in the sender's own text."""
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return {name: bytes(text) for name, text in members.items()}


def _faults(names: list[str], message: str) -> tuple[Fault, ...]:
    return tuple(
        Fault("/" + escape_pointer(name[:MAX_MESSAGE_CHARS]), message)
        for name in names[:MAX_FAULTS]
    )


@cache
def _fields(kind: type[Body]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


@cache
def _keeps_texts(kind: type[Body]) -> bool:
    return any(field.type in (Content, msgspec.Raw) for field in _fields(kind).values())


@cache
def needs_nothing(kind: type[Body]) -> bool:
    """Whether every member of the body is optional, so that the body itself is."""
    return not any(field.required for field in _fields(kind).values())
