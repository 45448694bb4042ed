"""The use cases over a small world in memory: a log that decides, a local view that may lag behind
it, and rows with switches to fail."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from guardian.domain.entities import (
    ApiKeyInfo,
    Config,
    Credentials,
    Principal,
    Project,
    Revision,
    Role,
    RoleGrant,
    Schema,
    Served,
    User,
)
from guardian.domain.problems import Fault, Problem
from guardian.fsm import commands as c
from guardian.usecases.accounts import AccountPolicy
from guardian.usecases.ports import (
    AccessClaims,
    ClusterView,
    Remembered,
    SchemaState,
)
from guardian.usecases.services import Ports, Services

PROVISIONAL = {"schema_stale", "schema_usage_changed", "attempt_aborted"}


@dataclass
class Truth:
    """What the log has decided so far."""

    revision: int = 0
    projects: dict[str, bool] = field(default_factory=dict)
    keys: dict[bytes, ApiKeyInfo] = field(default_factory=dict)
    schemas: dict[str, SchemaState] = field(default_factory=dict)
    configs: dict[tuple[str, str], Config] = field(default_factory=dict)
    revisions: dict[tuple[str, str], list[Revision]] = field(default_factory=dict)
    remembered: dict[tuple[str, str], Remembered] = field(default_factory=dict)

    def decide(self, command: c.AnyCommand) -> c.AnyResult:
        self.revision += 1
        head = command.head
        name = (head.actor, head.idempotency_key)
        kept = self.remembered.get(name) if head.idempotency_key else None
        if kept is not None:
            if kept.fingerprint != head.fingerprint:
                return self.refuse("idempotency_key_reused")
            return c.msgspec.structs.replace(kept.result, replayed=True)
        result: c.AnyResult = getattr(self, "_" + type(command).__name__)(command)
        provisional = isinstance(result, c.Refused) and result.code in PROVISIONAL
        if head.idempotency_key and not provisional:
            self.remembered[name] = Remembered(head.fingerprint, result)
        return result

    def refuse(self, code: str, current: int = 0) -> c.Refused:
        return c.Refused(self.revision, code, current)

    def done(self, subject: str = "", count: int = 1) -> c.Done:
        return c.Done(self.revision, count=count, subject=subject)

    def _CreateProject(self, m: c.CreateProject) -> c.AnyResult:
        self.projects[m.project_id] = True
        self.keys[m.key_digest] = ApiKeyInfo(m.key_id, m.project_id, m.key_name, m.head.actor, 7)
        return self.done(m.project_id)

    def _DeleteProject(self, m: c.DeleteProject) -> c.AnyResult:
        if not self.projects.get(m.project_id):
            return self.refuse("not_found")
        self.projects[m.project_id] = False
        return self.done(m.project_id)

    def _PurgeProject(self, m: c.PurgeProject) -> c.AnyResult:
        mine = [name for name in self.configs if name[0] == m.project_id][: m.limit]
        for name in mine:
            del self.configs[name]
        return self.done(m.project_id, len(mine))

    def _CreateKey(self, m: c.CreateKey) -> c.AnyResult:
        if not self.projects.get(m.project_id):
            return self.refuse("project_gone")
        self.keys[m.key_digest] = ApiKeyInfo(m.key_id, m.project_id, m.key_name, m.head.actor, 7)
        return self.done(m.key_id)

    def _RevokeKey(self, m: c.RevokeKey) -> c.AnyResult:
        found = [
            d for d, k in self.keys.items() if (k.project_id, k.id) == (m.project_id, m.key_id)
        ]
        if not found:
            return self.refuse("not_found")
        del self.keys[found[0]]
        return self.done(m.key_id)

    def _PutSchema(self, m: c.PutSchema) -> c.AnyResult:
        now = self.schemas.get(m.schema_id)
        if now is None:
            if m.expected_version:
                return self.refuse("not_found")
            now = SchemaState(m.schema_id, 0, b"", False, 0, 0)
        elif m.expected_version != now.version:
            return self.refuse("version_conflict", now.version)
        elif m.usage_seen != now.usage_counter:
            return self.refuse("schema_usage_changed", now.version)
        self.schemas[m.schema_id] = replace(now, version=now.version + 1, body_digest=m.body_digest)
        return self.done(m.schema_id)

    def _DeleteSchema(self, m: c.DeleteSchema) -> c.AnyResult:
        now = self.schemas.get(m.schema_id)
        if now is None or now.deleted:
            return self.refuse("not_found")
        if now.usage_count:
            return self.refuse("schema_in_use")
        self.schemas[m.schema_id] = replace(now, deleted=True)
        return self.done(m.schema_id)

    def _CreateConfig(self, m: c.CreateConfig) -> c.AnyResult:
        now = self.configs.get((m.project_id, m.key))
        if not self.projects.get(m.project_id):
            return self.refuse("project_gone")
        if now is not None:
            return self.refuse("already_exists", now.version)
        return self._write(m, m.content, "create", len(self._history(m)) + 1)

    def _UpdateConfig(self, m: c.UpdateConfig) -> c.AnyResult:
        return self._expecting(m) or self._write(m, m.content, "update", m.expected_version + 1)

    def _RollbackConfig(self, m: c.RollbackConfig) -> c.AnyResult:
        if m.to_version == m.expected_version:
            return self._expecting(m) or self.refuse("no_change", m.expected_version)
        content = self._history(m)[m.to_version - 1].content
        return self._expecting(m) or self._write(m, content, "rollback", m.expected_version + 1)

    def _DeleteConfig(self, m: c.DeleteConfig) -> c.AnyResult:
        refused = self._expecting(m)
        if refused:
            return refused
        now = self.configs.pop((m.project_id, m.key))
        self._use(now.schema_id, -1)
        entry = Revision(now.version + 1, self.revision, "delete", "", m.head.actor, 7, "", 0)
        self._history(m).append(entry)
        return c.ConfigWritten(
            self.revision, m.project_id, m.key, "", 0, entry.version, b"", m.head.actor, 7
        )

    def _history(self, m: Any) -> list[Revision]:
        return self.revisions.setdefault((m.project_id, m.key), [])

    def _expecting(self, m: Any) -> c.Refused | None:
        now = self.configs.get((m.project_id, m.key))
        if not self.projects.get(m.project_id):
            return self.refuse("project_gone")
        if now is None:
            return self.refuse("not_found")
        if now.version != m.expected_version:
            return self.refuse("version_conflict", now.version)
        return None

    def _write(self, m: Any, content: bytes | None, kind: str, version: int) -> c.AnyResult:
        assert content is not None
        schema = self.schemas.get(m.schema_id)
        if schema is None or schema.deleted or schema.version != m.schema_version:
            return self.refuse("schema_stale")
        before = self.configs.get((m.project_id, m.key))
        if before is not None:
            self._use(before.schema_id, -1)
        self._use(m.schema_id, 1)
        head = (m.project_id, m.key, m.schema_id, m.schema_version, version)
        actor = m.head.actor
        self.configs[head[:2]] = Config(*head, self.revision, content, actor, 7)
        digest = hashlib.sha256(content)
        self._history(m).append(
            Revision(
                version, self.revision, kind, digest.hexdigest(), actor, 7, *head[2:4], content
            )
        )
        return c.ConfigWritten(self.revision, *head, digest.digest(), actor, 7)

    def _use(self, schema_id: str, step: int) -> None:
        now = self.schemas[schema_id]
        self.schemas[schema_id] = replace(
            now, usage_count=now.usage_count + step, usage_counter=now.usage_counter + 1
        )


class World:
    """The log and this node's view of it (ports ``Log`` and ``State``)."""

    def __init__(self) -> None:
        self.truth = Truth()
        self.view = Truth()
        self.lagging = False
        self.barriers = 0
        self.sent: list[c.AnyCommand] = []
        #: raised instead of deciding; "outcome_unknown!" decides and then raises
        self.trouble: list[str] = []
        #: called with each command before it is decided: the others of this world
        self.before: Callable[[c.AnyCommand], None] | None = None
        self.no_leader = False
        self.rebuilding = False

    # Log

    async def execute(self, command: c.AnyCommand, *, timeout_s: float) -> c.AnyResult:
        assert timeout_s > 0
        self.sent.append(command)
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble and not trouble.endswith("!"):
            raise Problem(trouble)
        if self.before is not None:
            self.before(command)
        result = self.decide(command)
        if trouble:
            raise Problem(trouble[:-1])
        return result

    def decide(self, command: c.AnyCommand) -> c.AnyResult:
        """As another node would: past the switches."""
        result = self.truth.decide(c.decode_command(c.encode_command(command)))
        if not self.lagging:
            self.view = copy.deepcopy(self.truth)
        return result

    async def barrier(self, *, timeout_s: float) -> None:
        assert timeout_s > 0
        if self.no_leader:
            raise Problem("no_leader")
        self.barriers += 1
        self.view = copy.deepcopy(self.truth)

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None:
        if revision > self.truth.revision:
            raise Problem("unavailable")
        self.view = copy.deepcopy(self.truth)

    def is_leader(self) -> bool:
        return not self.lagging

    def leader_http_address(self) -> str | None:
        return None

    def require_local(self) -> None:
        if self.rebuilding:
            raise Problem("unavailable")

    def staleness_ms(self) -> int | None:
        return 5

    def cluster(self) -> ClusterView:
        return ClusterView("n1", "leader", 1, "n1", 1, 1, ())

    # State

    def revision(self) -> int:
        return self.view.revision

    def project_exists(self, project_id: str) -> bool:
        return self.view.projects.get(project_id, False)

    def config(self, project_id: str, key: str) -> Config | None:
        return self.view.configs.get((project_id, key))

    def configs(self, project_id: str, after_key: str, limit: int) -> list[Config]:
        keys = sorted(k for p, k in self.view.configs if p == project_id and k > after_key)
        return [self.view.configs[project_id, key] for key in keys[:limit]]

    def revisions(
        self, project_id: str, key: str, before_version: int | None, limit: int
    ) -> list[Revision]:
        found = self.view.revisions.get((project_id, key), [])[::-1]
        older = [r for r in found if before_version is None or r.version < before_version]
        return [replace(r, content=None) for r in older[:limit]]

    def revision_of(self, project_id: str, key: str, version: int) -> Revision | None:
        found = self.view.revisions.get((project_id, key), [])
        return next((r for r in found if r.version == version), None)

    def serving_bytes(self, key_digest: bytes, key: str) -> Served | None:
        project_id = self.api_key_project(key_digest)
        if project_id is None:
            return None
        config = self.config(project_id, key)
        if config is None:
            return Served(project_id, 0, 0, None, self.revision())
        return Served(project_id, config.version, config.revision, config.content, self.revision())

    def api_key_project(self, key_digest: bytes) -> str | None:
        info = self.view.keys.get(key_digest)
        alive = info is not None and self.view.projects.get(info.project_id, False)
        return info.project_id if info is not None and alive else None

    def api_keys(self, project_id: str, after_id: str, limit: int) -> list[ApiKeyInfo]:
        mine = [k for k in self.view.keys.values() if k.project_id == project_id]
        return sorted((k for k in mine if k.id > after_id), key=lambda k: k.id)[:limit]

    def schema(self, schema_id: str) -> SchemaState | None:
        return self.view.schemas.get(schema_id)

    def schema_users(
        self, schema_id: str, after: tuple[str, str], limit: int
    ) -> list[tuple[str, str]]:
        users = (name for name, cfg in self.view.configs.items() if cfg.schema_id == schema_id)
        return sorted(name for name in users if name > after)[:limit]

    def remembered(self, actor: str, idempotency_key: str) -> Remembered | None:
        return self.view.remembered.get((actor, idempotency_key))


