"""What the use cases need from the world, as protocols. Adapters implement them.

Every method that talks to PostgreSQL raises ``Problem("unavailable")`` when the server is away, and
never anything driver-specific. Every method that talks to the cluster raises ``Problem`` with
``no_leader``, ``overloaded``, ``storage_full`` (nothing happened) or ``outcome_unknown``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guardian.domain.entities import (
    ApiKeyInfo,
    Config,
    Credentials,
    Project,
    Revision,
    Role,
    RoleGrant,
    Schema,
    User,
)
from guardian.domain.entities import SchemaState as SchemaState
from guardian.domain.entities import Served as Served
from guardian.domain.problems import Fault
from guardian.fsm.commands import AnyCommand, AnyResult
from guardian.fsm.commands import Remembered as Remembered


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member as ``GET /cluster`` shows it."""

    id: str
    raft_address: str
    http_address: str
    voter: bool
    healthy: bool


@dataclass(frozen=True, slots=True)
class JoinerView:
    """A node that asked to join and is not a member. Leaders remember them."""

    id: str
    raft_address: str
    http_address: str
    wants_vote: bool


@dataclass(frozen=True, slots=True)
class ClusterView:
    """This node's picture of the cluster.

    ``members_version`` names the configuration of the members in force; ``stage`` is ``stable``,
    ``staging`` (new voters catch up) or ``joint``; ``waits_for`` says what a change waits for.
    ``conditions`` keep this node from its part: ``not_a_member`` (yet), ``removed``,
    ``quarantined`` (it lost data and is being filled again), ``disk_stalled``.
    """

    node_id: str
    role: str
    term: int
    leader_id: str | None
    commit_index: int
    applied_index: int
    members: tuple[MemberView, ...]
    members_version: int = 1
    stage: str = "stable"
    waits_for: str | None = None
    joiners: tuple[JoinerView, ...] = ()
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WantedMember:
    """A member as somebody wants it: one that is there, or a node that asked to join."""

    id: str
    voter: bool


class Members(Protocol):
    """Who belongs to the cluster, and who leads it; works on any node, by way of the leader."""

    async def change(
        self, members: Sequence[WantedMember], expected_version: int, *, timeout_s: float
    ) -> bool:
        """Make these the members; False if a new voter did not catch up and stays a learner.

        Raises ``Problem``: ``version_conflict``, ``change_in_progress``, ``invalid_members``,
        ``no_leader`` (nothing changed), ``outcome_unknown``.
        """
        ...

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """Hand leadership over, to ``target`` or to whoever is furthest along; who leads now.

        Raises ``Problem``: ``transfer_failed``, ``no_leader``, ``outcome_unknown``.
        """
        ...


class Log(Protocol):
    """The replicated log, from wherever this node stands."""

    async def execute(self, command: AnyCommand, *, timeout_s: float) -> AnyResult:
        """Get ``command`` into the log, here or through the leader, and await its result.

        Retries under the same command id while that is safe. Raises ``Problem``.
        """
        ...

    async def barrier(self, *, timeout_s: float) -> None:
        """After this, local state reflects everything acknowledged before the call. Raises
        ``Problem("no_leader")`` when that can not be established in time."""
        ...

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None:
        """Until local state holds ``revision``. Raises ``Problem("unavailable")`` on time-out."""
        ...

    def is_leader(self) -> bool: ...

    def leader_http_address(self) -> str | None: ...

    def require_local(self) -> None:
        """Local state may be shown as it is. Raises ``Problem("unavailable")`` while this node
        rebuilds it and it is older than what was shown before (D5.6)."""
        ...

    def staleness_ms(self) -> int | None:
        """How old local state may be at most: time since the last contact with the leader at which
        this node had applied all that was committed; on the leader, since its last contact with a
        quorum; None when unknown."""
        ...

    def cluster(self) -> ClusterView: ...


class State(Protocol):
    """Local replicated state. Reads are synchronous, in-process and see one applied revision each.

    Freshness is the caller's business (:meth:`Log.barrier`).
    """

    def revision(self) -> int:
        """Revision of the last applied entry."""
        ...

    def project_exists(self, project_id: str) -> bool:
        """Created and not deleted."""
        ...

    def config(self, project_id: str, key: str) -> Config | None: ...

    def configs(self, project_id: str, after_key: str, limit: int) -> list[Config]:
        """In key order (bytewise), keys greater than ``after_key``."""
        ...

    def revisions(
        self, project_id: str, key: str, before_version: int | None, limit: int
    ) -> list[Revision]:
        """Newest first, without content; versions below ``before_version`` if given."""
        ...

    def revision_of(self, project_id: str, key: str, version: int) -> Revision | None:
        """With content."""
        ...

    def serving_bytes(self, key_digest: bytes, key: str) -> Served | None:
        """A config as the read route serves it, by a live API key's digest, in one look; None for
        no live key. Version 0 and no content: there is no such config."""
        ...

    def api_key_project(self, key_digest: bytes) -> str | None:
        """Project of a live key of a live project."""
        ...

    def api_keys(self, project_id: str, after_id: str, limit: int) -> list[ApiKeyInfo]: ...

    def schema(self, schema_id: str) -> SchemaState | None: ...

    def schema_users(
        self, schema_id: str, after: tuple[str, str], limit: int
    ) -> list[tuple[str, str]]:
        """(project id, key) of configs that use the schema, in order, greater than ``after``."""
        ...

    def remembered(self, actor: str, idempotency_key: str) -> Remembered | None:
        """What the state machine keeps under that Idempotency-Key of that actor.

        Checks before the log (rights, validation) may refuse a retry of a request that took
        effect; the kept result then wins.
        """
        ...


