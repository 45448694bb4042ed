"""Those who wait for an answer: proposals and reads. All on the event loop's thread."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from raftcore.core.effects import RefusalReason
from raftcore.core.events import Proposal
from raftcore.core.types import NodeId
from raftcore.errors import (
    EntryTooLargeError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RaftcoreError,
    RefusedError,
)


def refusal(reason: RefusalReason, leader_id: NodeId | None) -> RefusedError:
    """The error that a caller sees for a refusal of the core."""
    if reason is RefusalReason.OVERLOADED:
        return OverloadedError("too much is waiting to be committed or read")
    if reason is RefusalReason.TRANSFERRING:
        return NotLeaderError(leader_id, "leadership is being handed over")
    return NotLeaderError(leader_id)


def check_size(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise EntryTooLargeError(f"{len(data)} bytes proposed, {max_bytes} is the limit")


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
        self._limit = limit
        self._next_token = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._by_index: dict[int, tuple[int, asyncio.Future[Any]]] = {}

    def __len__(self) -> int:
        return len(self._asked) + len(self._by_index)

    def add(
        self, loop: asyncio.AbstractEventLoop, data: bytes, client_id: bytes, sequence: int
    ) -> asyncio.Future[Any]:
        if len(self) >= self._limit:
            raise OverloadedError(f"{len(self)} proposals are waiting already")
        self._next_token += 1
        future: asyncio.Future[Any] = loop.create_future()
        self._asked[self._next_token] = future
        self.incoming.append(_Incoming(self._next_token, data, client_id, sequence))
        return future

    def take_incoming(self, timestamp_ms: int) -> tuple[Proposal, ...]:
        """Everything proposed since the last call, stamped; without those given up meanwhile."""
        incoming, self.incoming = self.incoming, []
        proposals = []
        for item in incoming:
            if self._asked[item.token].done():
                del self._asked[item.token]
                continue
            proposals.append(
                Proposal(item.token, item.data, item.client_id, item.sequence, timestamp_ms)
            )
        return tuple(proposals)

    def accepted(self, token: int, index: int, term: int) -> None:
        future = self._asked.pop(token)
        superseded = self._by_index.pop(index, None)
        if superseded is not None:
            # Accepted in an earlier term at this index, then truncated here: some other node may
            # hold it still and commit it under a later leader (Figure 3.7).
            _set_error(
                superseded[1], OutcomeUnknownError("leadership was lost; it may still commit")
            )
        self._by_index[index] = (term, future)

    @property
    def accepted_any(self) -> bool:
        """Whether anybody waits for an entry to be applied."""
        return bool(self._by_index)

    def leadership_lost(self) -> None:
        """This node does not lead any more: what it accepted may or may not commit (rule 51)."""
        waiting, self._by_index = self._by_index, {}
        for _, future in waiting.values():
            _set_error(future, OutcomeUnknownError("leadership was lost; it may still commit"))

    def refused(self, token: int, error: RefusedError) -> None:
        _set_error(self._asked.pop(token), error)

    def applied(self, index: int, term: int, result: object, leader_id: NodeId | None) -> None:
        """The entry committed at ``index`` is of ``term``."""
        waiting = self._by_index.pop(index, None)
        if waiting is None:
            return
        accepted_term, future = waiting
        if future.done():
            return
        if accepted_term == term:
            future.set_result(result)
        else:
            # Another entry is committed at that index: ours exists nowhere else and never will.
            future.set_exception(NotLeaderError(leader_id, "another leader's entry took its place"))

    def jumped_to(self, index: int) -> None:
        """A snapshot replaced the log up to ``index``: what waited there can not be told apart."""
        for waiting_index in [i for i in self._by_index if i <= index]:
            _, future = self._by_index.pop(waiting_index)
            _set_error(future, OutcomeUnknownError("the log was replaced by a snapshot"))

    @staticmethod
    def expire(future: asyncio.Future[Any]) -> None:
        _set_error(future, OutcomeUnknownError("no result in time; it may still take effect"))

    def end(self, unknown: OutcomeUnknownError, refused: RefusedError) -> None:
        """The node stops: what the core never saw is refused, the rest is unknown (rule 51)."""
        never_seen = {item.token for item in self.incoming}
        for token, future in self._asked.items():
            _set_error(future, refused if token in never_seen else unknown)
        for _, future in self._by_index.values():
            _set_error(future, unknown)
        self.incoming.clear()
        self._asked.clear()
        self._by_index.clear()


class Reads:
    """Reads that wait for a confirmed position; all of one loop turn share one round."""

    def __init__(self, first_id: int) -> None:
        self.incoming: list[asyncio.Future[int]] = []
        self._rounds: dict[int, list[asyncio.Future[int]]] = {}
        self._next_id = first_id
        #: somebody stopped waiting since the last look: only then is there anything to look for
        self.gave_up = False

    def add(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[int]:
        future: asyncio.Future[int] = loop.create_future()
        self.incoming.append(future)
        return future

    def start_round(self) -> int | None:
        incoming, self.incoming = self.incoming, []
        waiting = [future for future in incoming if not future.done()]
        if not waiting:
            return None
        self._next_id += 1
        self._rounds[self._next_id] = waiting
        return self._next_id

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
        for futures in (self.incoming, *self._rounds.values()):
            for future in futures:
                _set_error(future, error)
        self.incoming = []
        self._rounds.clear()


def _set_error(future: asyncio.Future[Any], error: RaftcoreError) -> None:
    if not future.done():
        future.set_exception(error)
