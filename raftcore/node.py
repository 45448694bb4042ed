"""One member of a cluster, for those who use it: propose, read, hand over, look, stop.

The work is done by :class:`~raftcore.driver.Driver`; this is its life and its public face.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from raftcore import waiters
from raftcore.core import effects as fx
from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.messages import AppendRequest, Heartbeat, Message
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.driver import ConfigurationCallback, Driver, LeadershipCallback
from raftcore.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RaftcoreError,
    RefusedError,
    StoppedError,
    StorageFullError,
    UnknownPeerError,
)
from raftcore.runtime import NodeOptions, Runtime
from raftcore.statemachine import StateMachine
from raftcore.status import Counters, NodeStatus, Proposed
from raftcore.storage.base import LogStorage
from raftcore.tools.archive import Archived, backup_running
from raftcore.transport.base import Transport

logger = logging.getLogger(__name__)

RequestHandler = Callable[[NodeId, bytes], Awaitable[bytes]]


class Node:
    """One member of a cluster. Use as an async context manager.

    Args:
        config: the core's timing and bounds.
        storage: the node's log; the node closes it.
        transport: carries messages to the other members; the node starts and closes it.
        state_machine: what committed entries are applied to; the node closes it.
        options: settings of the runtime.
        on_request: answers application requests from other members.
        runtime: clocks, randomness and threads.

    Raises (on entering):
        StorageError: the log or the state machine can not be used.
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
        runtime: Runtime | None = None,
    ) -> None:
        self.config = config
        self.options = options or NodeOptions()
        self.counters = Counters()
        #: the state machine began empty or was thrown away at this start: until a read barrier has
        #: passed it is older than what this node may have shown before
        self.rebuilt = False
        self._storage = storage
        self._transport = transport
        self._machine = state_machine
        self._request_handler = on_request
        self._runtime = runtime or Runtime()
        self._leadership_callbacks: list[LeadershipCallback] = []
        self._configuration_callbacks: list[ConfigurationCallback] = []
        self._driver: Driver | None = None
        self._closing = False
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
        """Recover, listen, and take part. Returns once the node is running, leader or not."""
        if self._stopped is not None:
            raise StoppedError("a node is started once")
        self._stopped = asyncio.Event()
        driver = Driver(
            config=self.config,
            options=self.options,
            storage=self._storage,
            transport=self._transport,
            machine=self._machine,
            runtime=self._runtime,
            counters=self.counters,
            on_failure=self._on_failure,
        )
        try:
            self.rebuilt = (await driver.recover()).rebuilt
            driver.leadership_callbacks = self._leadership_callbacks
            driver.configuration_callbacks = self._configuration_callbacks
            self._transport.configure(driver.raft.configuration, driver.peers())
            self._driver = driver
            await self._transport.start(self)
        except BaseException:
            self._closing = True
            await self._close(driver)
            raise
        driver.deliver(ev.Tick(driver.now_ns()))

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
        self._end_waiters(driver)
        loop = asyncio.get_running_loop()
        ended = False
        try:
            try:
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

    def _end_waiters(self, driver: Driver) -> None:
        reason = f"the node stopped: {self._failure}" if self._failure else "the node stopped"
        driver.proposals.end(OutcomeUnknownError(reason), StoppedError(reason))
        driver.reads.end(StoppedError(reason))
        driver.end_snapshots(StoppedError(reason))
        transfers, driver.transfers = driver.transfers, []
        for future in transfers:
            if not future.done():
                future.set_exception(StoppedError(reason))

    async def wait_stopped(self) -> None:
        """Until the node stops. Raises what made it stop, if something did.

        Raises:
            StorageError: the first storage error (rule 46).
            InvariantError: the protocol's invariants do not hold.
        """
        assert self._stopped is not None, "the node was not started"
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
        if not self._closing and self._driver is not None:
            self._closing = True
            self._shutdown = asyncio.get_running_loop().create_task(self._close(self._driver))

    def _running(self) -> Driver:
        if self._driver is None or self._closing:
            raise StoppedError("the node is not running")
        return self._driver

    # -- what users ask for ---------------------------------------------------------------------

    async def propose(
        self,
        data: bytes,
        *,
        timeout_s: float = 10.0,
        client_id: bytes = b"",
        sequence: int = 0,
    ) -> Proposed:
        """Replicate ``data`` and await what the state machine makes of it.

        Raises:
            NotLeaderError: this node does not lead; nothing was written and never will be.
            OverloadedError, EntryTooLargeError, StorageFullError, StoppedError: refused before
                anything happened.
            OutcomeUnknownError: it was accepted and may or may not take effect.
        """
        driver = self._running()
        waiters.check_size(data, self.options.max_entry_bytes)
        if driver.disk_full:
            driver.writer.look_at_space()
            raise StorageFullError("the disk of the log is nearly full")
        loop = asyncio.get_running_loop()
        future = driver.proposals.add(loop, data, client_id, sequence)
        if len(driver.proposals.incoming) == 1:
            # Everything proposed in this turn of the loop goes into one event.
            loop.call_soon(driver.flush_proposals)
        timer = loop.call_later(timeout_s, driver.proposals.expire, future)
        try:
            result: Proposed = await future
        finally:
            timer.cancel()
        return result

    async def read_barrier(self, *, timeout_s: float = 10.0) -> int:
        """After this the local state machine reflects every write acknowledged before the call.

        Works on any member; followers ask the leader. Returns the log index waited for.

        Raises:
            NotLeaderError: no leader could confirm it (now); ask again.
            OverloadedError, StoppedError: refused.
        """
        driver = self._running()
        loop = asyncio.get_running_loop()
        future = driver.reads.add(loop)
        if len(driver.reads.incoming) == 1:
            loop.call_soon(driver.flush_reads)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except asyncio.CancelledError:
            driver.reads.gave_up = True
            raise
        except TimeoutError:
            driver.reads.gave_up = True
            raise NotLeaderError(
                driver.raft.leader_id, "leadership was not confirmed in time"
            ) from None

    async def transfer_leadership(self, target: NodeId | None = None) -> NodeId:
        """Hand leadership to ``target`` (or the best member) and await that it moved.

        Raises:
            NotLeaderError: this node does not lead.
            OverloadedError: a transfer is under way already.
            UnknownPeerError: no such voter, or it could not be handed over; this node still leads.
            OutcomeUnknownError: the target was told to take over and was not seen to lead.
        """
        driver = self._running()
        if not driver.raft.is_leader:
            raise NotLeaderError(driver.raft.leader_id)
        if driver.transfers:
            raise OverloadedError("a transfer is under way already")
        future: asyncio.Future[fx.TransferFinished] = asyncio.get_running_loop().create_future()
        driver.transfers.append(future)
        driver.deliver(ev.TransferRequested(driver.now_ns(), target))
        outcome = await future
        if outcome.unknown:
            raise OutcomeUnknownError(outcome.detail)
        if not outcome.succeeded:
            raise UnknownPeerError(outcome.detail)
        assert outcome.target is not None
        return outcome.target

    async def request(self, to: NodeId, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask another member's application; see :meth:`Transport.request` for the errors."""
        self._running()
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
        driver = self._running()
        return NodeStatus(
            core=driver.raft.status(),
            connected=self._transport.connected(),
            pending_proposals=len(driver.proposals),
            held_messages=driver.held_messages,
            counters=self.counters,
            failed=repr(self._failure) if self._failure else None,
        )

    @property
    def is_leader(self) -> bool:
        return self._driver is not None and not self._closing and self._driver.raft.is_leader

    @property
    def leader_id(self) -> NodeId | None:
        return self._driver.raft.leader_id if self._driver is not None else None

    @property
    def configuration(self) -> Configuration:
        return self._running().raft.configuration

    def staleness_ms(self) -> int | None:
        """How old the local state may be, at most.

        On a follower: age of the last message of the leader at which everything that it had
        committed was applied here. On a leader: age of its last contact with a quorum, since until
        then nobody else can have led. None if neither ever was.
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

    # -- from the transport ---------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        driver = self._driver
        if driver is None or self._closing:
            return
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
        if self._driver is not None and not self._closing:
            self._driver.deliver(ev.PeerUnreachable(self._driver.now_ns(), peer))

    async def on_join(self, joiner: Member) -> Configuration:
        raise RefusedError(f"{joiner.node_id} is not welcome: add it as a member")

    def on_removed(self, detail: str) -> None:
        logger.warning("node %s: %s", self.config.node_id, detail)

    async def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        if self._request_handler is None or self._closing:
            raise StoppedError("this node answers no requests")
        return await self._request_handler(sender, payload)
