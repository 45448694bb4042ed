"""How an invariant that does not hold is told."""

from __future__ import annotations


class BrokenInvariantError(AssertionError):
    """An invariant does not hold. ``invariant`` is its name."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


def require(holds: bool, invariant: str, detail: str) -> None:
    if not holds:
        raise BrokenInvariantError(invariant, detail)