class Away:
    """Rows of a Postgres that can be away."""

    def __init__(self) -> None:
        self.away_for: set[str] = set()

    def _here(self, what: str) -> None:
        if what in self.away_for or "*" in self.away_for:
            raise Problem("unavailable")


class ProjectRows(Away):
    def __init__(self, roles: RoleRows) -> None:
        super().__init__()
        self.rows: dict[str, tuple[Project, str]] = {}
        self._roles = roles

    async def add_pending(self, project: Project) -> None:
        self._here("add_pending")
        self.rows[project.id] = (project, "creating")
        self._roles.grants[project.id, project.owner_id] = Role.ADMIN

    async def activate(self, project_id: str) -> None:
        self._here("activate")
        if project_id in self.rows:
            self.rows[project_id] = (self.rows[project_id][0], "active")

    async def remove(self, project_id: str) -> None:
        self._here("remove")
        self.rows.pop(project_id, None)

    async def get(self, project_id: str) -> Project | None:
        self._here("get")
        row = self.rows.get(project_id)
        return row[0] if row is not None and row[1] == "active" else None

    async def list_visible(
        self, user_id: str | None, owner_id: str | None, after_id: str, limit: int
    ) -> list[Project]:
        rows = [p for p, state in self.rows.values() if state == "active" and p.id > after_id]
        rows = [p for p in rows if owner_id in (None, p.owner_id)]
        seen = [p for p in rows if user_id is None or (p.id, user_id) in self._roles.grants]
        return sorted(seen, key=lambda p: p.id)[:limit]


