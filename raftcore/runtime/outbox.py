"""Messages on their way out, and the durable writes that some of them wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raftcore.core.effects import Persist, Send
from raftcore.core.messages import Message
from raftcore.core.types import NodeId, WriteMark

MS = 1_000_000


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

    Args:
        give: hands a message to the transport.
    """

    def __init__(
        self, give: Callable[[NodeId, Message], None], clock_ns: Callable[[], int]
    ) -> None:
        self._give = give
        self._clock_ns = clock_ns
        self._held: deque[_Held] = deque()
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
            held = _Held(mark.sequence, effect.to, effect.message, self._clock_ns())
            self._held.append(held)

    def durable(self, mark: WriteMark) -> None:
        """Every write up to that one is durable: what waited for them leaves."""
        self._durable = mark.sequence
        while self._writing and self._writing[0][0] <= mark.sequence:
            self._writing.popleft()
        while self._held and self._held[0].sequence <= mark.sequence:
            held = self._held.popleft()
            self._give(held.to, held.message)

    def clear(self) -> None:
        """What waits will never leave."""
        self._held.clear()

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
