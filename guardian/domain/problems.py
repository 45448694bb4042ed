"""Everything that can be wrong with a request, in one table.

Handlers, documentation and the OpenAPI document are made from :data:`CODES`; nothing else in
Guardian decides a status. 4xx and 503 promise that the request changed nothing and never will;
504 ``outcome_unknown`` is the only answer for "it may still happen".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What a code means to a client.

    ``retry`` tells whether sending the very same request again can be right: ``"no"`` (it will be
    refused again), ``"later"`` (after ``Retry-After``), ``"with_key"`` (only with the same
    Idempotency-Key, because the first try may have taken effect), ``"fresh"`` (after reading
    again).
    """

    status: int
    title: str
    retry: str


CODES: Final[dict[str, CodeInfo]] = {
    # 400
    "invalid_json": CodeInfo(400, "The body is not acceptable JSON", "no"),
    "json_too_deep": CodeInfo(400, "The body is nested too deeply", "no"),
    "malformed_request": CodeInfo(400, "The request is malformed", "no"),
    "invalid_etag": CodeInfo(400, "If-Match or If-None-Match is not a version", "no"),
    "invalid_cursor": CodeInfo(400, "The cursor is not one of ours", "no"),
    "invalid_idempotency_key": CodeInfo(400, "The Idempotency-Key is not acceptable", "no"),
    # 401
    "unauthenticated": CodeInfo(401, "Credentials are missing", "no"),
    "invalid_token": CodeInfo(401, "The token is not valid", "no"),
    "token_expired": CodeInfo(401, "The token has expired", "no"),
    "invalid_credentials": CodeInfo(401, "E-mail or password is wrong", "no"),
    "refresh_reused": CodeInfo(401, "The refresh token was used before", "no"),
    "invalid_api_key": CodeInfo(401, "The API key is not valid", "no"),
    # 403
    "forbidden": CodeInfo(403, "The right for this is missing", "no"),
    "registration_closed": CodeInfo(403, "Registration is closed", "no"),
    # 404, 405, 406
    "not_found": CodeInfo(404, "There is no such thing, or not for you", "no"),
    "method_not_allowed": CodeInfo(405, "The method is not allowed here", "no"),
    "not_acceptable": CodeInfo(406, "No acceptable representation", "no"),
    # 408, 409
    "request_timeout": CodeInfo(408, "The request did not arrive in time", "later"),
    "version_conflict": CodeInfo(409, "The version is not the current one", "fresh"),
    "already_exists": CodeInfo(409, "It exists already", "no"),
    "email_taken": CodeInfo(409, "The e-mail address is taken", "no"),
    "owns_projects": CodeInfo(409, "The user owns projects", "no"),
    "last_admin": CodeInfo(409, "The last administrator can not go", "no"),
    "schema_in_use": CodeInfo(409, "Configs use the schema", "no"),
    "schema_breaks_configs": CodeInfo(409, "Configs would not fit the new schema", "no"),
    "no_change": CodeInfo(409, "That is the current version already", "no"),
    "change_in_progress": CodeInfo(409, "Another change of the members is under way", "later"),
    "transfer_failed": CodeInfo(409, "Leadership could not be handed over", "later"),
    "idempotency_in_progress": CodeInfo(409, "The first request is still under way", "later"),
    # 412, 413, 415, 428, 429
    "precondition_failed": CodeInfo(412, "If-Match does not name the current version", "fresh"),
    "payload_too_large": CodeInfo(413, "The body is too large", "no"),
    "unsupported_media_type": CodeInfo(415, "The body must be application/json", "no"),
    "unsupported_encoding": CodeInfo(415, "Content-Encoding is not supported on requests", "no"),
    "precondition_required": CodeInfo(428, "An expected version is required", "fresh"),
    "rate_limited": CodeInfo(429, "Too many requests", "later"),
    # 422
    "validation_failed": CodeInfo(422, "The request does not have the right shape", "no"),
    "unknown_field": CodeInfo(422, "The body has a member that is not known", "no"),
    "invalid_parameter": CodeInfo(422, "A query parameter is not acceptable", "no"),
    "invalid_string": CodeInfo(422, "A string holds what can not be stored", "no"),
    "document_invalid": CodeInfo(422, "The document does not fit its schema", "no"),
    "document_too_deep": CodeInfo(422, "The document is nested too deeply", "no"),
    "too_many_items": CodeInfo(422, "The document has too many members", "no"),
    "invalid_schema": CodeInfo(422, "That is not a usable JSON Schema", "no"),
    "unsupported_draft": CodeInfo(422, "The JSON Schema draft is not supported", "no"),
    "remote_ref_forbidden": CodeInfo(422, "$ref may only point into the document", "no"),
    "schema_too_complex": CodeInfo(422, "The schema is too complex", "no"),
    "invalid_members": CodeInfo(422, "These can not be the members", "no"),
    "idempotency_key_reused": CodeInfo(
        422, "The Idempotency-Key was used for another request", "no"
    ),
    # 500 exists only so that a defect still answers in the documented shape; no input may cause it
    "internal_error": CodeInfo(500, "A defect in Guardian", "with_key"),
    # 503, 504
    "no_leader": CodeInfo(503, "The cluster has no leader at the moment", "later"),
    "overloaded": CodeInfo(503, "Too much is under way", "later"),
    "storage_full": CodeInfo(503, "The disk is nearly full", "later"),
    "unavailable": CodeInfo(503, "A part that this needs is away", "later"),
    "data_integrity": CodeInfo(503, "Stored data is damaged", "later"),
    "outcome_unknown": CodeInfo(504, "The write may or may not have happened", "with_key"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong, at an RFC 6901 pointer (into the document or the body, see the code)."""

    pointer: str
    message: str


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it a problem
    """A refusal on its way to the client.

    Args:
        code: a key of :data:`CODES`.
        detail: one sentence for people; never a secret, a path or the text of another error.
        errors: faults by pointer, for validation codes.
        current_version: the version a conflict was decided against.
        revision: of the log entry that decided it, or of the local state that did; None when
            neither was looked at.
        replayed: it is the kept refusal of an earlier request with the same Idempotency-Key.
        retry_after_s: for codes whose ``retry`` is "later".
        extra: further members of the problem document.
    """

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        errors: tuple[Fault, ...] = (),
        current_version: int | None = None,
        revision: int | None = None,
        replayed: bool = False,
        retry_after_s: float | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        self.code = code
        self.info = CODES[code]
        self.detail = detail or self.info.title
        self.errors = errors
        self.current_version = current_version
        self.revision = revision
        self.replayed = replayed
        self.retry_after_s = retry_after_s
        self.extra = extra or {}
        super().__init__(f"{code}: {self.detail}")