class RoleRows(Away):
    def __init__(self) -> None:
        super().__init__()
        self.grants: dict[tuple[str, str], Role] = {}
        self.users = {"admin", "editor", "viewer", "stranger", "root"}

    async def role(self, project_id: str, user_id: str) -> Role | None:
        self._here("role")
        return self.grants.get((project_id, user_id))

    async def roles(self, project_ids: Sequence[str], user_id: str) -> dict[str, Role]:
        found = ((p, self.grants.get((p, user_id))) for p in project_ids)
        return {project_id: role for project_id, role in found if role is not None}

    async def list(self, project_id: str, after_user_id: str, limit: int) -> list[RoleGrant]:
        grants = [RoleGrant(u, r) for (p, u), r in sorted(self.grants.items()) if p == project_id]
        return [grant for grant in grants if grant.user_id > after_user_id][:limit]

    async def grant(self, project_id: str, grant: RoleGrant) -> None:
        if grant.user_id not in self.users:
            raise Problem("not_found")
        self.grants[project_id, grant.user_id] = grant.role

    async def revoke(self, project_id: str, user_id: str) -> bool:
        return self.grants.pop((project_id, user_id), None) is not None


class SchemaRows(Away):
    def __init__(self) -> None:
        super().__init__()
        self.attempts: dict[tuple[str, str], tuple[Schema, str]] = {}

    async def add_pending(self, schema: Schema, attempt_id: str) -> None:
        self._here("add_pending")
        self.attempts[schema.id, attempt_id] = (schema, "pending")

    async def activate(self, schema_id: str, version: int, attempt_id: str) -> None:
        self._here("activate")
        schema, _ = self.attempts[schema_id, attempt_id]
        assert schema.version == version
        self.attempts[schema_id, attempt_id] = (schema, "active")

    async def drop_attempt(self, schema_id: str, attempt_id: str) -> None:
        self._here("drop_attempt")
        self.attempts.pop((schema_id, attempt_id), None)

    async def remove(self, schema_id: str) -> None:
        self._here("remove")
        for name in [name for name in self.attempts if name[0] == schema_id]:
            del self.attempts[name]

    async def by_digest(self, schema_id: str, version: int, digest: bytes) -> Schema | None:
        self._here("by_digest")
        for schema, _ in self.attempts.values():
            if (schema.id, schema.version, schema.digest) == (schema_id, version, digest):
                return schema
        return None

    async def list(self, after_id: str, limit: int) -> list[Schema]:
        newest: dict[str, Schema] = {}
        for schema, state in self.attempts.values():
            old = newest.get(schema.id)
            if state == "active" and (old is None or old.version < schema.version):
                newest[schema.id] = schema
        return sorted((s for s in newest.values() if s.id > after_id), key=lambda s: s.id)[:limit]

    async def creator(self, schema_id: str) -> str | None:
        return next(
            (s.created_by for (i, _), (s, _) in self.attempts.items() if i == schema_id), None
        )

    def states(self) -> list[tuple[int, str]]:
        return sorted((schema.version, state) for schema, state in self.attempts.values())


