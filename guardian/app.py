"""The one place where everything is wired: from settings to a running node.

Order of starting: the data directory's lock (so that a second process is told so before anything
else happens), PostgreSQL if it is ours, the member's log and state, the node, and last the HTTP
service. Stopping goes the other way round: readiness first, then requests, leadership, stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.errors import PostgresAwayError, PostgresError
from guardian.adapters.postgres.migrate import Migrator
from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.projector import Projector
from guardian.adapters.postgres.projects import PostgresProjects
from guardian.adapters.postgres.reconciler import Reconciler
from guardian.adapters.postgres.refresh_tokens import PostgresRefreshTokens
from guardian.adapters.postgres.roles import PostgresRoles
from guardian.adapters.postgres.schemas import PostgresSchemas
from guardian.adapters.postgres.users import PostgresUsers
from guardian.adapters.raft.log import ClusterLog
from guardian.adapters.raft.members import HTTP_ATTRIBUTE, ClusterMembers
from guardian.adapters.schemas.guard import SchemaLimits
from guardian.adapters.schemas.pool import PoolLimits, WorkerPool
from guardian.adapters.security.api_keys import ApiKeys
from guardian.adapters.security.passwords import Argon2Passwords
from guardian.adapters.security.tokens import JwtTokens
from guardian.domain.problems import CODES, Problem
from guardian.fsm.machine import GuardianMachine
from guardian.http import (
    HttpServer,
    NodeHealth,
    build_application,
    build_metrics_application,
)
from guardian.node_metrics import NodeCollector, watch_loop_lag
from guardian.place import addresses, founders_of, join_of, tls_of
from guardian.settings import Settings
from guardian.telemetry import Metrics
from guardian.usecases.accounts import AccountPolicy
from guardian.usecases.services import Ports, Services
from raftcore import CoreConfig, Node, NodeOptions
from raftcore.core.effects import LeadershipChanged
from raftcore.core.types import Member
from raftcore.errors import RemovedError
from raftcore.startup import Member as OpenedMember
from raftcore.startup import open_member
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog
from raftcore.trace import Kind, TraceEvent
from raftcore.transport.handshake import Facts

logger = logging.getLogger(__name__)

STATE_SYNC_S = 10.0
DATABASE_CHECK_S = 2.0
RETRY_S = 2.0
#: How long one try to tell the cluster of another address may take.
ANNOUNCE_S = 5.0
#: Of the ten seconds that a stop may take, what requests in flight get; aiohttp may take it twice,
#: once to wait and once to cancel.
DRAIN_S = 2.5
#: Of the ten seconds that a stop may take, what the hand-over of leadership gets at most.
HANDOVER_S = 2.0


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """The administrator to create if there is no user at all."""

    email: str
    password: str
    on_created: Callable[[str, str], None]


class WallClock:
    """Implements :class:`guardian.usecases.ports.Clock`."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class Guardian:
    """One node of Guardian.

    Args:
        settings: what the operator asked for.
        directory: the locked data directory; closed by :meth:`stop`.
        storage: the directory's log if it holds a cluster, opened; None on an empty directory.
        database_url: of the PostgreSQL to use.
        jwt_secret: key of access tokens.
        first_admin: created once, by whichever node is first.
        postgres: the embedded server, if it is ours, to be supervised.
        on_progress: told what founding a cluster waits for.
    """

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        *,
        database_url: str,
        jwt_secret: bytes,
        first_admin: FirstAdmin,
        storage: LmdbLog | None = None,
        postgres: EmbeddedPostgres | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._directory = directory
        self._storage = storage
        self._database_url = database_url
        self._jwt_secret = jwt_secret
        self._first_admin = first_admin
        self._postgres = postgres
        self._on_progress = on_progress
        self._database_up = False
        self._database_prepared = False
        self._database_trouble = ""  # what was last said about it, to say it once
        self._health: NodeHealth | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._leading: asyncio.Task[None] | None = None
        self._cleanup = contextlib.AsyncExitStack()
        self._failed: asyncio.Future[None] | None = None

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up and listening. What fails on the way undoes what was done.

        Raises:
            StorageError, BootstrapError: the member can not run (each has an exit code).
            PostgresError: the schema is old and may not be migrated, or newer than this program.
            OSError: an address is taken.
        """
        self._failed = asyncio.get_running_loop().create_future()
        self._cleanup.callback(self._directory.close)
        try:
            await self._start()
        except BaseException:
            if not self._failed.cancel():  # what ends the start is what is told
                self._failed.exception()
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self.settings
        member = await open_member(
            self._directory,
            founders=() if self._directory.identity or settings.join else founders_of(settings),
            join=join_of(settings),
            listen=(settings.raft.host, settings.raft.port),
            storage=self._storage,
            on_progress=self._on_progress,
            tls=tls_of(settings),
            allow_plain=settings.raft_plain == "on",
            facts=Facts(election_timeout_ms=settings.election_timeout_ms),
        )
        machine = await asyncio.to_thread(
            GuardianMachine.open,
            self._directory.path / "state",
            cluster_id=member.identity.cluster_id,
            incarnation=member.identity.incarnation,
        )
        self._members = ClusterMembers()
        self._log = ClusterLog(machine.state, self._members)
        self._database = Database(self._database_url, max_size=settings.database_pool)
        self._reconcilable = PostgresProjects(self._database), PostgresSchemas(self._database)
        self._refresh_tokens = PostgresRefreshTokens(self._database)
        self.node = self._build_node(member, machine)
        self._machine = machine
        self.node.on_event(self._on_event)  # before the start, which may find that it was removed
        await self.node.start()
        self._cleanup.push_async_callback(self.node.stop)
        if self.node.removed is not None:
            raise RemovedError(self.node.removed)
        self._log.attach(self.node)
        self._members.attach(self.node)
        if member.joining is not None:
            self._background(lambda: self._become_member(member))
        self._hook(machine, member.identity.cluster_id)
        await self._database.open()
        self._cleanup.push_async_callback(self._database.close)
        await self._serve(machine)
        self._keep_up()
        gc.collect()
        gc.freeze()  # what lives now lives for ever: no collection has to look at it again

    def _build_node(self, member: OpenedMember, machine: GuardianMachine) -> Node:
        settings = self.settings
        return Node(
            config=CoreConfig(
                settings.node_id,
                heartbeat_ms=settings.heartbeat_ms,
                election_timeout_ms=settings.election_timeout_ms,
                trailing_entries=settings.trailing_entries,
            ),
            storage=member.storage,
            transport=member.transport,
            state_machine=machine,
            options=NodeOptions(
                snapshot_entries=settings.snapshot_entries,
                snapshot_bytes=settings.snapshot_bytes,
                handover_timeout_s=HANDOVER_S,
            ),
            on_request=self._log.on_request,
            on_join=self._may_join,
        )

    async def _may_join(self, _joiner: Member) -> bool:
        """By the settings; whoever may not is remembered for an administrator."""
        return self.settings.admit == "all"

    async def _become_member(self, member: OpenedMember) -> None:
        """Beside the running node: it can only catch up while it runs."""
        configuration = await member.become_member(self._on_progress)
        if configuration is not None:
            logger.info("this node is a member of cluster %s now", configuration.cluster_id)

    def _hook(self, machine: GuardianMachine, cluster_id: str) -> None:
        """Let applied revisions and leadership reach those who wait for them."""
        loop = asyncio.get_running_loop()
        projects, schemas = self._reconcilable
        self._projector = Projector(self._database, machine.state, cluster_id, self._log.is_leader)
        self._reconciler = Reconciler(
            self._log, machine.state, projects, schemas, self._refresh_tokens
        )

        def on_applied(revision: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                loop.call_soon_threadsafe(self._applied, revision)

        machine.on_applied(on_applied)
        self.node.on_leadership(self._on_leadership)
        self.metrics.registry.register(NodeCollector(self.node, machine.state, self._projector))

    def _applied(self, revision: int) -> None:
        self._log.on_applied(revision)
        self._projector.notify()

    async def _serve(self, machine: GuardianMachine) -> None:
        settings = self.settings
        passwords = Argon2Passwords()
        self._cleanup.callback(passwords.close)
        validator = WorkerPool(
            PoolLimits(
                schema=SchemaLimits(
                    settings.schema_bytes, settings.schema_nodes, settings.schema_depth
                ),
                compile_ms=int(settings.schema_compile_s * 1000),
            )
        )
        self._cleanup.push_async_callback(validator.close)
        projects, schemas = self._reconcilable
        self._services = Services.of(
            Ports(
                log=self._log,
                state=machine.state,
                users=PostgresUsers(self._database),
                refresh_tokens=self._refresh_tokens,
                projects=projects,
                roles=PostgresRoles(self._database),
                schemas=schemas,
                passwords=passwords,
                tokens=JwtTokens({"1": self._jwt_secret}, "1", access_ttl_s=settings.access_ttl_s),
                validator=validator,
                api_keys=ApiKeys(),
                clock=WallClock(),
                members=self._members,
                accounts=AccountPolicy(
                    registration_open=settings.registration == "open",
                    refresh_ttl_s=settings.refresh_ttl_s,
                    failures_per_account=settings.login_failures_per_account,
                    failures_per_address=settings.login_failures_per_address,
                    window_s=settings.login_window_s,
                ),
            )
        )
        await self._prepare_database()
        self._health = NodeHealth(self._log, lambda: self._database_up)
        application = build_application(
            self._services, self._log, self._health, settings, self.metrics
        )
        self.http = HttpServer(
            application,
            settings,
            self.metrics,
            metrics_application=build_metrics_application(self.metrics),
            shutdown_timeout_s=DRAIN_S,
        )
        await self.http.start()
        self._cleanup.push_async_callback(self.http.stop)

    async def stop(self) -> None:
        """Finish what is in flight, hand leadership over, close everything. Safe to repeat."""
        if self._health is not None:
            self._health.drain()
            self._log.drain()
        tasks = [*self._tasks, *([self._leading] if self._leading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._cleanup.aclose()

    async def wait(self) -> None:
        """Until the node can not go on; raises why.

        Raises:
            StorageError, InvariantError: the member failed.
            PostgresError: the embedded server can not be kept running.
        """
        assert self._failed is not None, "the node was not started"
        await self._failed

    # -- in the background ----------------------------------------------------------------------

    def _keep_up(self) -> None:
        self._background(self.node.wait_stopped)
        self._background(self._announce_addresses)
        self._background(self._log.allow_local_when_caught_up)
        self._background(self._sync_state)
        self._background(self._watch_database)
        self._background(lambda: watch_loop_lag(self.metrics))
        if self._postgres is not None:
            self._background(self._postgres.supervise)
        if not self._database_prepared:
            self._background(self._prepare_database_later)

    def _background(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run for the node's life; a failure is the node's."""

        async def run() -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits for the node
                if self._failed is not None and not self._failed.done():
                    self._failed.set_exception(error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_leadership(self, change: LeadershipChanged) -> None:
        if change.role == "leader":
            self._lead()

    def _on_event(self, event: TraceEvent) -> None:
        """A node that was removed has nothing left to do; whoever waits for an answer gets it."""
        if event.kind is Kind.REMOVED and self._failed is not None and not self._failed.done():
            self._failed.set_exception(RemovedError(self.node.removed or "from the cluster"))

    def _lead(self) -> None:
        """Project and reconcile for as long as this node leads; both end by themselves."""
        if not self._database_prepared or not self._log.is_leader():
            return
        if self._leading is None or self._leading.done():
            self._leading = asyncio.create_task(self._lead_until_deposed())

    async def _lead_until_deposed(self) -> None:
        while self._log.is_leader():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._guarded("projector", self._projector.run))
                group.create_task(self._guarded("reconciler", self._reconciler.run))

    async def _guarded(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A defect in what only mirrors must not take the truth down with it; it is tried again."""
        try:
            await work()
        except Exception:
            logger.exception("the %s failed and is started again", name)
            await asyncio.sleep(RETRY_S)

    async def _sync_state(self) -> None:
        """Flush the disposable state off the write path (D5.4); an error is a storage error."""
        while True:
            await asyncio.sleep(STATE_SYNC_S)
            await asyncio.to_thread(self._machine.sync)

    async def _watch_database(self) -> None:
        while True:
            answers = await self._database.ping()
            self._database_up = answers and self._database_prepared
            await asyncio.sleep(DATABASE_CHECK_S)

    async def _announce_addresses(self) -> None:
        """Have the cluster call this node where it is now. A log that names other addresses was
        written before the settings were changed."""
        settings = self.settings
        address, http = addresses(settings)
        while True:
            member = self.node.configuration.member(settings.node_id)
            attributes = {} if member is None else dict(member.attributes)
            said = None if member is None else (member.address, attributes.get(HTTP_ATTRIBUTE))
            if said in (None, (address, http)):
                return
            try:
                await self._members.announce(
                    address, attributes | {HTTP_ATTRIBUTE: http}, timeout_s=ANNOUNCE_S
                )
            except Problem as problem:
                logger.info("the members still have other addresses of this node: %s", problem)
                await asyncio.sleep(RETRY_S)
            else:
                logger.info("the members call this node at %s and %s now", address, http)

    # -- the database's own preparations --------------------------------------------------------

    async def _prepare_database(self) -> None:
        """Migrate and create the first administrator, or leave it for later if PostgreSQL is away.

        Raises:
            PostgresError: the schema can not be used, or the administrator not be created.
        """
        try:
            await asyncio.to_thread(self._migrate)
            await self._ensure_first_admin()
            await self._database.durability_warnings()
        except (PostgresAwayError, Problem) as error:
            if isinstance(error, Problem) and CODES[error.code].retry == "no":
                raise PostgresError(f"the first administrator: {error}") from error
            self._warn_of_database(f"PostgreSQL is away: {error}")
            return
        self._database_up = True
        self._database_prepared = True
        self._lead()

    async def _prepare_database_later(self) -> None:
        """Until it is done. What would have refused the start must not end a node that runs."""
        while not self._database_prepared:
            await asyncio.sleep(RETRY_S)
            try:
                await self._prepare_database()
            except PostgresError as error:
                self._warn_of_database(f"PostgreSQL can not be used: {error}", logging.ERROR)

    def _warn_of_database(self, trouble: str, level: int = logging.WARNING) -> None:
        """Once, not at every attempt."""
        if trouble != self._database_trouble:
            logger.log(level, "%s; routes that need it answer 503", trouble)
        self._database_trouble = trouble

    def _migrate(self) -> None:
        migrator = Migrator(self._database_url)
        if self.settings.migrate != "auto":
            migrator.require_current()
        elif done := migrator.up():
            logger.info("the database schema was brought to version %d", done[-1])

    async def _ensure_first_admin(self) -> None:
        admin = self._first_admin
        user = await self._services.accounts.ensure_first_admin(admin.email, admin.password)
        if user is not None:
            admin.on_created(user.email, admin.password)
