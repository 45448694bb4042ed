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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from raftcore.core import effects as fx
from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.errors import PeerViolationError
from raftcore.core.messages import Message
from raftcore.core.raft import Raft
from raftcore.core.types import Configuration, Entry, Member, NodeId
from raftcore.errors import OutcomeUnknownError, StateMachineError, StoppedError
from raftcore.runtime import waiters
from raftcore.runtime.maintenance import Maintenance
from raftcore.runtime.observer import Observer
from raftcore.runtime.options import NodeOptions, Runtime
from raftcore.runtime.outbox import Outbox
from raftcore.runtime.recovery import Recovery, recover
from raftcore.runtime.snapshotting import Snapshotting
from raftcore.runtime.status import DiskStatus, Proposed
from raftcore.runtime.workers import LogWriter, Poster, Written
from raftcore.statemachine import AppliedPosition, StateMachine
from raftcore.storage.base import LogStorage
from raftcore.trace import Kind
from raftcore.transport.base import Transport

logger = logging.getLogger(__name__)

#: Numbers of read rounds begin anywhere in this space, so that a late answer to an earlier run of
#: this node can not be taken for one to this run (rule 33).
READ_ID_BITS = 53

#: How long the workers may take to finish when the node stops. One that hangs is left behind.
WORKER_STOP_S = 5.0