class Validator:
    """A schema is ``{"max": n}``: the document must be a number up to n."""

    def __init__(self) -> None:
        self.checked: list[bytes] = []

    async def check_schema(self, body: bytes) -> None:
        if b"max" not in body:
            raise Problem("invalid_schema")

    async def validate(self, body: bytes, digest: bytes, document: bytes) -> tuple[Fault, ...]:
        assert hashlib.sha256(body).digest() == digest
        self.checked.append(document)
        fits = json.loads(document) <= json.loads(body)["max"]
        return () if fits else (Fault("", "too large"),)


class UserRows(Away):
    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Credentials] = {}

    async def add(self, user: User, password_hash: str) -> None:
        if await self.credentials(user.email) is not None:
            raise Problem("email_taken")
        self.rows[user.id] = Credentials(user, password_hash)

    async def get(self, user_id: str) -> User | None:
        self._here("get")
        return self.rows[user_id].user if user_id in self.rows else None

    async def credentials(self, email: str) -> Credentials | None:
        self._here("credentials")
        lower = email.lower()
        return next((r for r in self.rows.values() if r.user.email.lower() == lower), None)

    async def set_password_hash(self, user_id: str, password_hash: str) -> None:
        self.rows[user_id] = Credentials(self.rows[user_id].user, password_hash)

    async def list(self, after_id: str, limit: int) -> list[User]:
        users = sorted((r.user for r in self.rows.values()), key=lambda u: u.id)
        return [user for user in users if user.id > after_id][:limit]

    async def remove(self, user_id: str) -> bool:
        return self.rows.pop(user_id, None) is not None

    async def any(self) -> bool:
        return bool(self.rows)

    async def add_first_admin(self, user: User, password_hash: str) -> bool:
        if self.rows:
            return False
        self.rows[user.id] = Credentials(user, password_hash)
        return True


