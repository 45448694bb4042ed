"""The real service on a real socket: real use cases, tokens, API keys and state machine.

Only what needs a process of its own is replaced: PostgreSQL by dictionaries, the cluster by a log
of one node, argon2 and the schema workers by plain functions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from yarl import URL

from guardian.adapters.security.api_keys import ApiKeys
from guardian.adapters.security.tokens import JwtTokens
from guardian.domain.entities import (
    Credentials,
    Project,
    Role,
    RoleGrant,
    Schema,
    User,
)
from guardian.domain.problems import Fault, Problem
from guardian.fsm.commands import AnyCommand, AnyResult, encode_command
from guardian.fsm.machine import GuardianMachine
from guardian.http import HealthReport, HttpServer, build_application, build_metrics_application
from guardian.settings import HostPort, Settings, load_settings
from guardian.telemetry import Metrics
from guardian.usecases.accounts import AccountPolicy
from guardian.usecases.ports import ClusterView, MemberView, WantedMember
from guardian.usecases.services import Ports, Services
from raftcore.core.types import Entry, EntryType
from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
from raftcore.statemachine import AppliedPosition

PASSWORD = "correct horse battery"
SECRET = b"0123456789abcdef0123456789abcdef"
SCHEMA = {"type": "object", "properties": {"rate": {"type": "integer"}}}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What depends on transports is tested on the loop of production too."""
    plain = {"asyncio": asyncio.new_event_loop}
    if item.path.name == "test_hygiene.py":
        return {**plain, "uvloop": uvloop.new_event_loop}
    return plain


class OneNodeLog:
    """A log of one node: a command is applied at once to the real machine."""

    def __init__(self, path: Path) -> None:
        self.machine = GuardianMachine.open(path, cluster_id="c", incarnation=bytes(16))
        self.leader = True
        self.leader_address: str | None = "127.0.0.1:1"
        self.trouble: Problem | None = None  #: what every use of the log raises
        self.stuck: asyncio.Event | None = None  #: what every command waits for
        self.entered = asyncio.Event()  #: set when a command comes to wait
        self.executed: list[AnyCommand] = []
        self._index = 0
        self._chain = GENESIS_CHAIN

    async def execute(self, command: AnyCommand, *, timeout_s: float) -> AnyResult:
        if self.trouble is not None:
            raise self.trouble
        if self.stuck is not None:
            self.entered.set()
            await self.stuck.wait()
        self.executed.append(command)
        self._index += 1
        entry = Entry(
            self._index,
            1,
            EntryType.COMMAND,
            encode_command(command),
            timestamp_ms=1_700_000_000_123,
        )
        self._chain = chain_next(self._chain, encode_entry(entry))
        (result,) = self.machine.apply([entry], AppliedPosition(self._index, 1, self._chain))
        assert result is not None
        return result

    async def barrier(self, *, timeout_s: float) -> None:
        if self.trouble is not None:
            raise self.trouble

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None:
        if revision > self.machine.state.revision():
            raise Problem("unavailable")

    def is_leader(self) -> bool:
        return self.leader

    def leader_http_address(self) -> str | None:
        return self.leader_address

    def require_local(self) -> None:
        return None

    def staleness_ms(self) -> int | None:
        return 0 if self.leader else 17

    def cluster(self) -> ClusterView:
        member = MemberView("node1", "127.0.0.1:7000", "127.0.0.1:8080", True, True)
        leader_id = "node1" if self.leader_address else None
        return ClusterView("node1", "leader", 1, leader_id, self._index, self._index, (member,))


class MemoryMembers:
    """Whom the cluster has, without a cluster."""

    def __init__(self) -> None:
        self.version = 1
        self.members: tuple[WantedMember, ...] = (WantedMember("node1", True),)
        self.caught_up = True
        self.trouble: Problem | None = None
        self.leader = "node1"

    async def change(
        self, members: Sequence[WantedMember], expected_version: int, *, timeout_s: float
    ) -> bool:
        if self.trouble is not None:
            raise self.trouble
        if expected_version != self.version:
            raise Problem("version_conflict", current_version=self.version)
        self.version += 1
        self.members = tuple(members)
        return self.caught_up

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        if self.trouble is not None:
            raise self.trouble
        self.leader = target or "node2"
        return self.leader


