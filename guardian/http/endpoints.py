"""The one table of endpoints. The router, the OpenAPI document, the page at ``/docs`` and the tests
of rights are all made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from guardian.domain.problems import CODES
from guardian.http import bodies, shapes

PREFIX: Final = "/api/v1"


class Auth(StrEnum):
    """How a caller shows who it is."""

    NONE = "none"
    USER = "user"  #: ``Authorization: Bearer <access token>``
    API_KEY = "api_key"  #: in the path, or ``X-API-Key``


class Right(StrEnum):
    """What a caller must be allowed. Use cases enforce it; here it is said."""

    OPEN = "open"
    SIGNED_IN = "signed in"
    SELF = "oneself, or is_admin"
    IS_ADMIN = "is_admin"
    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"
    CREATOR = "the creator, or is_admin"
    KEY_HOLDER = "holder of the API key"


class Query(StrEnum):
    """Query parameters."""

    CONSISTENCY = "consistency"
    MIN_REVISION = "min_revision"
    LIMIT = "limit"
    CURSOR = "cursor"
    OWNER = "owner"
    EXPECTED_VERSION = "expected_version"
    REDIRECT = "redirect"
    FOR = "for"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row.

    Args:
        method: GET (which also answers HEAD), POST, PUT or DELETE.
        path: template, with ``{name}`` for one segment.
        operation: stable id of the operation.
        tag: the noun it belongs to.
        summary: one line.
        auth: how the caller shows who it is.
        right: what the caller must be allowed.
        success: status of success.
        body: shape of the request's body.
        answer: shape of the answer's body.
        logged: it is decided in the replicated log.
        locked: it takes ``If-Match`` or ``expected_version``.
        tagged: its answer has an ``ETag``.
        queries: further query parameters.
        codes: problem codes of its own, besides those of :func:`codes_of`.
        by_signature: the token's signature is enough, so that it works without PostgreSQL; for
            what anybody who is signed in may see.
    """

    method: str
    path: str
    operation: str
    tag: str
    summary: str
    auth: Auth
    right: Right
    success: int
    body: type[bodies.Body] | None = None
    answer: Any = None
    logged: bool = False
    locked: bool = False
    tagged: bool = False
    queries: tuple[Query, ...] = ()
    codes: tuple[str, ...] = ()
    by_signature: bool = False

    @property
    def sees_log(self) -> bool:
        """Whether its answers, and the refusals that the log or local state decided, say
        ``X-Guardian-Revision``. Accounts live in PostgreSQL alone."""
        return self.is_api and self.tag not in {"auth", "users"}

    @property
    def is_write(self) -> bool:
        return self.method != "GET"

    @property
    def is_api(self) -> bool:
        return self.path.startswith(PREFIX)


def _api(
    method: str,
    path: str,
    operation: str,
    tag: str,
    summary: str,
    right: Right,
    success: int = 200,
    *,
    auth: Auth = Auth.USER,
    body: type[bodies.Body] | None = None,
    answer: Any = None,
    logged: bool = False,
    locked: bool = False,
    tagged: bool = False,
    queries: tuple[Query, ...] = (),
    codes: str = "",
    by_signature: bool = False,
) -> Endpoint:
    if method == "GET":
        queries = (Query.CONSISTENCY, Query.MIN_REVISION, *queries)
    if logged:
        queries = (*queries, Query.REDIRECT)
    return Endpoint(
        method,
        PREFIX + path,
        operation,
        tag,
        summary,
        auth,
        right,
        success,
        body,
        answer,
        logged,
        locked,
        tagged,
        queries,
        tuple(codes.split()),
        by_signature,
    )


def _open(
    path: str, operation: str, summary: str, answer: Any = None, queries: tuple[Query, ...] = ()
) -> Endpoint:
    return Endpoint(
        "GET",
        path,
        operation,
        "node",
        summary,
        Auth.NONE,
        Right.OPEN,
        200,
        answer=answer,
        queries=queries,
    )


