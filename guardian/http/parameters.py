"""Query parameters and conditional headers, strictly."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web
from msgspec import UnsetType

from guardian.domain.problems import Fault, Problem
from guardian.usecases.executing import Expected, check_idempotency_key

MAX_PARAMETERS: Final = 32

_STRONG_VERSION: Final = re.compile(r'"([1-9][0-9]{0,15})"')
_ETAG: Final = re.compile(r'(?:W/)?"([\x21\x23-\x7e]*)"')
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,15}")
MAX_ETAGS: Final = 64


def invalid_parameter(name: str, message: str) -> Problem:
    return Problem("invalid_parameter", errors=(Fault(f"/{name}", message),))


def parameter(request: web.Request, name: str) -> str | None:
    """The one value of a query parameter.

    Raises:
        Problem: ``invalid_parameter`` when it occurs more than once.
    """
    if not request.query_string:
        return None
    values = request.query.getall(name, ())
    if len(values) > 1:
        raise invalid_parameter(name, "must occur once")
    return values[0] if values else None


def check_query(request: web.Request) -> None:
    """Refuse queries that are out of proportion before anything else looks at them.

    Parameters that mean nothing here are ignored, so that clients may be newer than servers.

    Raises:
        Problem: ``invalid_parameter``.
    """
    if request.query_string.count("&") >= MAX_PARAMETERS:
        raise invalid_parameter("", f"at most {MAX_PARAMETERS} parameters")


def flag(request: web.Request, name: str) -> bool:
    """A parameter that is ``true`` or ``false`` (the default)."""
    value = parameter(request, name)
    if value in (None, "false"):
        return False
    if value != "true":
        raise invalid_parameter(name, "must be true or false")
    return True


def header(request: web.Request, name: str, problem_code: str) -> str | None:
    """The one value of a header; ``problem_code`` when it is repeated."""
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise Problem(problem_code, f"{name} must occur once")
    return values[0] if values else None


def expected_in_query(request: web.Request) -> int | None:
    text = parameter(request, "expected_version")
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) < 1:
        raise invalid_parameter("expected_version", "must be a version, 1 or more")
    return int(text)


def expected_version(request: web.Request, given: int | UnsetType | None) -> Expected:
    """The version a write is based on, from ``If-Match`` and what body or query say.

    ``If-Match`` takes one strong version; ``*``, weak tags and lists do not name a version that
    could be compared. Given both ways, the two must agree, and the precondition counts.

    Raises:
        Problem: ``invalid_etag``, ``malformed_request`` for a contradiction,
            ``precondition_required`` when there is neither.
    """
    if "If-None-Match" in request.headers:
        raise Problem("invalid_etag", "If-None-Match means nothing on this request")
    stated = given if isinstance(given, int) else None
    tag = header(request, "If-Match", "invalid_etag")
    if tag is None:
        if stated is None:
            raise Problem("precondition_required", "Send expected_version or If-Match")
        return Expected(stated)
    match = _STRONG_VERSION.fullmatch(tag.strip())
    if match is None:
        raise Problem("invalid_etag", 'If-Match takes one version: "7"')
    version = int(match[1])
    if stated is not None and stated != version:
        raise Problem("malformed_request", "If-Match and expected_version contradict each other")
    return Expected(version, if_match=True)


def none_match(request: web.Request, version: int) -> bool:
    """Whether ``If-None-Match`` names ``version``, so that 304 is the answer (RFC 9110, 13.1.2).

    Raises:
        Problem: ``invalid_etag`` for what is not a list of entity tags.
    """
    values = request.headers.getall("If-None-Match", ())
    if not values:
        return False
    text = ",".join(values).strip()
    if text == "*":
        return True
    tags = [part.strip() for part in text.split(",", MAX_ETAGS) if part.strip()]
    opaque = []
    for tag in tags:
        match = _ETAG.fullmatch(tag)
        if match is None or len(tags) > MAX_ETAGS:
            raise Problem("invalid_etag", 'If-None-Match takes entity tags: "7"')
        opaque.append(match[1])
    return str(version) in opaque


def idempotency_key(request: web.Request) -> str:
    """The ``Idempotency-Key``, or empty when there is none.

    Raises:
        Problem: ``invalid_idempotency_key`` when it is there but empty, too long or repeated.
    """
    key = header(request, "Idempotency-Key", "invalid_idempotency_key")
    if key is None:
        return ""
    check_idempotency_key(key)
    return key


def accepts_json(accept: str | None) -> bool:
    """Whether an Accept header lets us answer with JSON."""
    if accept is None or not accept.strip():
        return True
    for part in accept.split(","):
        media, *rest = (piece.strip().lower() for piece in part.split(";"))
        if media in _JSON_RANGES and not any(_ZERO_QUALITY.fullmatch(piece) for piece in rest):
            return True
    return False


_JSON_RANGES: Final = frozenset(
    {"*/*", "application/*", "application/json", "application/problem+json"}
)
_ZERO_QUALITY: Final = re.compile(r"q\s*=\s*0(\.0{0,3})?")
