"""Pages of a list, by key set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from guardian.domain.cursors import decode_cursor, encode_cursor
from guardian.domain.problems import Fault, Problem

T = TypeVar("T")

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
#: content beyond this ends a page early; the cursor goes on from there
MAX_PAGE_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: how many items at most (1 to 1000), and after which cursor."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_LIMIT:
            fault = Fault("/limit", f"must be 1 to {MAX_LIMIT}")
            raise Problem("invalid_parameter", errors=(fault,))

    @classmethod
    def parse(cls, limit: str | None, cursor: str | None) -> PageRequest:
        """From the query parameters ``limit`` and ``cursor``.

        Raises:
            Problem: ``invalid_parameter``; a bad cursor is found when it is used.
        """
        if limit is None:
            return cls(DEFAULT_LIMIT, cursor)
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 4):
            fault = Fault("/limit", f"must be 1 to {MAX_LIMIT}")
            raise Problem("invalid_parameter", errors=(fault,))
        return cls(int(limit), cursor)

    def after(self, scope: str) -> str:
        """The position to go on from in a list ordered by text, empty for the first page."""
        return "" if self.cursor is None else decode_cursor(scope, self.cursor, str)

    def before(self, scope: str) -> int | None:
        """The position to go on from in a list ordered by number downwards."""
        return None if self.cursor is None else decode_cursor(scope, self.cursor, int)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items and where the next ones are; None at the end."""

    items: tuple[T, ...]
    next_cursor: str | None = None


def page_of(
    rows: Sequence[T], limit: int, scope: str, position: Callable[[T], str | int]
) -> Page[T]:
    """A page from up to ``limit + 1`` rows; the extra one tells whether there are more."""
    if len(rows) <= limit:
        return Page(tuple(rows))
    assert limit >= 1
    return Page(tuple(rows[:limit]), encode_cursor(scope, position(rows[limit - 1])))