class MemoryUsers:
    def __init__(self) -> None:
        self.rows: dict[str, Credentials] = {}
        self.asked = 0  #: how often a user was looked up
        self.away = False

    async def add(self, user: User, password_hash: str) -> None:
        if await self.credentials(user.email) is not None:
            raise Problem("email_taken")
        self.rows[user.id] = Credentials(user, password_hash)

    async def get(self, user_id: str) -> User | None:
        self.asked += 1
        if self.away:
            raise Problem("unavailable")
        row = self.rows.get(user_id)
        return None if row is None else row.user

    async def credentials(self, email: str) -> Credentials | None:
        wanted = email.lower()
        return next((r for r in self.rows.values() if r.user.email.lower() == wanted), None)

    async def set_password_hash(self, user_id: str, password_hash: str) -> None:
        self.rows[user_id] = replace(self.rows[user_id], password_hash=password_hash)

    async def list(self, after_id: str, limit: int) -> list[User]:
        return [self.rows[i].user for i in sorted(self.rows) if i > after_id][:limit]

    async def remove(self, user_id: str) -> bool:
        if user_id not in self.rows:
            return False
        admins = [row for row in self.rows.values() if row.user.is_admin]
        if len(admins) == 1 and admins[0].user.id == user_id:
            raise Problem("last_admin")
        del self.rows[user_id]
        return True

    async def any(self) -> bool:
        return bool(self.rows)

    async def add_first_admin(self, user: User, password_hash: str) -> bool:
        if self.rows:
            return False
        await self.add(user, password_hash)
        return True


class MemoryRefreshTokens:
    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[str, str, str]] = {}

    async def add(self, digest: bytes, family_id: str, user_id: str, expires_at_ms: int) -> None:
        self.rows[digest] = (family_id, user_id, "active")

    async def rotate(
        self, digest: bytes, new_digest: bytes, new_expires_at_ms: int, now_ms: int
    ) -> str:
        if digest not in self.rows:
            raise Problem("invalid_token")
        family_id, user_id, state = self.rows[digest]
        if state == "spent":
            await self.revoke_family_of(digest)
            raise Problem("refresh_reused")
        if state == "revoked":
            raise Problem("invalid_token")
        self.rows[digest] = (family_id, user_id, "spent")
        self.rows[new_digest] = (family_id, user_id, "active")
        return user_id

    async def revoke_family_of(self, digest: bytes) -> bool:
        family = self.rows.get(digest, ("", "", ""))[0]
        for key, (family_id, user_id, _) in list(self.rows.items()):
            if family_id == family:
                self.rows[key] = (family_id, user_id, "revoked")
        return bool(family)


class MemoryRoles:
    def __init__(self, users: MemoryUsers) -> None:
        self.users = users
        self.rows: dict[tuple[str, str], Role] = {}

    async def role(self, project_id: str, user_id: str) -> Role | None:
        return self.rows.get((project_id, user_id))

    async def roles(self, project_ids: Sequence[str], user_id: str) -> dict[str, Role]:
        return {p: self.rows[p, user_id] for p in project_ids if (p, user_id) in self.rows}

    async def list(self, project_id: str, after_user_id: str, limit: int) -> list[RoleGrant]:
        grants = [
            RoleGrant(u, role)
            for (p, u), role in sorted(self.rows.items())
            if p == project_id and u > after_user_id
        ]
        return grants[:limit]

    async def grant(self, project_id: str, grant: RoleGrant) -> None:
        if await self.users.get(grant.user_id) is None:
            raise Problem("not_found")
        self.rows[project_id, grant.user_id] = grant.role

    async def revoke(self, project_id: str, user_id: str) -> bool:
        return self.rows.pop((project_id, user_id), None) is not None


class MemoryProjects:
    def __init__(self, roles: MemoryRoles) -> None:
        self.roles = roles
        self.rows: dict[str, Project] = {}
        self.active: set[str] = set()

    async def add_pending(self, project: Project) -> None:
        self.rows.setdefault(project.id, project)
        self.roles.rows[project.id, project.owner_id] = Role.ADMIN

    async def activate(self, project_id: str) -> None:
        self.active.add(project_id)

    async def remove(self, project_id: str) -> None:
        self.rows.pop(project_id, None)

    async def get(self, project_id: str) -> Project | None:
        return self.rows.get(project_id)

    async def list_visible(
        self, user_id: str | None, owner_id: str | None, after_id: str, limit: int
    ) -> list[Project]:
        visible = [
            self.rows[i]
            for i in sorted(self.active & set(self.rows))
            if i > after_id
            and (user_id is None or (i, user_id) in self.roles.rows)
            and (owner_id is None or self.rows[i].owner_id == owner_id)
        ]
        return visible[:limit]


class MemorySchemas:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, int, bytes], Schema] = {}

    async def add_pending(self, schema: Schema, attempt_id: str) -> None:
        self.rows[schema.id, schema.version, schema.digest] = schema

    async def activate(self, schema_id: str, version: int, attempt_id: str) -> None:
        return None

    async def drop_attempt(self, schema_id: str, attempt_id: str) -> None:
        return None

    async def remove(self, schema_id: str) -> None:
        self.rows = {k: v for k, v in self.rows.items() if k[0] != schema_id}

    async def by_digest(self, schema_id: str, version: int, digest: bytes) -> Schema | None:
        return self.rows.get((schema_id, version, digest))

    async def list(self, after_id: str, limit: int) -> list[Schema]:
        newest = {s.id: s for _, s in sorted(self.rows.items(), key=lambda item: item[0][:2])}
        return [newest[i] for i in sorted(newest) if i > after_id][:limit]

    async def creator(self, schema_id: str) -> str | None:
        return next((s.created_by for k, s in self.rows.items() if k[0] == schema_id), None)


