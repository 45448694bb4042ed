"""The asyncio runtime: drives one core, executes its effects, and answers those who wait.

Threads: everything here runs on the event loop, except jobs handed to four owned workers (log
writer, state machine, snapshots, log reads), which post their completions back. The loop never
touches a disk. Per step: the log writer gets the writes, the transport gets what may leave, held
messages leave when the write they name is durable, applied entries resolve their waiters from one
callback. No task exists per proposal, and nothing polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raftcore import waiters
from raftcore.core import effects as fx
from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.errors import CoreError, PeerViolationError
from raftcore.core.messages import AppendRequest, Heartbeat, Message
from raftcore.core.raft import Raft
from raftcore.core.types import Configuration, Entry, NodeId, WriteMark
from raftcore.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    RaftcoreError,
    StoppedError,
    StorageFullError,
    UnknownPeerError,
)
from raftcore.recovery import recover
from raftcore.runtime import NodeOptions, Runtime
from raftcore.snapshotting import Snapshotting
from raftcore.statemachine import AppliedPosition, StateMachine
from raftcore.status import Counters, NodeStatus, Proposed
from raftcore.storage.base import LogStorage
from raftcore.transport.base import Transport
from raftcore.workers import LogWriter, Worker

logger = logging.getLogger(__name__)

RequestHandler = Callable[[NodeId, bytes], Awaitable[bytes]]
LeadershipCallback = Callable[[fx.LeadershipChanged], None]
ConfigurationCallback = Callable[[Configuration], None]


@dataclass(slots=True)
class _Held:
    """A message that waits for a durable write."""

    sequence: int
    to: NodeId
    message: Message


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
        self._proposals = waiters.Proposals(self.options.max_pending_proposals)
        self._reads = waiters.Reads()
        self._transfers: list[asyncio.Future[fx.TransferFinished]] = []
        self._held: deque[_Held] = deque()
        self._leadership_callbacks: list[LeadershipCallback] = []
        self._configuration_callbacks: list[ConfigurationCallback] = []
        self._raft: Raft | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[Worker] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline_ns = 0
        self._pending_events: deque[ev.Event] = deque()
        self._stepping = False
        self._closing = False
        self._failure: BaseException | None = None
        self._stopped: asyncio.Event | None = None
        self._caught_up_ns: int | None = None
        self._disk_full = False

    # -- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Recover, listen, and take part. Returns once the node is running, leader or not."""
        loop = self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        start, on_error = self._runtime.start_worker, self._on_worker_error
        log_worker, apply_worker, snapshot_worker, read_worker = self._workers = [
            start(f"raft-{name}-{self.config.node_id}", on_error)
            for name in ("log", "apply", "snapshot", "read")
        ]
        self._apply_worker, self._read_worker = apply_worker, read_worker
        self._writer = LogWriter(
            self._storage,
            log_worker,
            self._post,
            self._on_durable,
            self._on_free_bytes,
            self._runtime.clock_ns,
        )
        try:
            recovery = await self._run_on(apply_worker, self._recover)
            recovered, self.rebuilt = recovery.state, recovery.rebuilt
            self._raft = Raft(
                self.config, recovered, self._runtime.rng, self._runtime.clock_ns()
            )  # fmt: skip
            self._snapshotting = Snapshotting(
                storage=self._storage,
                machine=self._machine,
                writer=self._writer,
                apply_worker=apply_worker,
                snapshot_worker=snapshot_worker,
                read_worker=read_worker,
                post=self._post,
                deliver=self._deliver,
                clock_ns=self._runtime.clock_ns,
                counters=self.counters,
                entries_limit=self.options.snapshot_entries,
                bytes_limit=self.options.snapshot_bytes,
                last_snapshot_index=recovered.snapshot.index if recovered.snapshot else 0,
            )
            self._transport.configure(self._raft.configuration)
            await self._transport.start(self)
        except BaseException:
            self._closing = True
            await self._stop_workers(loop)
            self._storage.close()
            self._machine.close()
            raise
        self._deliver(ev.Tick(self._now_ns()))

    async def stop(self, *, handover: bool = True) -> None:
        """Hand leadership over if this node leads, then stop everything. Safe to call twice.

        Proposals still waiting end as :class:`OutcomeUnknownError`.
        """
        if self._stopped is None or self._loop is None:
            return
        if self._closing:
            await self._stopped.wait()
            return
        raft = self._raft
        leads_others = raft is not None and raft.is_leader and len(raft.configuration.voters) > 1
        if handover and leads_others and self._failure is None:
            await self._hand_over()
        self._closing = True
        await self._shut_down()

    async def _hand_over(self) -> None:
        try:
            async with asyncio.timeout(self.options.handover_timeout_s):
                await self.transfer_leadership()
        except (TimeoutError, RaftcoreError) as error:
            logger.info("stopping without a successor: %s", error)

    async def _shut_down(self) -> None:
        assert self._loop is not None
        assert self._stopped is not None
        if self._timer is not None:
            self._timer.cancel()
        self._end_waiters()
        await self._transport.close()
        await self._stop_workers(self._loop)
        try:
            await self._loop.run_in_executor(None, self._machine.close)
        finally:
            await self._loop.run_in_executor(None, self._storage.close)
            self._stopped.set()

    async def _stop_workers(self, loop: asyncio.AbstractEventLoop) -> None:
        for worker in self._workers:
            await loop.run_in_executor(None, worker.stop)

    def _end_waiters(self) -> None:
        reason = f"the node stopped: {self._failure}" if self._failure else "the node stopped"
        self._proposals.end(OutcomeUnknownError(reason), StoppedError(reason))
        self._reads.end(StoppedError(reason))
        transfers, self._transfers = self._transfers, []
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
        await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    def _on_worker_error(self, error: BaseException) -> None:
        self._post(lambda: self._fail(error))

    def _fail(self, error: BaseException) -> None:
        """The first failure is final: say nothing more, and let the process end (rule 46)."""
        if self._failure is not None or self._loop is None:
            return
        self._failure = error
        self._held.clear()
        logger.critical("node %s stops: %r", self.config.node_id, error)
        if not self._closing:
            self._closing = True
            self._shutdown_task = self._loop.create_task(self._shut_down())

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
        raft, loop = self._running()
        waiters.check_size(data, self.options.max_entry_bytes)
        if self._disk_full:
            self._writer.look_at_space()
            raise StorageFullError("the disk of the log is nearly full")
        future = self._proposals.add(loop, data, client_id, sequence)
        if len(self._proposals.incoming) == 1:
            # Everything proposed in this turn of the loop goes into one event.
            loop.call_soon(self._flush_proposals, raft)
        timer = loop.call_later(timeout_s, self._proposals.expire, future)
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
        _, loop = self._running()
        future = self._reads.add(loop)
        if len(self._reads.incoming) == 1:
            loop.call_soon(self._flush_reads)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            leader = self._raft.leader_id if self._raft else None
            raise NotLeaderError(leader, "leadership was not confirmed in time") from None

    async def transfer_leadership(self, target: NodeId | None = None) -> NodeId:
        """Hand leadership to ``target`` (or the best member) and await that it moved.

        Raises:
            NotLeaderError: this node does not lead.
            UnknownPeerError: no such voter, or it did not take over in time.
        """
        raft, loop = self._running()
        if not raft.is_leader:
            raise NotLeaderError(raft.leader_id)
        future: asyncio.Future[fx.TransferFinished] = loop.create_future()
        self._transfers.append(future)
        self._deliver(ev.TransferRequested(self._now_ns(), target))
        outcome = await future
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
        raft, _ = self._running()
        return await self._snapshotting.take(raft)

    def status(self) -> NodeStatus:
        raft, _ = self._running()
        return NodeStatus(
            core=raft.status(),
            connected=self._transport.connected(),
            pending_proposals=len(self._proposals),
            held_messages=len(self._held),
            counters=self.counters,
            failed=repr(self._failure) if self._failure else None,
        )

    @property
    def is_leader(self) -> bool:
        return self._raft is not None and self._raft.is_leader and not self._closing

    @property
    def leader_id(self) -> NodeId | None:
        return self._raft.leader_id if self._raft is not None else None

    @property
    def configuration(self) -> Configuration:
        raft, _ = self._running()
        return raft.configuration

    def staleness_ms(self) -> int | None:
        """Age of the last message of the leader at which everything that it had committed was
        applied here; 0 on a leader, None if that never was."""
        if self.is_leader:
            return 0
        if self._caught_up_ns is None:
            return None
        return (self._now_ns() - self._caught_up_ns) // 1_000_000

    def on_leadership(self, callback: LeadershipCallback) -> None:
        """Call ``callback`` on the loop whenever role, term or known leader changes."""
        self._leadership_callbacks.append(callback)

    def on_configuration(self, callback: ConfigurationCallback) -> None:
        """Call ``callback`` on the loop whenever another configuration comes into force."""
        self._configuration_callbacks.append(callback)

    def _running(self) -> tuple[Raft, asyncio.AbstractEventLoop]:
        if self._raft is None or self._loop is None or self._closing:
            raise StoppedError("the node is not running")
        return self._raft, self._loop

    # -- from the transport ---------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        self._deliver(ev.MessageReceived(self._now_ns(), message))
        if isinstance(message, Heartbeat):
            self._note_contact(message.sender, message.leader_commit)
        elif isinstance(message, AppendRequest):
            self._note_contact(message.sender, message.commit)

    def _note_contact(self, sender: NodeId, leader_commit: int) -> None:
        """The leader was heard, and all that it had committed then is applied here."""
        raft = self._raft
        if raft is not None and sender == raft.leader_id and raft.applied_index >= leader_commit:
            self._caught_up_ns = self._now_ns()

    def on_peer_lost(self, peer: NodeId) -> None:
        self._deliver(ev.PeerUnreachable(self._now_ns(), peer))

    async def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        if self._request_handler is None or self._closing:
            raise StoppedError("this node answers no requests")
        return await self._request_handler(sender, payload)

    # -- the core and its effects ---------------------------------------------------------------

    def _now_ns(self) -> int:
        return self._runtime.clock_ns()

    def _post(self, callback: Callable[[], None]) -> None:
        """From any thread: run ``callback`` on the loop. Dropped when the loop is gone."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.debug("a completion came after the event loop was closed")

    def _deliver(self, event: ev.Event) -> None:
        """Step the core, and once more for whatever its effects caused at once."""
        self._pending_events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._pending_events and not self._closing:
                self._step(self._pending_events.popleft())
        finally:
            self._stepping = False
            self._pending_events.clear()

    def _step(self, event: ev.Event) -> None:
        assert self._raft is not None
        try:
            effects = self._raft.step(event)
        except PeerViolationError as error:
            self.counters.peer_violations += 1
            logger.warning("dropped a message: %s", error)
            return
        except (CoreError, AssertionError) as error:
            self._fail(error)
            return
        for effect in effects:
            _EFFECTS[type(effect)](self, effect)
        self._arm_timer()

    def _arm_timer(self) -> None:
        """Deadlines mostly move away: a timer that fires early is cheaper than one per message."""
        assert self._raft is not None
        assert self._loop is not None
        deadline_ns = self._raft.next_deadline_ns
        if self._timer is not None:
            if self._timer_deadline_ns <= deadline_ns:
                return
            self._timer.cancel()
        self._timer_deadline_ns = deadline_ns
        delay_s = max(deadline_ns - self._now_ns(), 0) / 1e9
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._deliver(ev.Tick(self._now_ns()))

    def _flush_proposals(self, _raft: Raft) -> None:
        proposals = self._proposals.take_incoming(self._runtime.wall_clock_ms())
        self.counters.proposals += len(proposals)
        if proposals:
            self._deliver(ev.Propose(self._now_ns(), proposals))

    def _flush_reads(self) -> None:
        read_id = self._reads.start_round()
        if read_id is not None:
            self._deliver(ev.ReadRequested(self._now_ns(), read_id))
            for abandoned in self._reads.abandoned():
                self._deliver(ev.ReadAbandoned(self._now_ns(), abandoned))

    # Each effect has one executor, in the order in which the core emitted it.

    def _do_persist(self, effect: fx.Persist) -> None:
        self._writer.persist(effect)

    def _do_send(self, effect: fx.Send) -> None:
        if effect.after is None:
            self._transport.send(effect.to, effect.message)
        else:
            self._held.append(_Held(effect.after.sequence, effect.to, effect.message))

    def _on_durable(self, mark: WriteMark, duration_ns: int, entries: int) -> None:
        """A write is durable: first what waited for it may leave, then the core hears of it."""
        if self._closing:
            return
        self.counters.writes += 1
        self.counters.entries_written += entries
        self.counters.write_seconds += duration_ns / 1e9
        self.counters.last_write_ms = duration_ns / 1e6
        held = self._held
        while held and held[0].sequence <= mark.sequence:
            message = held.popleft()
            self._transport.send(message.to, message.message)
        self._deliver(ev.WriteDurable(self._now_ns(), mark))

    def _on_free_bytes(self, free_bytes: int) -> None:
        self._disk_full = free_bytes < self.options.min_free_bytes

    def _do_apply(self, effect: fx.Apply) -> None:
        entries = effect.entries
        self._apply_worker.submit(lambda: self._apply(entries))

    def _apply(self, entries: Sequence[Entry]) -> None:
        """On the apply thread."""
        last = entries[-1]
        position = AppliedPosition(last.index, last.term, self._storage.chain_at(last.index))
        results = self._machine.apply(entries, position)
        if len(results) != len(entries):
            raise AssertionError("a state machine returns one result per entry")
        self._post(lambda: self._on_applied(entries, results))

    def _on_applied(self, entries: Sequence[Entry], results: Sequence[Any]) -> None:
        self.counters.entries_applied += len(entries)
        self.counters.apply_batches += 1
        resolve, leader_id = self._proposals.applied, self.leader_id
        for entry, result in zip(entries, results, strict=True):
            resolve(entry.index, entry.term, Proposed(result, entry.index, entry.term), leader_id)
        self._deliver(ev.Applied(self._now_ns(), entries[-1].index))
        raft = self._raft
        if raft is not None and not self._closing:
            self._snapshotting.on_applied(raft, entries)

    def _do_read_entries(self, effect: fx.ReadEntries) -> None:
        def read() -> None:
            entries = tuple(self._storage.read(effect.first, effect.last, effect.max_bytes))
            self._post(
                lambda: self._deliver(ev.EntriesRead(self._now_ns(), effect.request_id, entries))
            )

        self._read_worker.submit(read)

    def _do_read_released(self, effect: fx.ReadReleased) -> None:
        self.counters.reads_confirmed += 1
        self._reads.release(effect.read_id, effect.index)

    def _do_read_refused(self, effect: fx.ReadRefused) -> None:
        self._reads.refuse(effect.read_id, waiters.refusal(effect.reason, effect.leader_id))

    def _do_proposal_accepted(self, effect: fx.ProposalAccepted) -> None:
        self._proposals.accepted(effect.token, effect.index, effect.term)

    def _do_proposal_refused(self, effect: fx.ProposalRefused) -> None:
        self.counters.proposals_refused += 1
        self._proposals.refused(effect.token, waiters.refusal(effect.reason, effect.leader_id))

    def _do_leadership_changed(self, effect: fx.LeadershipChanged) -> None:
        if effect.role == "leader":
            self.counters.elections_won += 1
        logger.info(
            "node %s is %s in term %d, leader %s",
            self.config.node_id, effect.role, effect.term, effect.leader_id,
        )  # fmt: skip
        for callback in self._leadership_callbacks:
            callback(effect)

    def _do_configuration_changed(self, effect: fx.ConfigurationChanged) -> None:
        self._transport.configure(effect.configuration)
        for callback in self._configuration_callbacks:
            callback(effect.configuration)

    def _do_compact(self, effect: fx.Compact) -> None:
        self._snapshotting.compact(effect.first_index)

    def _do_store_chunk(self, effect: fx.StoreSnapshotChunk) -> None:
        self._snapshotting.store_chunk(effect, self._on_installed)

    def _on_installed(self, index: int) -> None:
        self._proposals.jumped_to(index)

    def _do_read_chunk(self, effect: fx.ReadSnapshotChunk) -> None:
        self._snapshotting.read_chunk(effect)

    def _do_transfer_finished(self, effect: fx.TransferFinished) -> None:
        transfers, self._transfers = self._transfers, []
        for future in transfers:
            if not future.done():
                future.set_result(effect)

    # -- starting -------------------------------------------------------------------------------

    def _recover(self) -> Any:
        return recover(self._storage, self._machine)

    async def _run_on(self, worker: Worker, job: Callable[[], Any]) -> Any:
        """Run ``job`` on a worker and await its result; errors come back here."""
        assert self._loop is not None
        future: asyncio.Future[Any] = self._loop.create_future()

        def run() -> None:
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 - handed to the awaiting caller
                failure = error
                self._post(lambda: future.set_exception(failure))
            else:
                self._post(lambda: future.set_result(result))

        worker.submit(run)
        return await future


_EFFECTS: dict[type[fx.Effect], Callable[[Node, Any], None]] = {
    fx.Persist: Node._do_persist,
    fx.Send: Node._do_send,
    fx.Apply: Node._do_apply,
    fx.ReadEntries: Node._do_read_entries,
    fx.ReadReleased: Node._do_read_released,
    fx.ReadRefused: Node._do_read_refused,
    fx.ProposalAccepted: Node._do_proposal_accepted,
    fx.ProposalRefused: Node._do_proposal_refused,
    fx.LeadershipChanged: Node._do_leadership_changed,
    fx.ConfigurationChanged: Node._do_configuration_changed,
    fx.Compact: Node._do_compact,
    fx.StoreSnapshotChunk: Node._do_store_chunk,
    fx.ReadSnapshotChunk: Node._do_read_chunk,
    fx.TransferFinished: Node._do_transfer_finished,
}