_PAGE: Final = (Query.LIMIT, Query.CURSOR)
_PROJECT: Final = "/projects/{project_id}"
_CONFIGS: Final = f"{_PROJECT}/configs"
_CONFIG: Final = f"{_CONFIGS}/{{key}}"
_SCHEMA_CODES: Final = "invalid_schema unsupported_draft remote_ref_forbidden schema_too_complex"
_DOCUMENT_CODES: Final = "document_invalid document_too_deep too_many_items schema_too_complex"

AUTH: Final = (
    _api("POST", "/auth/register", "register", "auth", "Create an account, where registration is"
         " open.", Right.OPEN, 201, auth=Auth.NONE, body=bodies.Register, answer=shapes.User,
         codes="registration_closed email_taken"),
    _api("POST", "/auth/login", "login", "auth", "Tokens for e-mail and password.", Right.OPEN,
         auth=Auth.NONE, body=bodies.Login, answer=shapes.TokenPair, codes="invalid_credentials"),
    _api("POST", "/auth/refresh", "refresh", "auth", "Spend a refresh token for new tokens.",
         Right.OPEN, auth=Auth.NONE, body=bodies.Refresh, answer=shapes.TokenPair,
         codes="invalid_token refresh_reused"),
    _api("POST", "/auth/logout", "logout", "auth", "Revoke a refresh token and its family.",
         Right.OPEN, 204, auth=Auth.NONE, body=bodies.Logout),
)  # fmt: skip

USERS: Final = (
    _api("GET", "/users", "list_users", "users", "All users.", Right.IS_ADMIN,
         answer=shapes.Items[shapes.User], queries=_PAGE),
    _api("GET", "/users/me", "get_me", "users", "The caller.", Right.SIGNED_IN,
         answer=shapes.User),
    _api("GET", "/users/{user_id}", "get_user", "users", "A user.", Right.SELF,
         answer=shapes.User),
    _api("POST", "/users", "create_user", "users", "Create a user.", Right.IS_ADMIN, 201,
         body=bodies.CreateUser, answer=shapes.User, codes="email_taken"),
    _api("DELETE", "/users/{user_id}", "delete_user", "users", "Delete a user.", Right.IS_ADMIN,
         204, codes="owns_projects last_admin"),
)  # fmt: skip

PROJECTS: Final = (
    _api("POST", "/projects", "create_project", "projects", "Create a project; the caller becomes"
         " its admin.", Right.SIGNED_IN, 201, body=bodies.CreateProject, answer=shapes.NewProject,
         logged=True),
    _api("GET", "/projects", "list_projects", "projects", "Projects that the caller has a role in.",
         Right.SIGNED_IN, answer=shapes.Items[shapes.Project], queries=(*_PAGE, Query.OWNER)),
    _api("GET", _PROJECT, "get_project", "projects", "A project.", Right.VIEWER,
         answer=shapes.Project),
    _api("DELETE", _PROJECT, "delete_project", "projects", "Delete a project; its keys are dead at"
         " once.", Right.ADMIN, 204, logged=True),
    _api("GET", f"{_PROJECT}/keys", "list_keys", "keys", "API keys, without their secrets.",
         Right.ADMIN, answer=shapes.Items[shapes.ApiKey], queries=_PAGE),
    _api("POST", f"{_PROJECT}/keys", "create_key", "keys", "Create an API key, shown this once.",
         Right.ADMIN, 201, body=bodies.CreateKey, answer=shapes.NewApiKey, logged=True),
    _api("DELETE", f"{_PROJECT}/keys/{{key_id}}", "revoke_key", "keys", "Revoke an API key.",
         Right.ADMIN, 204, logged=True),
    _api("GET", f"{_PROJECT}/roles", "list_roles", "roles", "Who has which role.", Right.ADMIN,
         answer=shapes.Items[shapes.Grant], queries=_PAGE),
    _api("POST", f"{_PROJECT}/roles", "grant_role", "roles", "Give a user a role.", Right.ADMIN,
         body=bodies.GrantRole, answer=shapes.Grant),
    _api("DELETE", f"{_PROJECT}/roles/{{user_id}}", "revoke_role", "roles", "Take a user's role"
         " away.", Right.ADMIN, 204),
)  # fmt: skip