LeadershipCallback = Callable[[fx.LeadershipChanged], None]
ConfigurationCallback = Callable[[Configuration], None]


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
        observer: Observer,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.config = config
        self.options = options
        self.observer = observer
        self.counters = observer.counters
        self.proposals = waiters.Proposals(options.max_pending_proposals)
        self.reads = waiters.Reads(runtime.rng.getrandbits(READ_ID_BITS), config.max_pending_reads)
        self.waits = waiters.AppliedWaits(options.max_pending_waits)
        self.transfers: waiters.Answers[fx.TransferFinished] = waiters.Answers()
        self.changes: waiters.Answers[tuple[fx.MembershipFinished, Configuration]] = (
            waiters.Answers()
        )
        self.leadership_callbacks: list[LeadershipCallback] = []
        self.configuration_callbacks: list[ConfigurationCallback] = []
        #: told each configuration that is committed: unlike one in force it can not go back
        self.committed_callbacks: list[ConfigurationCallback] = []
        self.disk_full = False
        self.removed: str | None = None
        self.quarantine: str | None = None
        self.snapshotting_stopped = threading.Event()
        self._storage = storage
        self._transport = transport
        self._machine = machine
        self._runtime = runtime
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._post = Poster(self._loop, self._fail)
        self._closed = False
        self._recovered = False
        self._outbox = Outbox(self._give, self.now_ns)
        self._peers: tuple[Member, ...] = ()
        self._configured: tuple[Configuration, tuple[Member, ...]] | None = None
        self._free_bytes: int | None = None
        self._committed = (0, Configuration("", ()))
        self._pending: deque[ev.Event] = deque()
        self._stepping = False
        self._step_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline_ns = 0
        self._apply_worker, self._snapshot_worker, self._log_worker, self._read_worker = (
            self._workers
        ) = [
            runtime.start_worker(f"raft-{name}-{config.node_id}", self._on_worker_error)
            for name in ("apply", "snapshot", "log", "read")
        ]
        self.writer = LogWriter(
            storage,
            self._log_worker,
            self._post,
            self._on_durable,
            self._on_maintained,
            runtime.clock_ns,
        )

    # -- life -----------------------------------------------------------------------------------

    async def recover(self) -> Recovery:
        """Bring log and state machine together and make the core."""
        recovery = await self._post.result_of(
            self._apply_worker, lambda: recover(self._storage, self._machine)
        )
        recovered = recovery.state
        # Another directory may have had this node's name: configurations with that one's
        # incarnation do not mean us.
        config = replace(self.config, incarnation=self._storage.identity.incarnation)
        self.raft = Raft(config, recovered, self._runtime.rng, self.now_ns())
        self._peers = self.raft.peers
        self.quarantine = recovery.quarantine
        self._rebuilt = recovery.rebuilt
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
            observer=self.observer,
            stopped=self.snapshotting_stopped,
            entries_limit=self.options.snapshot_entries,
            bytes_limit=self.options.snapshot_bytes,
            last_snapshot_index=recovered.snapshot.index if recovered.snapshot else 0,
        )
        self.maintenance = Maintenance(
            storage=self._storage,
            transport=self._transport,
            writer=self.writer,
            read_worker=self._read_worker,
            post=self._post,
            observer=self.observer,
            wall_clock_ms=self._runtime.wall_clock_ms,
            scrub_interval_s=self.options.scrub_interval_s,
        )
        self._recovered = True
        return recovery

    def run(self) -> None:
        """From here on time passes: recovered and connected, take part. Nothing happens if it has
        failed already."""
        if self._closed:
            return
        status = self.raft.status()
        self.observer.started(
            status.term, status.last_index, status.commit_index, self._rebuilt, self.quarantine
        )
        self.maintenance.start(self.raft)
        self.deliver(ev.Tick(self.now_ns()))

    def configure_transport(self) -> None:
        """Tell the transport who is who, unless this step has done so already."""
        wanted = (self.raft.configuration, self._peers)
        if wanted != self._configured:
            self._configured = wanted
            self._transport.configure(*wanted)

    def close(self) -> None:
        """Step no more and send nothing more (I19)."""
        self._closed = True
        self.snapshotting_stopped.set()
        self._outbox.clear()
        self._pending.clear()
        if self._recovered:
            self.maintenance.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end_waiters(self, reason: str) -> None:
        """The node stops: answer everybody who waits."""
        unknown, stopped = OutcomeUnknownError(reason), StoppedError(reason)
        self.proposals.end(unknown, stopped)
        self.reads.end(stopped)
        self.waits.end(stopped)
        self.transfers.end(unknown)
        self.changes.end(unknown)
        if self._recovered:
            self.snapshotting.end(stopped)

    async def stop_workers(self) -> bool:
        """Let the workers finish what they were given, then end them; False if one hangs, so that
        what they use must not be closed under them."""
        deadline_s = self._loop.time() + WORKER_STOP_S
        ended = True
        # Who hands work on comes before who is handed it, so that nothing begun is left lying: a
        # view of the machine is closed by the snapshot thread, what it wrote is adopted by the log.
        for worker in self._workers:
            left_s = max(deadline_s - self._loop.time(), 0.0)
            ended &= await self._loop.run_in_executor(None, worker.stop, left_s)
        return ended

    def _on_worker_error(self, error: BaseException) -> None:
        self._post(lambda: self._fail(error))

    def _fail(self, error: BaseException) -> None:
        self.close()
        self._on_failure(error)

    # -- stepping -------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self._runtime.clock_ns()

    def disk_status(self) -> DiskStatus:
        outbox = self._outbox
        return DiskStatus(
            writes_waiting=outbox.writes_waiting,
            write_age_ms=outbox.write_age_ms(),
            last_write_ms=self.counters.last_write_ms,
            held_messages=outbox.held_messages,
            held_age_ms=outbox.held_age_ms(),
            free_bytes=self._free_bytes,
            full=self.disk_full,
        )

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
        self._step_ns = event.now_ns
        try:
            effects = self.raft.step(event)
        except PeerViolationError as error:
            self.observer.peer_violation(error)
            return
        except Exception as error:  # noqa: BLE001 - the first failure is final
            self._fail(error)
            return
        if self.raft.commit_index != self._committed[0]:
            self._note_committed()
        try:
            for effect in effects:
                _EXECUTORS[type(effect)](self, effect)
        except Exception as error:  # noqa: BLE001 - see above
            self._fail(error)
            return
        if not self._closed:
            self.observer.stepped(self.raft.commit_index, self.raft.term)
            self._arm_timer()

    def _note_committed(self) -> None:
        """The commit index moved, and perhaps past a configuration."""
        configuration = self.raft.committed_configuration
        if configuration is not self._committed[1]:
            for callback in self.committed_callbacks:
                self._loop.call_soon(callback, configuration)
        self._committed = (self.raft.commit_index, configuration)

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
        """Start a round for all reads of a kind that were asked for in this turn of the loop."""
        rounds = self.reads.start_rounds()
        for read_id, lease in rounds:
            self.counters.reads_by_lease += lease
            self.deliver(ev.ReadRequested(self.now_ns(), read_id, lease))
        if rounds:
            for abandoned in self.reads.abandoned():
                self.deliver(ev.ReadAbandoned(self.now_ns(), abandoned))

    # -- effects: one executor each, called in the order in which the core emitted them ---------

    def _persist(self, effect: fx.Persist) -> None:
        self._outbox.writing(effect)
        self.writer.persist(effect)

    def _send(self, effect: fx.Send) -> None:
        self._outbox.send(effect)

    def _give(self, to: NodeId, message: Message) -> None:
        self._transport.send(to, message)
        self.observer.sent(to, message)

    def _on_durable(self, written: Written) -> None:
        """A write is durable: first what waited for it may leave, then the core hears of it."""
        if self._closed:
            return
        self.observer.written(written)
        self._outbox.durable(written.mark)
        self.deliver(ev.WriteDurable(self.now_ns(), written.mark))

    def _on_maintained(self, free_bytes: int) -> None:
        if self._closed:
            return
        self._free_bytes = free_bytes
        full = free_bytes < self.options.min_free_bytes
        if full is not self.disk_full:
            self.disk_full = full
            self.observer.trace(Kind.DISK_FULL, full=full, free_bytes=free_bytes)

    def _apply(self, effect: fx.Apply) -> None:
        entries = effect.entries
        if self.proposals.accepted_any:
            times = self.proposals.accepted_times(range(entries[0].index, entries[-1].index + 1))
            self.observer.took("commit_seconds", times)
        self.observer.applying(entries[-1].index)
        self._apply_worker.submit(lambda: self._apply_on_worker(entries))

    def _apply_on_worker(self, entries: Sequence[Entry]) -> None:
        began_ns = self._runtime.clock_ns()
        last = entries[-1]
        position = AppliedPosition(last.index, last.term, self._storage.chain_at(last.index))
        results = self._machine.apply(entries, position)
        returned = len(results) if hasattr(results, "__len__") else None
        if returned != len(entries):
            raise StateMachineError(
                f"a state machine returns one result per entry: apply() was given {len(entries)} "
                f"and returned {returned if returned is not None else type(results).__name__}"
            )
        duration_ns = self._runtime.clock_ns() - began_ns
        self._post(lambda: self._on_applied(entries, results, duration_ns))

    def _on_applied(
        self, entries: Sequence[Entry], results: Sequence[Any], duration_ns: int
    ) -> None:
        if self._closed:
            return
        now_ns, last_index = self.now_ns(), entries[-1].index
        self.observer.applied(last_index, len(entries), duration_ns)
        if self.proposals.accepted_any:
            resolve, leader_id = self.proposals.applied, self.raft.leader_id
            asked: Counter[int | None] = Counter(
                resolve(e.index, e.term, Proposed(result, e.index, e.term), leader_id)
                for e, result in zip(entries, results, strict=True)
            )
            self.observer.took("proposal_seconds", asked)
        self.waits.reached(last_index)
        self.deliver(ev.Applied(now_ns, last_index))
        if not self._closed:
            self.snapshotting.on_applied(self.raft, entries)

    def _read_entries(self, effect: fx.ReadEntries) -> None:
        self.counters.log_reads += 1

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
        self.proposals.accepted(effect.token, effect.index, effect.term, self._step_ns)

    def _proposal_refused(self, effect: fx.ProposalRefused) -> None:
        self.proposals.refused(effect.token, waiters.refusal(effect.reason, effect.leader_id))

    def _leadership_changed(self, effect: fx.LeadershipChanged) -> None:
        self.observer.leadership(effect)
        if effect.role != "leader":
            self.proposals.leadership_lost()
        for callback in self.leadership_callbacks:
            # On its own turn of the loop: a caller's defect is not the core's.
            self._loop.call_soon(callback, effect)

    def _peers_changed(self, effect: fx.PeersChanged) -> None:
        self._peers = effect.peers
        self.configure_transport()

    def _configuration_changed(self, effect: fx.ConfigurationChanged) -> None:
        self.configure_transport()
        self.observer.configuration(effect.configuration, effect.index)
        for callback in self.configuration_callbacks:
            self._loop.call_soon(callback, effect.configuration)

    def _membership_finished(self, effect: fx.MembershipFinished) -> None:
        self.observer.membership(effect)
        self.changes.answer(effect.token, (effect, self.raft.configuration))

    def _on_removal(self, effect: fx.Removed) -> None:
        self.note_removed(f"the configuration at {effect.index} no longer has it")

    def note_removed(self, detail: str) -> None:
        """This node is out of the cluster for good; it goes on as a silent follower."""
        if self.removed is None:
            self.removed = detail
            self.observer.removed(detail)

    def _end_quarantine(self, effect: fx.EndQuarantine) -> None:
        def end() -> None:
            self._storage.end_quarantine()
            self._post(lambda: self._quarantine_ended(effect.index))

        self.writer.submit(end)

    def _quarantine_ended(self, index: int) -> None:
        if self._closed:
            return
        self.quarantine = None
        self.observer.quarantine_ended(index)
        self.deliver(ev.QuarantineEnded(self.now_ns()))

    def _compact(self, effect: fx.Compact) -> None:
        self.snapshotting.compact(effect.first_index)

    def _store_chunk(self, effect: fx.StoreSnapshotChunk) -> None:
        self.snapshotting.store_chunk(effect, self._jumped_to)

    def _jumped_to(self, index: int) -> None:
        self.proposals.jumped_to(index)
        self.waits.reached(index)

    def _read_chunk(self, effect: fx.ReadSnapshotChunk) -> None:
        self.snapshotting.read_chunk(effect)

    def _transfer_finished(self, effect: fx.TransferFinished) -> None:
        self.observer.transfer(effect)
        self.transfers.answer_all(effect)


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
    fx.PeersChanged: Driver._peers_changed,
    fx.MembershipFinished: Driver._membership_finished,
    fx.Removed: Driver._on_removal,
    fx.FollowerRegressed: lambda driver, effect: driver.observer.follower_regressed(effect),
    fx.GaveWay: lambda driver, effect: driver.observer.gave_way(effect),
    fx.EndQuarantine: Driver._end_quarantine,
}
