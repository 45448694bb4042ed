"""Messages on their way out, and the durable writes that some of them wait for."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raftcore.core.effects import Persist, Send
from raftcore.core.messages import HeartbeatReply, Message
from raftcore.core.types import NodeId, WriteMark

logger = logging.getLogger(__name__)

MS = 1_000_000

#: Most messages that wait for a disk that hangs; one more is dropped, as a network may drop it.
MAX_HELD = 10_000


@dataclass(slots=True)
class _Held:
    """A message that waits for the durable write of that number."""

    sequence: int
    to: NodeId
    message: Message
    since_ns: int


class Outbox:
    """Gives messages to the transport, those with a mark only when its write is durable.

    Messages that wait stand in one queue, in the order in which the core gave them. The first one
    leaves when its write is durable, and those behind it only after it, even if the write that they
    name has long been durable: marks do not ascend (see :class:`~raftcore.core.effects.Send`). To
    be late is allowed and keeps their order; to be early is what must never happen (O1, O2, O8).

    What waits is bounded, for a leader goes on asking a node whose disk hangs: a later reply to a
    peer's heartbeats takes the place of the one that waits, and above :data:`MAX_HELD` messages are
    dropped.

    Args:
        give: hands a message to the transport.
    """

    def __init__(
        self, give: Callable[[NodeId, Message], None], clock_ns: Callable[[], int]
    ) -> None:
        self._give = give
        self._clock_ns = clock_ns
        self._held: deque[_Held] = deque()
        #: those of them that answer heartbeats, by peer
        self._held_echoes: dict[NodeId, _Held] = {}
        self._dropping = False
        #: writes on their way to the disk, oldest first: number, and when they were asked for
        self._writing: deque[tuple[int, int]] = deque()
        self._durable = 0

    def writing(self, effect: Persist) -> None:
        """That write was given to the log writer."""
        self._writing.append((effect.mark.sequence, self._clock_ns()))

    def send(self, effect: Send) -> None:
        """Let it go at once if it may, otherwise when it may."""
        mark = effect.after
        if mark is None or (not self._held and mark.sequence <= self._durable):
            self._give(effect.to, effect.message)
        else:
            self._hold(mark, effect.to, effect.message)

    def _hold(self, mark: WriteMark, to: NodeId, message: Message) -> None:
        is_echo = isinstance(message, HeartbeatReply)
        waiting = self._held_echoes.get(to) if is_echo else None
        if waiting is not None:
            if _echoed(message) >= _echoed(waiting.message):  # else it answers an old heartbeat
                waiting.sequence, waiting.message = mark.sequence, message
            return
        if len(self._held) >= MAX_HELD:
            if not self._dropping:
                logger.error("%d messages wait for the disk: more are dropped", len(self._held))
            self._dropping = True
            return
        held = _Held(mark.sequence, to, message, self._clock_ns())
        self._held.append(held)
        if is_echo:
            self._held_echoes[to] = held

    def durable(self, mark: WriteMark) -> None:
        """Every write up to that one is durable: what waited for them leaves."""
        self._durable = mark.sequence
        while self._writing and self._writing[0][0] <= mark.sequence:
            self._writing.popleft()
        while self._held and self._held[0].sequence <= mark.sequence:
            held = self._held.popleft()
            if self._held_echoes.get(held.to) is held:
                del self._held_echoes[held.to]
            self._dropping = False
            self._give(held.to, held.message)

    def clear(self) -> None:
        """What waits will never leave."""
        self._held.clear()
        self._held_echoes.clear()

    # -- looking in -----------------------------------------------------------------------------

    @property
    def held_messages(self) -> int:
        return len(self._held)

    @property
    def writes_waiting(self) -> int:
        return len(self._writing)

    def held_age_ms(self) -> int:
        """How long the first of the waiting messages waits."""
        return (self._clock_ns() - self._held[0].since_ns) // MS if self._held else 0

    def write_age_ms(self) -> int:
        """Age of the oldest write that is not durable yet."""
        return (self._clock_ns() - self._writing[0][1]) // MS if self._writing else 0


def _echoed(message: Message) -> tuple[int, int]:
    """What a reply to a heartbeat tells: it stands for every reply that tells less."""
    assert isinstance(message, HeartbeatReply)
    return message.term, message.read_counter