class Users(Protocol):
    async def add(self, user: User, password_hash: str) -> None:
        """Raises ``Problem("email_taken")``."""
        ...

    async def get(self, user_id: str) -> User | None: ...

    async def credentials(self, email: str) -> Credentials | None:
        """By e-mail, case-insensitively."""
        ...

    async def set_password_hash(self, user_id: str, password_hash: str) -> None: ...

    async def list(self, after_id: str, limit: int) -> list[User]: ...

    async def remove(self, user_id: str) -> bool:
        """False if absent. Raises ``Problem`` ``owns_projects`` or ``last_admin``, decided in one
        transaction. Grants and refresh tokens of the user go too."""
        ...

    async def any(self) -> bool: ...

    async def add_first_admin(self, user: User, password_hash: str) -> bool:
        """Create the user if there is none at all, under a lock; whether it was created."""
        ...


class RefreshTokens(Protocol):
    """Refresh tokens by SHA-256 digest, in families (RFC 9700 4.14)."""

    async def add(
        self, digest: bytes, family_id: str, user_id: str, expires_at_ms: int
    ) -> None: ...

    async def rotate(
        self, digest: bytes, new_digest: bytes, new_expires_at_ms: int, now_ms: int
    ) -> str:
        """Spend ``digest`` and add its child in one transaction; the user id.

        Exactly one of several racing calls succeeds. Raises ``Problem("refresh_reused")`` for a
        spent token (and revokes its family), ``Problem("invalid_token")`` for an unknown, revoked
        or expired one.
        """
        ...

    async def revoke_family_of(self, digest: bytes) -> bool: ...


class Projects(Protocol):
    """Projects' rows: name and owner. Whether a project lives is for the log to say."""

    async def add_pending(self, project: Project) -> None:
        """State ``creating``, with the owner's admin grant."""
        ...

    async def activate(self, project_id: str) -> None: ...

    async def remove(self, project_id: str) -> None: ...

    async def get(self, project_id: str) -> Project | None:
        """Active ones only."""
        ...

    async def list_visible(
        self, user_id: str | None, owner_id: str | None, after_id: str, limit: int
    ) -> list[Project]:
        """Active projects in id order; of those where ``user_id`` has a role (None: all)."""
        ...


class Roles(Protocol):
    async def role(self, project_id: str, user_id: str) -> Role | None: ...

    async def roles(self, project_ids: Sequence[str], user_id: str) -> dict[str, Role]:
        """The user's roles in those projects, in one query."""
        ...

    async def list(self, project_id: str, after_user_id: str, limit: int) -> list[RoleGrant]: ...

    async def grant(self, project_id: str, grant: RoleGrant) -> None:
        """Set or change. Raises ``Problem("not_found")`` when there is no such user."""
        ...

    async def revoke(self, project_id: str, user_id: str) -> bool: ...


class Schemas(Protocol):
    """Bodies of schemas. Rows are written before the log entry that makes them current, so the
    body of whatever version the state machine names can always be found by its digest."""

    async def add_pending(self, schema: Schema, attempt_id: str) -> None:
        """Store a body for (id, version), state ``pending``; several attempts may coexist."""
        ...

    async def activate(self, schema_id: str, version: int, attempt_id: str) -> None:
        """This attempt won: it becomes the version's row, other attempts of it go."""
        ...

    async def drop_attempt(self, schema_id: str, attempt_id: str) -> None: ...

    async def remove(self, schema_id: str) -> None:
        """All versions (the log said so)."""
        ...

    async def by_digest(self, schema_id: str, version: int, digest: bytes) -> Schema | None:
        """The body the state machine names, active or still pending."""
        ...

    async def list(self, after_id: str, limit: int) -> list[Schema]:
        """Newest active version of each, in id order."""
        ...

    async def creator(self, schema_id: str) -> str | None: ...


class Passwords(Protocol):
    """argon2id in its own bounded pool. Raises ``Problem("overloaded")`` when the pool is full."""

    async def hash(self, password: str) -> str: ...

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """With None a dummy hash is verified, so unknown users take as long as known ones."""
        ...

    def needs_rehash(self, password_hash: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class AccessClaims:
    user_id: str
    is_admin: bool


class Tokens(Protocol):
    def issue_access(self, user: User) -> str: ...

    @property
    def access_ttl_s(self) -> int: ...

    def verify_access(self, token: str) -> AccessClaims:
        """Raises ``Problem`` ``invalid_token`` or ``token_expired``."""
        ...


class SchemaValidator(Protocol):
    """Compiles and applies JSON Schemas in killable worker processes."""

    async def check_schema(self, body: bytes) -> None:
        """Raises ``Problem`` ``invalid_schema``, ``unsupported_draft``, ``remote_ref_forbidden`` or
        ``schema_too_complex``."""
        ...

    async def validate(self, body: bytes, digest: bytes, document: bytes) -> tuple[Fault, ...]:
        """Faults of ``document`` under the schema, empty when it fits. Raises
        ``Problem("schema_too_complex")`` when it can not be decided in time."""
        ...


class ApiKeyCodec(Protocol):
    """The text form of API keys: ``cfg_``, 30 random base62 characters, 6 of checksum."""

    def generate(self) -> tuple[str, bytes]:
        """A new key: its text, shown once, and the SHA-256 digest that is kept."""
        ...

    def well_formed(self, text: str) -> bool:
        """Shape and checksum; what fails here needs no look-up."""
        ...

    def digest(self, text: str) -> bytes: ...


class Clock(Protocol):
    """Wall clock for user-visible stamps only."""

    def now_ms(self) -> int: ...
