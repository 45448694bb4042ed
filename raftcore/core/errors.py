"""Errors of the core: the caller's misuse and the peer's violation are different types."""

from __future__ import annotations


class CoreError(Exception):
    """Base of what the core raises."""


class MisuseError(CoreError):
    """The driver broke the contract (an unknown mark, time going backwards, a gap in a read)."""


class PeerViolationError(CoreError):
    """A peer sent what no correct member of this cluster can send; the message had no effect."""


class InvariantError(CoreError):
    """A safety invariant does not hold (two leaders in one term, truncation below commit).

    Never caught and continued: the node must stop, because going on could spread the damage.
    """
