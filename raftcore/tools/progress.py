"""How a long piece of work says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told now and then: what is being done, how much of it is done, and of how much (0: unknown).

    Called often; whoever shows it decides how often that is.
    """

    def __call__(self, doing: str, done: int, total: int) -> None: ...


def silent(doing: str, done: int, total: int) -> None:
    """Tells nobody."""