SCHEMAS: Final = (
    _api("POST", "/schemas", "create_schema", "schemas", "Register a JSON Schema.",
         Right.SIGNED_IN, 201, body=bodies.CreateSchema, answer=shapes.Schema, logged=True,
         codes=_SCHEMA_CODES),
    _api("GET", "/schemas", "list_schemas", "schemas", "Schemas, each at its newest version.",
         Right.SIGNED_IN, answer=shapes.Items[shapes.ListedSchema], queries=_PAGE),
    _api("GET", "/schemas/{schema_id}", "get_schema", "schemas", "A schema at its newest version.",
         Right.SIGNED_IN, answer=shapes.Schema, tagged=True),
    _api("PUT", "/schemas/{schema_id}", "update_schema", "schemas", "A new version, which every"
         " config that uses the schema must fit.", Right.CREATOR, body=bodies.UpdateSchema,
         answer=shapes.Schema, logged=True, locked=True, tagged=True,
         codes=f"schema_breaks_configs {_SCHEMA_CODES}"),
    _api("DELETE", "/schemas/{schema_id}", "delete_schema", "schemas", "Delete a schema that no"
         " config uses.", Right.CREATOR, 204, logged=True, codes="schema_in_use"),
)  # fmt: skip

CONFIGS: Final = (
    _api("GET", _CONFIGS, "list_configs", "configs", "Configs of a project, in key order.",
         Right.VIEWER, answer=shapes.Items[shapes.Config], queries=_PAGE),
    _api("POST", _CONFIGS, "create_config", "configs", "Store a new config.", Right.EDITOR, 201,
         body=bodies.CreateConfig, answer=shapes.Config, logged=True, tagged=True,
         codes=f"already_exists {_DOCUMENT_CODES}"),
    _api("GET", _CONFIG, "get_config", "configs", "A config.", Right.VIEWER, answer=shapes.Config,
         tagged=True),
    _api("PUT", _CONFIG, "update_config", "configs", "Replace a config's content under the lock;"
         " never creates.", Right.EDITOR, body=bodies.UpdateConfig, answer=shapes.Config,
         logged=True, locked=True, tagged=True, codes=_DOCUMENT_CODES),
    _api("DELETE", _CONFIG, "delete_config", "configs", "Delete a config under the lock.",
         Right.EDITOR, 204, logged=True, locked=True, queries=(Query.EXPECTED_VERSION,)),
    _api("GET", f"{_CONFIG}/revisions", "list_revisions", "configs", "All versions, newest first.",
         Right.VIEWER, answer=shapes.Items[shapes.Revision], queries=_PAGE),
    _api("GET", f"{_CONFIG}/revisions/{{version}}", "get_revision", "configs", "A version with its"
         " content.", Right.VIEWER, answer=shapes.RevisionContent, tagged=True),
    _api("POST", f"{_CONFIG}/rollback", "rollback_config", "configs", "A new version with the"
         " content of an older one.", Right.EDITOR, body=bodies.Rollback, answer=shapes.Config,
         logged=True, locked=True, tagged=True, codes=f"no_change {_DOCUMENT_CODES}"),
)  # fmt: skip

READ: Final = (
    _api("GET", "/read/{api_key}/{key}", "read_by_path", "read", "A document, by the API key in"
         " the path.", Right.KEY_HOLDER, auth=Auth.API_KEY, answer=shapes.Document, tagged=True),
    _api("GET", "/read/{key}", "read_by_header", "read", "A document, by the API key in"
         " X-API-Key.", Right.KEY_HOLDER, auth=Auth.API_KEY, answer=shapes.Document, tagged=True),
)  # fmt: skip