class RefreshRows(Away):
    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[bytes, list[Any]] = {}  # [family, user, expiry, state]

    async def add(self, digest: bytes, family_id: str, user_id: str, expires_at_ms: int) -> None:
        self._here("add")
        self.rows[digest] = [family_id, user_id, expires_at_ms, "active"]

    async def rotate(
        self, digest: bytes, new_digest: bytes, new_expires_at_ms: int, now_ms: int
    ) -> str:
        row = self.rows.get(digest)
        if row is None or row[3] == "revoked" or row[2] <= now_ms:
            raise Problem("invalid_token")
        if row[3] == "spent":
            await self.revoke_family_of(digest)
            raise Problem("refresh_reused")
        row[3] = "spent"
        self.rows[new_digest] = [row[0], row[1], new_expires_at_ms, "active"]
        return str(row[1])

    async def revoke_family_of(self, digest: bytes) -> bool:
        if digest not in self.rows:
            return False
        for row in self.rows.values():
            if row[0] == self.rows[digest][0]:
                row[3] = "revoked"
        return True


class Hasher:
    def __init__(self) -> None:
        self.verified: list[tuple[str | None, str]] = []
        self.full = False
        self.scheme = "v1"

    async def hash(self, password: str) -> str:
        return f"{self.scheme}:{password}"

    async def verify(self, password_hash: str | None, password: str) -> bool:
        if self.full:
            raise Problem("overloaded")
        self.verified.append((password_hash, password))
        return password_hash is not None and password_hash.split(":", 1)[1] == password

    def needs_rehash(self, password_hash: str) -> bool:
        return not password_hash.startswith(self.scheme)


class Tokens:
    access_ttl_s = 900

    def issue_access(self, user: User) -> str:
        return f"access:{user.id}:{user.is_admin}"

    def verify_access(self, token: str) -> AccessClaims:
        _, user_id, is_admin = token.split(":")
        return AccessClaims(user_id, is_admin == "True")


class Codec:
    def __init__(self) -> None:
        self.made = 0

    def generate(self) -> tuple[str, bytes]:
        self.made += 1
        return f"cfg_{self.made}", self.digest(f"cfg_{self.made}")

    def well_formed(self, text: str) -> bool:
        return text.startswith("cfg_")

    def digest(self, text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()


class WallClock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@dataclass
class Stage:
    """The services and everything under them."""

    services: Services
    world: World
    projects: ProjectRows
    roles: RoleRows
    schemas: SchemaRows
    users: UserRows
    refresh: RefreshRows
    hasher: Hasher
    validator: Validator
    clock: WallClock

    def who(self, name: str) -> Principal:
        return Principal(name, is_admin=name == "root")


def make_stage(policy: AccountPolicy | None = None) -> Stage:
    world, roles, clock = World(), RoleRows(), WallClock()
    projects, schemas, users = ProjectRows(roles), SchemaRows(), UserRows()
    refresh, hasher, validator = RefreshRows(), Hasher(), Validator()
    ports = Ports(
        log=world,
        state=world,
        users=users,
        refresh_tokens=refresh,
        projects=projects,
        roles=roles,
        schemas=schemas,
        passwords=hasher,
        tokens=Tokens(),
        validator=validator,
        api_keys=Codec(),
        clock=clock,
        members=AsyncMock(),
        accounts=policy or AccountPolicy(),
    )
    services = Services.of(ports)
    return Stage(
        services, world, projects, roles, schemas, users, refresh, hasher, validator, clock
    )


@pytest.fixture
def new_stage() -> Callable[..., Stage]:
    return make_stage


@pytest.fixture
def stage() -> Stage:
    return make_stage()
