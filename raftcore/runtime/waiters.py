"""Those who wait for an answer: proposals, reads, changes. All on the event loop's thread."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from raftcore.core.effects import RefusalReason
from raftcore.core.events import Proposal
from raftcore.core.types import NodeId
from raftcore.errors import (
    EntryTooLargeError,
    InvalidArgumentError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RaftcoreError,
    ReadTimeoutError,
    RefusedError,
    TransferringError,
)

T = TypeVar("T")

#: What the record of an entry has room for.
MAX_CLIENT_ID_BYTES = 255
MAX_SEQUENCE = 2**64 - 1


def refusal(reason: RefusalReason, leader_id: NodeId | None) -> RefusedError:
    """The error that a caller sees for a refusal of the core."""
    if reason is RefusalReason.OVERLOADED:
        return OverloadedError("too much is waiting to be committed or read")
    if reason is RefusalReason.TRANSFERRING:
        return TransferringError(leader_id)
    return NotLeaderError(leader_id)


def check_command(data: object, client_id: object, sequence: object, max_bytes: int) -> None:
    """What is proposed fits into an entry. Found later, it would stop the node."""
    if not isinstance(data, bytes):
        raise InvalidArgumentError(f"a command is bytes, not {type(data).__name__}")
    if len(data) > max_bytes:
        raise EntryTooLargeError(f"{len(data)} bytes proposed, {max_bytes} is the limit")
    if not isinstance(client_id, bytes) or len(client_id) > MAX_CLIENT_ID_BYTES:
        raise InvalidArgumentError(f"a client id is at most {MAX_CLIENT_ID_BYTES} bytes")
    # type() and not isinstance: True is an int to Python, but no number of a command.
    if type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE:
        raise InvalidArgumentError("a sequence is a number from 0 to 2**64 - 1")


def check_timeout(timeout_s: object) -> None:
    # A NaN, which equals nothing, would put the loop's timers out of order.
    if not isinstance(timeout_s, (int, float)) or math.isnan(timeout_s):
        raise InvalidArgumentError(f"timeout_s is a number of seconds, not {timeout_s!r:.80}")


@dataclass(slots=True)
class _Accepted:
    """A proposal that stands in the log at an index under ``term``."""

    term: int
    future: asyncio.Future[Any]
    asked_ns: int
    accepted_ns: int


@dataclass(slots=True)
class _Incoming:
    token: int
    data: bytes
    client_id: bytes
    sequence: int


class Proposals:
    """Proposals on their way: not yet given to the core, accepted at an index, or answered."""

    def __init__(self, limit: int) -> None:
        self.incoming: list[_Incoming] = []
        #: when the first of ``incoming`` was made; the clock is read once per turn of the loop
        self.turn_ns = 0
        self._limit = limit
        self._next_token = 0
        self._asked: dict[int, tuple[asyncio.Future[Any], int]] = {}
        self._by_index: dict[int, _Accepted] = {}

    def __len__(self) -> int:
        return len(self._asked) + len(self._by_index)

    def add(
        self, loop: asyncio.AbstractEventLoop, data: bytes, client_id: bytes, sequence: int
    ) -> asyncio.Future[Any]:
        if len(self) >= self._limit:
            raise OverloadedError(f"{len(self)} proposals are waiting already")
        self._next_token += 1
        future: asyncio.Future[Any] = loop.create_future()
        self._asked[self._next_token] = (future, self.turn_ns)
        self.incoming.append(_Incoming(self._next_token, data, client_id, sequence))
        return future

    def take_incoming(self, timestamp_ms: int) -> tuple[Proposal, ...]:
        """Everything proposed since the last call, stamped; without those given up meanwhile."""
        incoming, self.incoming = self.incoming, []
        proposals = []
        for item in incoming:
            if self._asked[item.token][0].done():
                del self._asked[item.token]
                continue
            proposals.append(
                Proposal(item.token, item.data, item.client_id, item.sequence, timestamp_ms)
            )
        return tuple(proposals)

    def accepted(self, token: int, index: int, term: int, now_ns: int = 0) -> None:
        future, asked_ns = self._asked.pop(token)
        superseded = self._by_index.pop(index, None)
        if superseded is not None:
            # Accepted in an earlier term at this index, then truncated here: some other node may
            # hold it still and commit it under a later leader (Figure 3.7).
            _set_error(
                superseded.future, OutcomeUnknownError("leadership was lost; it may still commit")
            )
        self._by_index[index] = _Accepted(term, future, asked_ns, now_ns)

    @property
    def accepted_any(self) -> bool:
        """Whether anybody waits for an entry to be applied."""
        return bool(self._by_index)

    def leadership_lost(self) -> None:
        """This node does not lead any more: what it accepted may or may not commit (rule 51)."""
        waiting, self._by_index = self._by_index, {}
        for accepted in waiting.values():
            lost = OutcomeUnknownError("leadership was lost; it may still commit")
            _set_error(accepted.future, lost)

    def refused(self, token: int, error: RefusedError) -> None:
        _set_error(self._asked.pop(token)[0], error)

    def accepted_times(self, indexes: Iterable[int]) -> Counter[int]:
        """When the proposals that wait at those indexes were accepted, and how many each time."""
        by_index = self._by_index
        return Counter(by_index[index].accepted_ns for index in indexes if index in by_index)

    def applied(
        self, index: int, term: int, result: object, leader_id: NodeId | None
    ) -> int | None:
        """The entry committed at ``index`` is of ``term``. Returns when the proposal was made that
        has its result now, if one has."""
        accepted = self._by_index.pop(index, None)
        if accepted is None or accepted.future.done():
            return None
        if accepted.term == term:
            accepted.future.set_result(result)
            return accepted.asked_ns
        # Another entry is committed at that index: ours exists nowhere else and never will.
        replaced = NotLeaderError(leader_id, "another leader's entry took its place")
        accepted.future.set_exception(replaced)
        return None

    def jumped_to(self, index: int) -> None:
        """A snapshot replaced the log up to ``index``: what waited there can not be told apart."""
        for waiting_index in [i for i in self._by_index if i <= index]:
            accepted = self._by_index.pop(waiting_index)
            _set_error(accepted.future, OutcomeUnknownError("the log was replaced by a snapshot"))

    @staticmethod
    def expire(future: asyncio.Future[Any]) -> None:
        _set_error(future, OutcomeUnknownError("no result in time; it may still take effect"))

    def end(self, unknown: OutcomeUnknownError, refused: RefusedError) -> None:
        """The node stops: what the core never saw is refused, the rest is unknown (rule 51)."""
        never_seen = {item.token for item in self.incoming}
        for token, (future, _) in self._asked.items():
            _set_error(future, refused if token in never_seen else unknown)
        for accepted in self._by_index.values():
            _set_error(accepted.future, unknown)
        self.incoming.clear()
        self._asked.clear()
        self._by_index.clear()


class Reads:
    """Reads that wait for a confirmed position; all of one loop turn and kind share one round.

    Args:
        first_id: where the numbers of rounds begin.
        limit: how many may wait at once. The core's bound is one of rounds, not of readers.
    """

    def __init__(self, first_id: int, limit: int) -> None:
        self._limit = limit
        self._waiting = 0
        #: asked for in this turn of the loop, and whether a lease will do
        self.incoming: list[tuple[asyncio.Future[int], bool]] = []
        self._rounds: dict[int, list[asyncio.Future[int]]] = {}
        self._next_id = first_id
        #: somebody stopped waiting since the last look: only then is there anything to look for
        self.gave_up = False

    def add(self, loop: asyncio.AbstractEventLoop, *, lease: bool = False) -> asyncio.Future[int]:
        if self._waiting >= self._limit:
            raise OverloadedError(f"{self._waiting} reads are waiting already")
        self._waiting += 1
        future: asyncio.Future[int] = loop.create_future()
        future.add_done_callback(self._left)
        self.incoming.append((future, lease))
        return future

    def _left(self, _future: asyncio.Future[int]) -> None:
        self._waiting -= 1

    def start_rounds(self) -> list[tuple[int, bool]]:
        """One round for those who want it confirmed, one for those whom a lease will do."""
        incoming, self.incoming = self.incoming, []
        rounds = []
        for lease in (False, True):
            waiting = [f for f, by_lease in incoming if by_lease is lease and not f.done()]
            if waiting:
                self._next_id += 1
                self._rounds[self._next_id] = waiting
                rounds.append((self._next_id, lease))
        return rounds

    def abandoned(self) -> list[int]:
        """Rounds that nobody waits for any more; forgotten with this call."""
        if not self.gave_up:
            return []
        self.gave_up = False
        gone = [
            read_id
            for read_id, futures in self._rounds.items()
            if all(future.done() for future in futures)
        ]
        for read_id in gone:
            del self._rounds[read_id]
        return gone

    def release(self, read_id: int, index: int) -> None:
        for future in self._rounds.pop(read_id, ()):
            if not future.done():
                future.set_result(index)

    def refuse(self, read_id: int, error: RefusedError) -> None:
        for future in self._rounds.pop(read_id, ()):
            _set_error(future, error)

    def end(self, error: RefusedError) -> None:
        for futures in ([future for future, _ in self.incoming], *self._rounds.values()):
            for future in futures:
                _set_error(future, error)
        self.incoming = []
        self._rounds.clear()


class AppliedWaits:
    """Those who wait until an index is applied here.

    Args:
        limit: how many may wait at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: list[tuple[int, int, asyncio.Future[int]]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, loop: asyncio.AbstractEventLoop, index: int) -> asyncio.Future[int]:
        if len(self._waiting) >= self._limit:
            # Who gave up on a far index is still in there, perhaps for ever.
            self._waiting = [wait for wait in self._waiting if not wait[2].done()]
            heapq.heapify(self._waiting)
        if len(self._waiting) >= self._limit:
            raise OverloadedError(f"{len(self._waiting)} callers wait for an index already")
        future: asyncio.Future[int] = loop.create_future()
        heapq.heappush(self._waiting, (index, next(self._order), future))
        return future

    def reached(self, index: int) -> None:
        """Everything up to ``index`` is applied."""
        while self._waiting and self._waiting[0][0] <= index:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(index)

    @staticmethod
    def expire(future: asyncio.Future[int]) -> None:
        _set_error(future, ReadTimeoutError("that index was not applied here in time"))

    def end(self, error: RefusedError) -> None:
        waiting, self._waiting = self._waiting, []
        for _, _, future in waiting:
            _set_error(future, error)


class Answers(Generic[T]):
    """Callers that wait for the one answer to what they asked, by token."""

    def __init__(self) -> None:
        self._next_token = 0
        self._waiting: dict[int, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, loop: asyncio.AbstractEventLoop) -> tuple[int, asyncio.Future[T]]:
        self._next_token += 1
        future: asyncio.Future[T] = loop.create_future()
        self._waiting[self._next_token] = future
        return self._next_token, future

    def answer(self, token: int, value: T) -> None:
        future = self._waiting.pop(token, None)
        if future is not None and not future.done():
            future.set_result(value)

    def answer_all(self, value: T) -> None:
        for token in list(self._waiting):
            self.answer(token, value)

    def forget(self, token: int) -> None:
        """Nobody waits for that answer any more."""
        self._waiting.pop(token, None)

    def end(self, error: RaftcoreError) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            _set_error(future, error)


def _set_error(future: asyncio.Future[Any], error: RaftcoreError) -> None:
    if not future.done():
        future.set_exception(error)