CLUSTER: Final = (
    _api("GET", "/cluster", "get_cluster", "cluster", "The cluster as this node sees it.",
         Right.SIGNED_IN, answer=shapes.Cluster, by_signature=True),
    _api("PUT", "/cluster/members", "change_members", "cluster", "State the members that are"
         " wanted: add, promote, demote, replace, remove.", Right.IS_ADMIN,
         body=bodies.ChangeMembers, answer=shapes.MembersChanged,
         codes="invalid_members version_conflict change_in_progress no_leader"),
    _api("POST", "/cluster/transfer", "transfer_leadership", "cluster", "Hand leadership over.",
         Right.IS_ADMIN, body=bodies.TransferLeadership, answer=shapes.Cluster,
         codes="transfer_failed no_leader"),
)  # fmt: skip

NODE: Final = (
    _open("/", "welcome", "Name, version and links.", shapes.Welcome),
    _open("/livez", "live", "Whether the process lives.", shapes.Word),
    _open("/ready", "ready", "Whether to send work here.", shapes.Ready, (Query.FOR,)),
    _open("/readyz", "readyz", "The same as /ready.", shapes.Ready, (Query.FOR,)),
    _open("/health", "health", "Whether the node is well.", shapes.Ready),
    _open("/healthz", "healthz", "The same as /health.", shapes.Ready),
    _open("/metrics", "metrics", "Metrics in the Prometheus text format."),
    _open("/openapi.json", "openapi", "This interface as OpenAPI 3.1."),
    _open("/docs", "docs", "This interface for people."),
)  # fmt: skip

ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *AUTH, *USERS, *PROJECTS, *SCHEMAS, *CONFIGS, *READ, *CLUSTER, *NODE,
)  # fmt: skip

_BODY_CODES: Final = (
    "invalid_json", "json_too_deep", "request_timeout", "payload_too_large",
    "unsupported_media_type", "unsupported_encoding", "validation_failed", "unknown_field",
    "invalid_string",
)  # fmt: skip
_LOG_CODES: Final = (
    "idempotency_key_reused", "idempotency_in_progress", "no_leader", "overloaded",
    "storage_full", "outcome_unknown",
)  # fmt: skip
_LOCK_CODES: Final = (
    "invalid_etag", "version_conflict", "precondition_failed", "precondition_required",
)  # fmt: skip


def codes_of(endpoint: Endpoint) -> tuple[str, ...]:
    """Every problem code that an endpoint may answer with, in the order of the code table."""
    codes = {"malformed_request", "internal_error", *endpoint.codes}
    if endpoint.is_api:
        codes |= {"rate_limited", "not_acceptable", "unavailable", "overloaded"}
    if endpoint.auth is Auth.USER:
        codes |= {"unauthenticated", "invalid_token", "token_expired"}
    if endpoint.auth is Auth.API_KEY:
        codes |= {"unauthenticated", "invalid_api_key", "not_found"}
    if endpoint.right in {Right.IS_ADMIN, Right.EDITOR, Right.ADMIN, Right.CREATOR}:
        codes.add("forbidden")
    if endpoint.auth is Auth.USER and "{" in endpoint.path:
        codes.add("not_found")
    if endpoint.body is not None:
        codes |= set(_BODY_CODES)
    if endpoint.is_write:
        codes.add("invalid_idempotency_key")
    if endpoint.logged:
        codes |= set(_LOG_CODES)
    elif endpoint.is_write:
        codes.add("outcome_unknown")
    if endpoint.locked:
        codes |= set(_LOCK_CODES)
    if endpoint.queries:
        codes.add("invalid_parameter")
    if Query.CURSOR in endpoint.queries:
        codes.add("invalid_cursor")
    if Query.CONSISTENCY in endpoint.queries:
        codes.add("no_leader")
    if endpoint.tagged and not endpoint.is_write:
        codes.add("invalid_etag")
    return tuple(code for code in CODES if code in codes)


def answer_types() -> list[Any]:
    """Every type that stands in the table, for the OpenAPI components."""
    found: list[Any] = [shapes.ProblemDocument]
    for endpoint in ENDPOINTS:
        for kind in (endpoint.body, endpoint.answer):
            if kind is not None and kind not in found:
                found.append(kind)
    return found


assert len({endpoint.operation for endpoint in ENDPOINTS}) == len(ENDPOINTS)
assert all(code in CODES for endpoint in ENDPOINTS for code in endpoint.codes)