class PlainPasswords:
    async def hash(self, password: str) -> str:
        return "plain:" + password

    async def verify(self, password_hash: str | None, password: str) -> bool:
        return password_hash == "plain:" + password

    def needs_rehash(self, password_hash: str) -> bool:
        return False


class IntegerValidator:
    """Checks that ``rate`` is an integer where the schema mentions it: enough of JSON Schema."""

    async def check_schema(self, body: bytes) -> None:
        if not isinstance(json.loads(body), dict | bool):
            raise Problem("invalid_schema")

    async def validate(self, body: bytes, digest: bytes, document: bytes) -> tuple[Fault, ...]:
        value = json.loads(document)
        if b"rate" in body and isinstance(value, dict) and "rate" in value:
            rate = value["rate"]
            if not isinstance(rate, int):
                return (Fault("/rate", "must be an integer"),)
        return ()


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_123


@dataclass
class FixedHealth:
    current: HealthReport = field(default_factory=lambda: HealthReport(True, True, True))

    def report(self) -> HealthReport:
        return self.current


@dataclass
class Answer:
    """A response that was read to its end."""

    status: int
    headers: Any
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        """The problem's code; what is no problem fails the test that asks."""
        assert self.headers["Content-Type"] == "application/problem+json", self.raw
        return str(self.json["code"])


class World:
    """The running service, what stands behind it, and short ways to talk to it."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.settings = settings
        self.log = OneNodeLog(path)
        self.members = MemoryMembers()
        self.users = MemoryUsers()
        self.roles = MemoryRoles(self.users)
        self.tokens = JwtTokens({"1": SECRET}, "1")
        self.health = FixedHealth()
        self.metrics = Metrics()
        self.services = Services.of(
            Ports(
                log=self.log,
                state=self.log.machine.state,
                users=self.users,
                refresh_tokens=MemoryRefreshTokens(),
                projects=MemoryProjects(self.roles),
                roles=self.roles,
                schemas=MemorySchemas(),
                passwords=PlainPasswords(),
                tokens=self.tokens,
                validator=IntegerValidator(),
                api_keys=ApiKeys(),
                clock=FixedClock(),
                members=self.members,
                accounts=AccountPolicy(registration_open=settings.registration == "open"),
            )
        )
        self.application = build_application(
            self.services, self.log, self.health, settings, self.metrics, version="1.2.3"
        )
        self.server = HttpServer(
            self.application,
            settings,
            self.metrics,
            metrics_application=build_metrics_application(self.metrics),
            shutdown_timeout_s=1.0,
        )
        self.session: aiohttp.ClientSession

    async def start(self) -> None:
        await self.server.start()
        # encoded slashes must arrive as they are, and nothing is kept alive between tests
        self.session = aiohttp.ClientSession(
            f"http://{self.server.address}", timeout=aiohttp.ClientTimeout(total=30)
        )
        await self.add_user("root", is_admin=True)

    async def stop(self) -> None:
        await self.session.close()
        await self.server.stop()
        self.log.machine.close()

    async def add_user(self, name: str, *, is_admin: bool = False) -> str:
        """A user whose id is its name; the access token."""
        user = User(name, f"{name}@example.org", is_admin, 1_700_000_000_123)
        await self.users.add(user, "plain:" + PASSWORD)
        return self.token(name)

    def token(self, name: str) -> str:
        return self.tokens.issue_access(self.users.rows[name].user)

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        as_user: str | None = None,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """One request. ``path`` is sent as it is, below ``/api/v1`` unless it begins with //."""
        sent = dict(headers or {})
        if as_user is not None:
            sent["Authorization"] = f"Bearer {self.token(as_user)}"
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        full = path[1:] if path.startswith("//") else "/api/v1" + path
        async with self.session.request(
            method,
            URL(f"http://{self.server.address}{full}", encoded=True),
            data=data,
            headers=sent,
            allow_redirects=False,
            skip_auto_headers=("Content-Type",),
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def furnish(self) -> tuple[str, str, str]:
        """A project of ``owner``, its API key, and a schema; ``owner`` is created."""
        await self.add_user("owner")
        project = (await self.ask("POST", "/projects", {"name": "p"}, as_user="owner")).json
        answer = await self.ask(
            "POST", "/schemas", {"name": "s", "schema": SCHEMA}, as_user="owner"
        )
        assert answer.status == 201, answer.raw
        return project["id"], project["api_key"], answer.json["id"]


def settings_for_tests(**changes: Any) -> Settings:
    """Defaults on a free port, with waits short enough for tests of waiting."""
    settings = load_settings(environ={})
    return replace(settings, http=HostPort("127.0.0.1", 0), **changes)


@pytest.fixture
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The service with default settings, or those of an indirect parameter."""
    changes = getattr(request, "param", {})
    made = World(tmp_path / "state", settings_for_tests(**changes))
    await made.start()
    yield made
    await made.stop()
