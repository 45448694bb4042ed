"""Drives one core: steps it, executes its effects in order, and keeps its timer.

Everything here runs on the event loop, except jobs handed to four owned workers (log writer, state
machine, snapshots, log reads), which post their completions back. The loop never touches a disk.
Writes go to the log writer, messages that wait for a write are held until it is durable, applied
entries resolve their waiters from one callback. No task exists per proposal, and nothing polls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raftcore import waiters
from raftcore.core import effects as fx
from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.errors import PeerViolationError
from raftcore.core.messages import Message
from raftcore.core.raft import Raft
from raftcore.core.types import Configuration, Entry, Member, NodeId, WriteMark
from raftcore.errors import StoppedError
from raftcore.recovery import Recovery, recover
from raftcore.runtime import NodeOptions, Runtime
from raftcore.snapshotting import Snapshotting
from raftcore.statemachine import AppliedPosition, StateMachine
from raftcore.status import Counters, Proposed
from raftcore.storage.base import LogStorage
from raftcore.transport.base import Transport
from raftcore.workers import LogWriter, Worker

logger = logging.getLogger(__name__)

#: Numbers of read rounds begin anywhere in this space, so that a late answer to an earlier run of
#: this node can not be taken for one to this run (rule 33).
READ_ID_BITS = 53

#: How long the workers may take to finish when the node stops. One that hangs is left behind.
WORKER_STOP_S = 5.0

LeadershipCallback = Callable[[fx.LeadershipChanged], None]
ConfigurationCallback = Callable[[Configuration], None]


@dataclass(slots=True)
class _Held:
    """A message that waits for a durable write."""

    sequence: int
    to: NodeId
    message: Message


class Driver:
    """One core with everything that acts for it. Made inside a running loop; see :class:`Node`.

    Args:
        on_failure: told the first failure, on the loop; after it the driver does nothing more.
    """

    def __init__(
        self,
        *,
        config: CoreConfig,
        options: NodeOptions,
        storage: LogStorage,
        transport: Transport,
        machine: StateMachine,
        runtime: Runtime,
        counters: Counters,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.config = config
        self.options = options
        self.counters = counters
        self.proposals = waiters.Proposals(options.max_pending_proposals)
        self.reads = waiters.Reads(runtime.rng.getrandbits(READ_ID_BITS))
        self.transfers: list[asyncio.Future[fx.TransferFinished]] = []
        self.leadership_callbacks: list[LeadershipCallback] = []
        self.configuration_callbacks: list[ConfigurationCallback] = []
        self.disk_full = False
        self.snapshotting_stopped = threading.Event()
        self._storage = storage
        self._transport = transport
        self._machine = machine
        self._runtime = runtime
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._recovered = False
        self._held: deque[_Held] = deque()
        self._pending: deque[ev.Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline_ns = 0
        self._log_worker, self._apply_worker, self._snapshot_worker, self._read_worker = (
            self._workers
        ) = [
            runtime.start_worker(f"raft-{name}-{config.node_id}", self._on_worker_error)
            for name in ("log", "apply", "snapshot", "read")
        ]
        self.writer = LogWriter(
            storage,
            self._log_worker,
            self._post,
            self._on_durable,
            self._on_free_bytes,
            runtime.clock_ns,
        )

    # -- life -----------------------------------------------------------------------------------

    async def recover(self) -> Recovery:
        """Bring log and state machine together and make the core."""
        recovery: Recovery = await self._run_on(
            self._apply_worker, lambda: recover(self._storage, self._machine)
        )
        recovered = recovery.state
        self.raft = Raft(self.config, recovered, self._runtime.rng, self.now_ns())
        self.snapshotting = Snapshotting(
            storage=self._storage,
            machine=self._machine,
            writer=self.writer,
            apply_worker=self._apply_worker,
            snapshot_worker=self._snapshot_worker,
            read_worker=self._read_worker,
            post=self._post,
            deliver=self.deliver,
            clock_ns=self._runtime.clock_ns,
            counters=self.counters,
            stopped=self.snapshotting_stopped,
            entries_limit=self.options.snapshot_entries,
            bytes_limit=self.options.snapshot_bytes,
            last_snapshot_index=recovered.snapshot.index if recovered.snapshot else 0,
        )
        self._recovered = True
        return recovery

    def close(self) -> None:
        """Step no more and send nothing more (I19)."""
        self._closed = True
        self._held.clear()
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end_snapshots(self, error: StoppedError) -> None:
        """Answer those who wait for a snapshot."""
        if self._recovered:
            self.snapshotting.end(error)

    async def stop_workers(self) -> bool:
        """Let the workers finish what they were given, then end them; False if one hangs, so that
        what they use must not be closed under them."""
        self.snapshotting_stopped.set()
        ended = await asyncio.gather(
            *(self._loop.run_in_executor(None, w.stop, WORKER_STOP_S) for w in self._workers)
        )
        return all(ended)

    async def _run_on(self, worker: Worker, job: Callable[[], Any]) -> Any:
        """Run ``job`` on a worker and await its result; errors come back here."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def run() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - handed to who awaits it
                failure = error
                self._post(lambda: future.set_exception(failure))
            else:
                self._post(lambda: future.set_result(result))

        worker.submit(run)
        return await future

    def _post(self, callback: Callable[[], None]) -> None:
        """From any thread: run ``callback`` on the loop. Dropped when the loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._run_posted, callback)
        except RuntimeError:
            logger.debug("a completion came after the event loop was closed")

    def _run_posted(self, callback: Callable[[], None]) -> None:
        """A completion that is not understood leaves something waiting for ever: that is final."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - the first failure is final
            self._fail(error)

    def _on_worker_error(self, error: BaseException) -> None:
        self._post(lambda: self._fail(error))

    def _fail(self, error: BaseException) -> None:
        self.close()
        self._on_failure(error)

    # -- stepping -------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self._runtime.clock_ns()

    @property
    def held_messages(self) -> int:
        return len(self._held)

    def deliver(self, event: ev.Event) -> None:
        """Step the core, and once more for whatever its effects caused at once."""
        if self._closed:
            return
        self._pending.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._pending:
                self._step(self._pending.popleft())
        finally:
            self._stepping = False

    def _step(self, event: ev.Event) -> None:
        """One step. Effects that are carried out half-way leave nothing to go on from: whatever is
        raised, except a peer's violation, stops the node."""
        try:
            effects = self.raft.step(event)
        except PeerViolationError as error:
            self.counters.peer_violations += 1
            logger.warning("dropped a message: %s", error)
            return
        except Exception as error:  # noqa: BLE001 - the first failure is final
            self._fail(error)
            return
        try:
            for effect in effects:
                _EXECUTORS[type(effect)](self, effect)
        except Exception as error:  # noqa: BLE001 - see above
            self._fail(error)
            return
        if not self._closed:
            self._arm_timer()

    def _arm_timer(self) -> None:
        """Deadlines mostly move away: a timer that fires early is cheaper than one per message."""
        deadline_ns = self.raft.next_deadline_ns
        if self._timer is not None:
            if self._timer_deadline_ns <= deadline_ns:
                return
            self._timer.cancel()
        self._timer_deadline_ns = deadline_ns
        delay_s = max(deadline_ns - self.now_ns(), 0) / 1e9
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.deliver(ev.Tick(self.now_ns()))

    def flush_proposals(self) -> None:
        """Give the core everything that was proposed in this turn of the loop, as one event."""
        proposals = self.proposals.take_incoming(self._runtime.wall_clock_ms())
        self.counters.proposals += len(proposals)
        if proposals:
            self.deliver(ev.Propose(self.now_ns(), proposals))

    def flush_reads(self) -> None:
        """Start one round for all reads that were asked for in this turn of the loop."""
        read_id = self.reads.start_round()
        if read_id is not None:
            self.deliver(ev.ReadRequested(self.now_ns(), read_id))
            for abandoned in self.reads.abandoned():
                self.deliver(ev.ReadAbandoned(self.now_ns(), abandoned))

    # -- effects: one executor each, called in the order in which the core emitted them ---------

    def _persist(self, effect: fx.Persist) -> None:
        self.writer.persist(effect)

    def _send(self, effect: fx.Send) -> None:
        if effect.after is None:
            self._transport.send(effect.to, effect.message)
        else:
            self._held.append(_Held(effect.after.sequence, effect.to, effect.message))

    def _on_durable(self, mark: WriteMark, duration_ns: int, entries: int) -> None:
        """A write is durable: first what waited for it may leave, then the core hears of it."""
        if self._closed:
            return
        self.counters.writes += 1
        self.counters.entries_written += entries
        self.counters.write_seconds += duration_ns / 1e9
        self.counters.last_write_ms = duration_ns / 1e6
        held = self._held
        while held and held[0].sequence <= mark.sequence:
            message = held.popleft()
            self._transport.send(message.to, message.message)
        self.deliver(ev.WriteDurable(self.now_ns(), mark))

    def _on_free_bytes(self, free_bytes: int) -> None:
        self.disk_full = free_bytes < self.options.min_free_bytes

    def _apply(self, effect: fx.Apply) -> None:
        entries = effect.entries
        self._apply_worker.submit(lambda: self._apply_on_worker(entries))

    def _apply_on_worker(self, entries: Sequence[Entry]) -> None:
        last = entries[-1]
        position = AppliedPosition(last.index, last.term, self._storage.chain_at(last.index))
        results = self._machine.apply(entries, position)
        if len(results) != len(entries):
            raise AssertionError("a state machine returns one result per entry")
        self._post(lambda: self._on_applied(entries, results))

    def _on_applied(self, entries: Sequence[Entry], results: Sequence[Any]) -> None:
        if self._closed:
            return
        self.counters.entries_applied += len(entries)
        self.counters.apply_batches += 1
        if self.proposals.accepted_any:
            resolve, leader_id = self.proposals.applied, self.raft.leader_id
            for entry, result in zip(entries, results, strict=True):
                proposed = Proposed(result, entry.index, entry.term)
                resolve(entry.index, entry.term, proposed, leader_id)
        self.deliver(ev.Applied(self.now_ns(), entries[-1].index))
        if not self._closed:
            self.snapshotting.on_applied(self.raft, entries)

    def _read_entries(self, effect: fx.ReadEntries) -> None:
        def read() -> None:
            entries = tuple(self._storage.read(effect.first, effect.last, effect.max_bytes))
            self._post(
                lambda: self.deliver(ev.EntriesRead(self.now_ns(), effect.request_id, entries))
            )

        self._read_worker.submit(read)

    def _read_released(self, effect: fx.ReadReleased) -> None:
        self.counters.reads_confirmed += 1
        self.reads.release(effect.read_id, effect.index)

    def _read_refused(self, effect: fx.ReadRefused) -> None:
        self.reads.refuse(effect.read_id, waiters.refusal(effect.reason, effect.leader_id))

    def _proposal_accepted(self, effect: fx.ProposalAccepted) -> None:
        self.proposals.accepted(effect.token, effect.index, effect.term)

    def _proposal_refused(self, effect: fx.ProposalRefused) -> None:
        self.counters.proposals_refused += 1
        self.proposals.refused(effect.token, waiters.refusal(effect.reason, effect.leader_id))

    def _leadership_changed(self, effect: fx.LeadershipChanged) -> None:
        if effect.role == "leader":
            self.counters.elections_won += 1
        else:
            self.proposals.leadership_lost()
        logger.info(
            "node %s is %s in term %d, leader %s",
            self.config.node_id, effect.role, effect.term, effect.leader_id,
        )  # fmt: skip
        for callback in self.leadership_callbacks:
            # On its own turn of the loop: a caller's defect is not the core's.
            self._loop.call_soon(callback, effect)

    def peers(self) -> tuple[Member, ...]:
        members = self.raft.configuration.members
        return tuple(m for m in members if m.node_id != self.config.node_id)

    def _configuration_changed(self, effect: fx.ConfigurationChanged) -> None:
        self._transport.configure(effect.configuration, self.peers())
        for callback in self.configuration_callbacks:
            self._loop.call_soon(callback, effect.configuration)

    def _compact(self, effect: fx.Compact) -> None:
        self.snapshotting.compact(effect.first_index)

    def _store_chunk(self, effect: fx.StoreSnapshotChunk) -> None:
        self.snapshotting.store_chunk(effect, self.proposals.jumped_to)

    def _read_chunk(self, effect: fx.ReadSnapshotChunk) -> None:
        self.snapshotting.read_chunk(effect)

    def _transfer_finished(self, effect: fx.TransferFinished) -> None:
        transfers, self.transfers = self.transfers, []
        for future in transfers:
            if not future.done():
                future.set_result(effect)


_EXECUTORS: dict[type[fx.Effect], Callable[[Driver, Any], None]] = {
    fx.Persist: Driver._persist,
    fx.Send: Driver._send,
    fx.Apply: Driver._apply,
    fx.ReadEntries: Driver._read_entries,
    fx.ReadReleased: Driver._read_released,
    fx.ReadRefused: Driver._read_refused,
    fx.ProposalAccepted: Driver._proposal_accepted,
    fx.ProposalRefused: Driver._proposal_refused,
    fx.LeadershipChanged: Driver._leadership_changed,
    fx.ConfigurationChanged: Driver._configuration_changed,
    fx.Compact: Driver._compact,
    fx.StoreSnapshotChunk: Driver._store_chunk,
    fx.ReadSnapshotChunk: Driver._read_chunk,
    fx.TransferFinished: Driver._transfer_finished,
}
