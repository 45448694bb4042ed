"""How the commands speak: text for people, one JSON document for programs, progress on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

#: Work that is done sooner shows no progress.
QUIET_S = 2.0
WIDTH = 90
_INTERVAL_S = 0.2


def say(text: str = "") -> None:
    """One line on standard output. What a log holds cannot steer the terminal."""
    sys.stdout.write(printable(text) + "\n")


def paragraph(text: str, *, indent: str = "") -> None:
    """A sentence or more, in lines that fit a terminal."""
    say(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))


def printable(text: str) -> str:
    """``text`` with everything escaped that is neither printable nor the end of a line."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def say_json(value: Any) -> None:
    """``value`` as one JSON document on standard output."""
    sys.stdout.write(json.dumps(plain(value), indent=2) + "\n")


def say_json_line(value: Any) -> None:
    """``value`` as one line of JSON."""
    sys.stdout.write(json.dumps(plain(value), separators=(",", ":")) + "\n")


def complain(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(printable(text) + "\n")


def plain(value: Any) -> Any:
    """What JSON can say of ``value``: bytes as hex, records as objects."""
    if isinstance(value, Enum):
        return value.name.lower() if isinstance(value.value, int) else value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        said = [f.name for f in dataclasses.fields(value) if f.init]  # the rest follows from it
        return {name: plain(getattr(value, name)) for name in said}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values in two columns."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        say(f"{name:<{width}}  {value}")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as what is in them."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    for row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        say(line.rstrip())


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def moment(unix_ms: int) -> str:
    """A time of the wall clock, in UTC; 0 stands for one that is not known."""
    if unix_ms == 0:
        return "at an unknown time"
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # a leader's clock is only data
        return f"at {unix_ms} ms"


class ProgressLine:
    """A line on standard error that is written over, after :data:`QUIET_S` of work.

    Args:
        wanted: show it at all; by default only on a terminal.
    """

    def __init__(
        self,
        wanted: bool | None = None,
        *,
        stream: TextIO | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._wanted = self._stream.isatty() if wanted is None else wanted
        self._clock_s = clock_s
        self._started_s = clock_s()
        self._shown_s: float | None = None

    def __call__(self, doing: str, done: int, total: int) -> None:
        now_s = self._clock_s()
        if not self._wanted or now_s - self._started_s < QUIET_S:
            return
        if self._shown_s is not None and now_s - self._shown_s < _INTERVAL_S:
            return
        self._shown_s = now_s
        share = f" {min(100 * done // total, 100)}%" if total > 0 else ""
        self._stream.write(f"\r\x1b[K{doing}: {done}{share}")
        self._stream.flush()

    def end(self) -> None:
        """Remove the line."""
        if self._shown_s is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown_s = None
