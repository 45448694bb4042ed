"""How the commands speak."""

from __future__ import annotations

import io
import json

import pytest

from raftcore.cli import output
from raftcore.cli.output import ProgressLine
from raftcore.core.types import EntryType


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_for_two_seconds_and_then_at_most_five_times_a_second() -> None:
    clock, stream = Clock(), Terminal()
    line = ProgressLine(stream=stream, clock_s=clock)
    line("verifying", 1, 10)
    assert stream.getvalue() == ""
    clock.now_s += 2.0
    line("verifying", 5, 10)
    line("verifying", 6, 10)
    assert stream.getvalue() == "\r\x1b[Kverifying: 5 50%"
    clock.now_s += 0.2
    line("copying", 7, 0)
    assert stream.getvalue().endswith("copying: 7")
    line.end()
    line.end()
    assert stream.getvalue().endswith("copying: 7\r\x1b[K")


def test_progress_goes_to_a_terminal_only_unless_it_is_asked_for() -> None:
    clock = Clock()
    for wanted, expected in ((None, False), (True, True)):
        stream = io.StringIO()
        line = ProgressLine(wanted, stream=stream, clock_s=clock)
        clock.now_s += 3
        line("verifying", 1, 2)
        line.end()
        assert bool(stream.getvalue()) is expected


def test_what_a_log_holds_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a\x1b[2Jb\u202e\rc")
    output.complain("\x07")
    captured = capsys.readouterr()
    assert captured.out == "a\\x1b[2Jb\\u202e\\rc\n"
    assert captured.err == "\\x07\n"


def test_json_says_bytes_as_hex_and_types_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_json_line({"a": b"\xff", "b": EntryType.NOOP, "c": (1, {2})})
    assert json.loads(capsys.readouterr().out) == {"a": "ff", "b": "noop", "c": [1, [2]]}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert output.size(count) == text


def test_a_moment_that_no_calendar_has_is_still_said() -> None:
    assert output.moment(1_700_000_000_000) == "2023-11-14 22:13:20 UTC"
    assert output.moment(0) == "at an unknown time"
    assert output.moment(2**63) == f"at {2**63} ms"
