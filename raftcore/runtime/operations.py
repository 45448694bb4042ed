"""What users ask of a running node: propose, read, wait, hand over.

Each call either returns what was asked for or raises one typed error, which says whether something
may have happened; what can be known to fail is refused before anything happens.
"""

from __future__ import annotations

import asyncio

from raftcore.core import events as ev
from raftcore.core.effects import TransferRefusal
from raftcore.core.types import NodeId
from raftcore.errors import (
    ChangeInProgressError,
    InvalidArgumentError,
    NotLeaderError,
    OutcomeUnknownError,
    QuarantinedError,
    ReadTimeoutError,
    RefusedError,
    RemovedError,
    StoppedError,
    StorageFullError,
    TransferFailedError,
    UnknownPeerError,
)
from raftcore.metrics import Counters
from raftcore.runtime import waiters
from raftcore.runtime.driver import Driver
from raftcore.runtime.options import NodeOptions, Runtime
from raftcore.runtime.status import Proposed
from raftcore.trace import Kind


class Operations:
    """The operations of a :class:`~raftcore.Node`, which has its life around them."""

    def __init__(self, options: NodeOptions, runtime: Runtime) -> None:
        self.options = options
        self.counters = Counters()
        self._runtime = runtime
        self._driver: Driver | None = None
        self._closing = False

    def _running(self) -> Driver:
        if self._driver is None or self._closing:
            raise StoppedError("the node is not running")
        return self._driver

    def _member(self) -> Driver:
        """For what needs the cluster."""
        driver = self._running()
        if driver.removed is not None:
            raise RemovedError(f"this node was removed from the cluster: {driver.removed}")
        return driver

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
            NotLeaderError, TransferringError: nothing was written and never will be; ask the leader
                that they name.
            InvalidArgumentError, OverloadedError, EntryTooLargeError, StorageFullError,
                StoppedError, RemovedError: refused before anything happened.
            OutcomeUnknownError: it was accepted and may or may not take effect.
        """
        timer = None
        try:
            driver = self._member()
            waiters.check_command(data, client_id, sequence, self.options.max_entry_bytes)
            waiters.check_timeout(timeout_s)
            if driver.disk_full:
                driver.writer.maintain()
                raise StorageFullError("the disk of the log is nearly full")
            loop = asyncio.get_running_loop()
            if not driver.proposals.incoming:
                # Everything proposed in this turn of the loop goes into one event.
                driver.proposals.turn_ns = driver.now_ns()
                loop.call_soon(driver.flush_proposals)
            future = driver.proposals.add(loop, data, client_id, sequence)
            timer = loop.call_later(timeout_s, driver.proposals.expire, future)
            result: Proposed = await future
        except RefusedError as error:
            self.counters.proposals_refused_by[error.code] += 1
            raise
        except OutcomeUnknownError:
            self.counters.proposals_unknown += 1
            raise
        else:
            return result
        finally:
            if timer is not None:
                timer.cancel()

    async def read_barrier(self, *, timeout_s: float = 10.0, lease: bool | None = None) -> int:
        """After this the local state machine reflects every write acknowledged before the call.

        Works on any member; followers and learners ask the leader. Returns the log index waited
        for.

        Args:
            timeout_s: how long it may take.
            lease: a leader with a valid lease need not ask anybody; this trusts the clocks of the
                members (rule 35). None: as ``NodeOptions.lease_reads`` says.

        Raises:
            NotLeaderError: no leader is known that could confirm it; ask again.
            ReadTimeoutError: no leader confirmed it in time, or it was not applied here in time.
            QuarantinedError, OverloadedError, StoppedError, RemovedError, InvalidArgumentError:
                refused.
        """
        began_ns = self._runtime.clock_ns()
        by_lease = bool(self.options.lease_reads if lease is None else lease)
        try:
            waiters.check_timeout(timeout_s)
            driver = self._member()
            index = await self._read_barrier(driver, timeout_s, by_lease)
        except RefusedError as error:
            self.counters.reads_refused_by[error.code] += 1
            raise
        seconds = (self._runtime.clock_ns() - began_ns) / 1e9
        driver.observer.measures["read_seconds"].observe(seconds)
        return index

    async def _read_barrier(self, driver: Driver, timeout_s: float, lease: bool) -> int:
        if driver.quarantine is not None:
            raise QuarantinedError(driver.quarantine)
        loop = asyncio.get_running_loop()
        future = driver.reads.add(loop, lease=lease)
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
            raise ReadTimeoutError("the read was not confirmed in time") from None

    async def wait_applied(self, index: int, *, timeout_s: float = 10.0) -> int:
        """Until the local state machine holds the entry at ``index``: whoever was told the index of
        a write reads it here, on any member. Returns an index applied.

        Raises:
            ReadTimeoutError: it was not applied here in time.
            InvalidArgumentError, OverloadedError, StoppedError: refused.
        """
        driver = self._running()
        if type(index) is not int:
            raise InvalidArgumentError(f"a log index is a number, not {index!r:.80}")
        waiters.check_timeout(timeout_s)
        if driver.raft.applied_index >= index:
            return driver.raft.applied_index
        loop = asyncio.get_running_loop()
        future = driver.waits.add(loop, index)
        timer = loop.call_later(timeout_s, driver.waits.expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def transfer_leadership(
        self, target: NodeId | None = None, *, timeout_s: float = 10.0
    ) -> NodeId:
        """Hand leadership to ``target`` (or the best member) and await that it moved.

        The core gives up after one election timeout on its own, and with :meth:`abort_transfer`
        earlier.

        Raises:
            NotLeaderError: this node does not lead.
            ChangeInProgressError: a transfer is under way already.
            UnknownPeerError: no such voter.
            TransferFailedError: it did not go there, and will not any more.
            OutcomeUnknownError: the target was told to take over and was not seen to lead.
        """
        driver = self._member()
        waiters.check_timeout(timeout_s)
        if not driver.raft.is_leader:
            raise NotLeaderError(driver.raft.leader_id)
        if target is not None and target not in driver.raft.configuration.voters:
            raise UnknownPeerError(f"{target} is no voter")
        if len(driver.transfers):
            raise ChangeInProgressError("a transfer is under way already")
        driver.observer.trace(Kind.TRANSFER_STARTED, target=target)
        token, future = driver.transfers.add(asyncio.get_running_loop())
        driver.deliver(ev.TransferRequested(driver.now_ns(), target))
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await future
        except TimeoutError:
            raise OutcomeUnknownError("the transfer did not end in time") from None
        finally:
            driver.transfers.forget(token)
        if outcome.unknown:
            raise OutcomeUnknownError(outcome.detail)
        if outcome.refusal is TransferRefusal.IN_PROGRESS:
            raise ChangeInProgressError(outcome.detail)
        if outcome.refusal is TransferRefusal.NOT_LEADER:
            raise NotLeaderError(driver.raft.leader_id)
        if not outcome.succeeded or outcome.target is None:
            raise TransferFailedError(outcome.detail)
        return outcome.target

    def abort_transfer(self) -> None:
        """Keep the leadership: give up the transfer under way, whoever began it; nothing happens if
        there is none. Proposals are accepted again from now on.

        Whoever awaits :meth:`transfer_leadership` gets :class:`TransferFailedError`; or
        :class:`OutcomeUnknownError` if the target was told to take over already, and may yet.

        Raises:
            NotLeaderError: this node does not lead (any more).
            StoppedError, RemovedError: refused.
        """
        driver = self._member()
        if not driver.raft.is_leader:
            raise NotLeaderError(driver.raft.leader_id)
        driver.deliver(ev.TransferAborted(driver.now_ns()))
