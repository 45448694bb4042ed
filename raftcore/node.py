"""One member of a cluster, for those who use it: propose, read, hand over, look, stop.

The work is done by :class:`~raftcore.runtime.driver.Driver`; this is its life and its public face.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence

from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.messages import AppendRequest, Heartbeat, Message
from raftcore.core.types import Configuration, Lease, Member, NodeId
from raftcore.errors import (
    IdentityError,
    InvalidArgumentError,
    NotLeaderError,
    OutcomeUnknownError,
    RaftcoreError,
    StoppedError,
)
from raftcore.metrics import Sample, storage_samples, transport_samples
from raftcore.runtime.admission import Admission, JoinPolicy, is_member
from raftcore.runtime.driver import ConfigurationCallback, Driver, LeadershipCallback
from raftcore.runtime.figures import gauges
from raftcore.runtime.members import (
    CHANGE_TIMEOUT_S,
    Changed,
    MemberCommands,
    check_lease,
    check_outcome,
    complete,
    wanted_members,
)
from raftcore.runtime.observer import EventCallback, Observer
from raftcore.runtime.operations import Operations
from raftcore.runtime.options import NodeOptions, Runtime
from raftcore.runtime.status import NodeStatus
from raftcore.runtime.waiters import check_timeout
from raftcore.statemachine import StateMachine
from raftcore.storage.base import LogStorage
from raftcore.tools.archive import Archived, backup_running
from raftcore.trace import Kind, Tracer
from raftcore.transport.base import Transport
from raftcore.transport.options import TransportStats

logger = logging.getLogger(__name__)

RequestHandler = Callable[[NodeId, bytes], Awaitable[bytes]]


class Node(Operations, MemberCommands):
    """One member of a cluster. Use as an async context manager.

    A node that is removed from the cluster goes on as a silent follower, so that its state can
    still be looked at; :attr:`removed` says so, and what needs the cluster is refused.

    Args:
        config: the core's timing and bounds.
        storage: the node's log; the node closes it.
        transport: carries messages to the other members; the node starts and closes it.
        state_machine: what committed entries are applied to; the node closes it.
        options: settings of the runtime.
        on_request: answers application requests from other members.
        on_join: asked whether a node that wants to join may; without it an operator has to add it,
            and :attr:`pending_joiners` says who waits.
        tracer: told what happens, see ``raftcore.trace``.
        runtime: clocks, randomness and threads.

    Raises (on entering): what :meth:`start` does.
    """

    def __init__(
        self,
        *,
        config: CoreConfig,
        storage: LogStorage,
        transport: Transport,
        state_machine: StateMachine,
        options: NodeOptions | None = None,
        on_request: RequestHandler | None = None,
        on_join: JoinPolicy | None = None,
        tracer: Tracer | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(options or NodeOptions(), runtime or Runtime())
        self.config = config
        #: the state machine began empty or was thrown away at this start: until a read barrier has
        #: passed it is older than what this node may have shown before
        self.rebuilt = False
        self._storage = storage
        self._transport = transport
        self._machine = state_machine
        self._request_handler = on_request
        self._admission = Admission(on_join, self._admit, self.options.max_pending_joiners)
        self._tracer = tracer
        self._event_callbacks: list[EventCallback] = []
        self._leadership_callbacks: list[LeadershipCallback] = []
        self._configuration_callbacks: list[ConfigurationCallback] = []
        self._failure: BaseException | None = None
        self._stopped: asyncio.Event | None = None
        self._failed_or_stopped = asyncio.Event()
        self._shutdown: asyncio.Task[None] | None = None
        self._caught_up_ns: int | None = None

    # -- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Recover, listen, and take part. Returns once the node is running, leader or not.

        A node that could not start has closed what it was given, unless one of the first two errors
        says that it never began.

        Raises:
            StoppedError: it was started before; a node has one life, make another.
            IdentityError: the log belongs to another node than ``config`` says.
            StorageError: the log or the state machine can not be used.
            ListenError: peers can not be listened to.
        """
        if self._stopped is not None:
            raise StoppedError("a node is started once: make another one on the same storage")
        owner = self._storage.identity.node_id
        if owner != self.config.node_id:
            raise IdentityError(
                f"the log belongs to {owner}, the settings are for {self.config.node_id}"
            )
        self._stopped = asyncio.Event()
        observer = Observer(
            self.config.node_id,
            self.counters,
            self._runtime.clock_ns,
            self._tracer,
            self._event_callbacks,
        )
        driver = Driver(
            config=self.config,
            options=self.options,
            storage=self._storage,
            transport=self._transport,
            machine=self._machine,
            runtime=self._runtime,
            observer=observer,
            on_failure=self._on_failure,
        )
        try:
            self.rebuilt = (await driver.recover()).rebuilt
            driver.leadership_callbacks = self._leadership_callbacks
            driver.configuration_callbacks = self._configuration_callbacks
            driver.committed_callbacks.append(self._admission.on_committed)
            driver.configure_transport()
            self._driver = driver
            await self._transport.start(self)
        except BaseException:
            if self._closing:
                await self._stopped.wait()
            else:
                self._closing = True
                await self._close(driver)
            raise
        if self._closing:  # it failed, or somebody stopped it, while it was about to listen
            await self._stopped.wait()
            raise self._failure or StoppedError("the node was stopped before it had started")
        driver.run()

    async def stop(self, *, handover: bool = True) -> None:
        """Hand leadership over if this node leads, then stop everything. Safe to call twice.

        Proposals still waiting end as :class:`OutcomeUnknownError`.
        """
        if self._stopped is None or self._driver is None:
            return
        if self._closing:
            await self._stopped.wait()
            return
        raft = self._driver.raft
        if handover and raft.is_leader and len(raft.configuration.voters) > 1:
            await self._hand_over()
        if not self._closing:
            self._closing = True
            await self._close(self._driver)
        await self._stopped.wait()

    async def _hand_over(self) -> None:
        try:
            async with asyncio.timeout(self.options.handover_timeout_s):
                await self.transfer_leadership()
        except (TimeoutError, RaftcoreError) as error:
            logger.info("stopping without a successor: %s", error)

    async def _close(self, driver: Driver) -> None:
        """Answer who waits, close what was given to us, whatever fails on the way."""
        assert self._stopped is not None
        driver.close()
        failure = None if self._failure is None else repr(self._failure)
        driver.observer.trace(Kind.NODE_STOPPED, failure=failure)
        driver.end_waiters(f"the node stopped: {failure}" if failure else "the node stopped")
        loop = asyncio.get_running_loop()
        ended = False
        try:
            try:
                try:
                    await self._admission.close()
                finally:
                    await self._transport.close()
            finally:
                ended = await driver.stop_workers()
        finally:
            try:
                if ended:
                    await loop.run_in_executor(None, self._machine.close)
            finally:
                if ended:
                    await loop.run_in_executor(None, self._storage.close)
                else:
                    logger.error("a worker of node %s hangs and is left", self.config.node_id)
                self._stopped.set()
                self._failed_or_stopped.set()

    async def wait_stopped(self) -> None:
        """Until the node stops. Raises what made it stop, if something did. To be removed from the
        cluster does not stop it: :meth:`on_event` and :attr:`removed` tell of that.

        Raises:
            StorageError: the first storage error (rule 46).
            StateMachineError: the state machine broke its contract.
            InvariantError: the protocol's invariants do not hold.
            StoppedError: the node was not started.
        """
        if self._stopped is None:
            raise StoppedError("the node was not started: there is no end to wait for")
        # A failure is told at once: closing may hang on the very disk that failed.
        await self._failed_or_stopped.wait()
        if self._failure is not None:
            raise self._failure

    def _on_failure(self, error: BaseException) -> None:
        """The first failure is final: say nothing more, and let the process end (rule 46)."""
        if self._failure is not None:
            return
        self._failure = error
        self._failed_or_stopped.set()
        logger.critical("node %s stops: %r", self.config.node_id, error)
        if self._driver is not None:
            self._driver.observer.trace(Kind.NODE_FAILED, error=repr(error))
        if not self._closing and self._driver is not None:
            self._closing = True
            self._shutdown = asyncio.get_running_loop().create_task(self._close(self._driver))

    # -- members --------------------------------------------------------------------------------

    async def change_members(
        self,
        members: Sequence[Member],
        *,
        version: int,
        timeout_s: float = CHANGE_TIMEOUT_S,
    ) -> Changed:
        """State all members that are wanted, on the leader, and await that it is so.

        New voters catch up first; a leader that is to go hands over first. What was begun goes on
        when this node stops leading or the caller stops waiting. Short forms: :meth:`add_voter`,
        :meth:`remove` and others.

        Args:
            members: everybody wanted; ``voter`` says as what. An empty incarnation stands for that
                of the member, or of the pending joiner, of that id.
            version: :attr:`configuration_version` as it was when the caller looked.
            timeout_s: how long to wait.

        Returns:
            The configuration and its version.

        Raises:
            NotLeaderError, NotReadyError, ChangeInProgressError: ask the leader, or ask again.
            StaleVersionError: the members changed meanwhile; look again.
            InvalidChangeError: what is wanted can not be.
            InvalidArgumentError, StoppedError, RemovedError: refused.
            NotCaughtUpError: a new voter did not catch up; it is a learner now.
            OutcomeUnknownError: it may still come about.
        """
        driver = self._member()
        if type(version) is not int:
            raise InvalidArgumentError(f"a version is a number, not {version!r:.80}")
        current = driver.raft.configuration
        wanted = complete(members, current, self._admission.pending)
        return await self._change(driver, wanted, version, current.lease, timeout_s)

    async def set_lease(
        self, lease: Lease | None, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Turn lease reads on, off or to other terms, for all members. As :meth:`change_members`;
        whoever turns them on vouches for the members' clocks (rule 35)."""
        driver = self._member()
        check_lease(lease, self.config.heartbeat_ms)
        current, version = driver.raft.configuration, driver.raft.configuration_index
        wanted = tuple(wanted_members(current))
        return await self._change(driver, wanted, version, lease, timeout_s)

    async def _change(
        self,
        driver: Driver,
        wanted: tuple[Member, ...],
        version: int,
        lease: Lease | None,
        timeout_s: float,
    ) -> Changed:
        check_timeout(timeout_s)
        if not driver.raft.is_leader:
            raise NotLeaderError(driver.raft.leader_id)
        token, future = driver.changes.add(asyncio.get_running_loop())
        request = ev.MembershipRequested(driver.now_ns(), token, version, wanted, lease)
        driver.deliver(request)
        try:
            async with asyncio.timeout(timeout_s):
                finished, configuration = await future
        except TimeoutError:
            raise OutcomeUnknownError(
                "the change did not end in time; it may still come about"
            ) from None
        finally:
            driver.changes.forget(token)
        check_outcome(finished)
        return configuration, finished.version

    @property
    def configuration(self) -> Configuration:
        """The configuration in force here."""
        return self._running().raft.configuration

    @property
    def configuration_version(self) -> int:
        """Its version: the log index of its entry."""
        return self._running().raft.configuration_index

    @property
    def removed(self) -> str | None:
        """Why this node is out of the cluster for good, or None."""
        return self._driver.removed if self._driver is not None else None

    @property
    def pending_joiners(self) -> tuple[Member, ...]:
        """Who asked this node to join and is no member. Give one to :meth:`add_voter` or
        :meth:`add_learner` to let it in."""
        return self._admission.pending

    async def _admit(self, joiner: Member) -> None:
        add = self.add_voter if joiner.voter else self.add_learner
        await add(joiner)

    # -- the rest -------------------------------------------------------------------------------

    async def request(self, to: NodeId, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask another member's application; see :meth:`Transport.request` for the errors.

        Raises also:
            InvalidArgumentError: the payload is not bytes, or this node itself is to be asked.
        """
        self._running()
        if not isinstance(payload, bytes):
            raise InvalidArgumentError(f"a request is bytes, not {type(payload).__name__}")
        if to == self.config.node_id:
            raise InvalidArgumentError(f"{to} is this node: it does not ask itself")
        check_timeout(timeout_s)
        return await self._transport.request(to, payload, timeout_s)

    async def snapshot(self) -> int:
        """Take a snapshot now; returns the index it stands at."""
        driver = self._running()
        return await driver.snapshotting.take(driver.raft)

    async def backup(self, path: str | os.PathLike[str]) -> Archived:
        """Take a snapshot now and archive it, with this node's identity, in the new file ``path``.

        ``raftcore restore`` makes a new cluster from it. It holds everything that this node had
        applied; on the leader, after a read barrier, everything acknowledged before the call.

        Raises:
            RefusedError: ``path`` exists, or the snapshot was replaced meanwhile (try again).
            OverloadedError: a snapshot is being taken already.
            StorageError: the archive could not be written, or the snapshot not be read.
        """
        await self.snapshot()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, backup_running, self._storage, path)

    def status(self) -> NodeStatus:
        """A picture of now, see :meth:`NodeStatus.describe` for words."""
        driver = self._running()
        return NodeStatus(
            core=driver.raft.status(),
            configuration=driver.raft.configuration,
            configuration_version=driver.raft.configuration_index,
            connected=self._transport.connected(),
            pending_proposals=len(driver.proposals),
            pending_waits=len(driver.waits),
            disk=driver.disk_status(),
            storage=self._storage.stats(),
            snapshot=driver.snapshotting.status(),
            apply_lag_ms=driver.observer.apply_age_ns() // 1_000_000,
            staleness_ms=self.staleness_ms(),
            oldest_entry_age_ms=driver.maintenance.oldest_entry_age_ms(),
            quarantine=driver.quarantine,
            removed=driver.removed,
            joiners=self._admission.pending,
            counters=self.counters,
            failed=repr(self._failure) if self._failure else None,
        )

    def figures(self) -> list[Sample]:
        """Every figure that has a value now, see ``raftcore.metrics``."""
        driver = self._running()
        samples = [*self.counters.samples(), *gauges(self.status())]
        samples += driver.observer.measures.samples()
        samples += storage_samples(self._storage.stats())
        stats = getattr(self._transport, "stats", None)
        if isinstance(stats, TransportStats):
            samples += transport_samples(stats)
        return samples

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows: it may have been deposed just now. What must
        not be stale goes through :meth:`propose` or :meth:`read_barrier`."""
        return self._driver is not None and not self._closing and self._driver.raft.is_leader

    @property
    def leader_id(self) -> NodeId | None:
        """Who leads, as far as this node knows; None if it knows nobody, or was not started."""
        return self._driver.raft.leader_id if self._driver is not None else None

    def staleness_ms(self) -> int | None:
        """How old the local state may be, at most, as far as this node can see.

        On a follower: age of the last message of the leader at which everything that it had
        committed was applied here. On a leader: age of its last contact with a quorum, since until
        then nobody else can have led. None if neither ever was.

        A follower counts from when it got the message: how long that had been on its way, it does
        not know. Who needs certainty uses :meth:`read_barrier`.
        """
        raft = self._driver.raft if self._driver is not None else None
        if raft is not None and raft.quorum_contact_ns is not None:
            if len(raft.configuration.voters) == 1:
                return 0
            self._caught_up_ns = raft.quorum_contact_ns
        if self._caught_up_ns is None:
            return None
        return max(self._runtime.clock_ns() - self._caught_up_ns, 0) // 1_000_000

    def on_leadership(self, callback: LeadershipCallback) -> None:
        """Call ``callback`` on the loop whenever role, term or known leader changes."""
        self._leadership_callbacks.append(callback)

    def on_configuration(self, callback: ConfigurationCallback) -> None:
        """Call ``callback`` on the loop whenever another configuration comes into force."""
        self._configuration_callbacks.append(callback)

    def on_event(self, callback: EventCallback) -> None:
        """Call ``callback`` on the loop with every :class:`~raftcore.trace.TraceEvent`: removal,
        quarantine, a disk that hangs, a follower that lost data, and all the rest."""
        self._event_callbacks.append(callback)

    # -- from the transport ---------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        driver = self._driver
        if driver is None or self._closing:
            return
        driver.observer.heard(message)
        driver.deliver(ev.MessageReceived(driver.now_ns(), message))
        if isinstance(message, Heartbeat):
            self._note_contact(driver, message.sender, message.leader_commit)
        elif isinstance(message, AppendRequest):
            self._note_contact(driver, message.sender, message.commit)

    def _note_contact(self, driver: Driver, sender: NodeId, leader_commit: int) -> None:
        """The leader was heard, and all that it had committed then is applied here."""
        if sender == driver.raft.leader_id and driver.raft.applied_index >= leader_commit:
            self._caught_up_ns = driver.now_ns()

    def on_peer_lost(self, peer: NodeId) -> None:
        driver = self._driver
        if driver is not None and not self._closing:
            member = any(known.node_id == peer for known in driver.raft.peers)
            driver.observer.peer_lost(peer, member=member)
            driver.deliver(ev.PeerUnreachable(driver.now_ns(), peer))

    async def on_join(self, joiner: Member) -> Configuration:
        driver = self._member()
        raft = driver.raft
        if not is_member(raft.committed_configuration, joiner) and not raft.is_leader:
            raise NotLeaderError(raft.leader_id)
        asks_anew = joiner not in self._admission.pending
        admitted = False
        try:
            configuration = await self._admission.ask(joiner, lambda: raft.committed_configuration)
            admitted = True
        finally:
            if asks_anew or admitted:  # one that waits for an operator asks again and again
                driver.observer.trace(
                    Kind.JOINER_ASKED,
                    joiner=joiner.node_id, address=joiner.address, voter=joiner.voter,
                    admitted=admitted,
                )  # fmt: skip
        return configuration

    def on_removed(self, detail: str) -> None:
        if self._driver is not None and not self._closing:
            self._driver.note_removed(detail)

    async def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        if self._request_handler is None or self._closing:
            raise StoppedError("this node answers no requests")
        return await self._request_handler(sender, payload)
