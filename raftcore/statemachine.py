"""What raftcore asks of a state machine.

All calls come from one thread (the apply thread), one at a time, except reading from an opened
:class:`SnapshotSource`, which happens on another thread while applies go on.

The machine must be deterministic: equal entries give equal state and equal results on every node.
It must keep its last applied position in the same atomic write as the data that the entries
produced, so that an entry is never applied twice to one state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raftcore.core.types import Entry


@dataclass(frozen=True, slots=True)
class AppliedPosition:
    """How far a state machine is: log index and term, and the log's SHA-256 chain hash there.

    Index 0 with an empty chain means an empty machine.
    """

    index: int = 0
    term: int = 0
    chain: bytes = b""


class SnapshotSource(Protocol):
    """A consistent view of the state at ``position`` that stays readable while writes go on."""

    @property
    def position(self) -> AppliedPosition: ...

    def records(self) -> Iterator[bytes]:
        """The state as records in a fixed order; each at most a few MiB.

        May raise a :class:`~raftcore.errors.RefusedError` when the view had to be given up; the
        snapshot is then abandoned and another is taken later.
        """
        ...

    def close(self) -> None:
        """Release the view. Called exactly once, also after an error."""
        ...


class StateMachine(Protocol):
    """The replicated state machine that a node drives."""

    def last_applied(self) -> AppliedPosition:
        """Where the durable-enough state stands; read once at start and after an install."""
        ...

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> Sequence[Any]:
        """Apply ``entries`` in one atomic write that also records ``position``.

        ``entries`` are contiguous from ``last_applied().index + 1`` on and hold every type: no-op
        and configuration entries only move the position. Returns one result per entry, in order;
        what it returns for a command is what ``Node.propose`` gives to the proposer. A command that
        the machine refuses is a *result*, never an exception: an exception stops the node.
        """
        ...

    def open_snapshot(self) -> SnapshotSource:
        """A view of the state as of the last ``apply``."""
        ...

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        """Replace the whole state by ``records``, atomically and durably."""
        ...

    def discard(self) -> None:
        """Forget all state, so that the node rebuilds it from snapshot and log."""
        ...

    def close(self) -> None: ...
