"""Bytes of sessions: held for ever by golden records, and never read wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.errors import FormatTooNewError, LogCorruptError
from raftcore.sessions import (
    Kind,
    SessionLimits,
    SessionTable,
    close_command,
    keep_alive_command,
    limits_command,
    register_command,
    session_command,
)
from raftcore.sessions.format import (
    Header,
    Reply,
    ReplyKind,
    SessionState,
    decode_header,
    decode_session,
    encode_header,
    encode_session,
    open_envelope,
    open_limits,
)

GOLDEN = Path(__file__).parent / "golden" / "sessions.txt"
LIMITS = SessionLimits(max_sessions=10, timeout_ms=60_000, window=4, reply_bytes=100)
STATE = SessionState(
    7,
    19,
    1_700_000_000_123,
    first_outstanding=3,
    replies={4: Reply(ReplyKind.KEPT, b"\x2a"), 3: Reply.of(bytes(200), 100)},
)
SAMPLES = {
    "command": session_command(b"payload", 3),
    "register": register_command(),
    "keep-alive": keep_alive_command(5),
    "close": close_command(),
    "limits": limits_command(LIMITS),
    "header": encode_header(Header(1_700_000_000_456, LIMITS, 1)),
    "session": encode_session(STATE),
}


def golden() -> dict[str, bytes]:
    lines = GOLDEN.read_text().splitlines()
    return {name: bytes.fromhex(raw) for name, raw in (line.split(" ", 1) for line in lines)}


def test_bytes_are_those_of_the_first_release_with_sessions() -> None:
    assert golden() == SAMPLES


def test_golden_records_are_read() -> None:
    raw = golden()
    assert decode_header(raw["header"]) == Header(1_700_000_000_456, LIMITS, 1)
    assert decode_session(raw["session"]) == STATE
    assert SessionTable.from_records([raw["header"], raw["session"]]).clock_ms == 1_700_000_000_456
    envelope = open_envelope(raw["command"])
    assert envelope is not None
    assert envelope == (Kind.COMMAND, 3, b"payload")
    limits = open_envelope(raw["limits"])
    assert limits is not None
    assert open_limits(limits.payload) == LIMITS


@pytest.mark.parametrize("name", ["header", "session"])
def test_a_record_of_a_later_format_is_refused_as_such(name: str) -> None:
    raw = bytearray(SAMPLES[name])
    raw[8 if name == "header" else 0] = 2
    with pytest.raises(FormatTooNewError):
        (decode_header if name == "header" else decode_session)(bytes(raw))


@given(st.sampled_from(["header", "session"]), st.data())
def test_a_record_that_is_cut_short_is_damage(name: str, data: st.DataObject) -> None:
    raw = SAMPLES[name]
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    with pytest.raises(LogCorruptError):
        (decode_header if name == "header" else decode_session)(cut)


def test_a_record_with_something_behind_it_is_damage() -> None:
    for decode, name in ((decode_header, "header"), (decode_session, "session")):
        with pytest.raises(LogCorruptError):
            decode(SAMPLES[name] + b"\0")


def test_a_state_made_without_sessions_is_told_apart() -> None:
    with pytest.raises(LogCorruptError, match="no session table"):
        SessionTable.from_records([b"the first record of some machine"])
    with pytest.raises(LogCorruptError, match="no session table"):
        SessionTable.from_records([])


def test_a_table_with_fewer_sessions_than_it_says_is_damage() -> None:
    header = encode_header(Header(0, LIMITS, 2))
    session = encode_session(STATE)
    for records in ([header, session], [header, session, session]):
        with pytest.raises(LogCorruptError, match="says 2"):
            SessionTable.from_records(records)


def test_a_session_under_the_key_of_another_is_damage() -> None:
    records = {b"": SAMPLES["header"], bytes(8): SAMPLES["session"]}
    with pytest.raises(LogCorruptError, match="key of another"):
        SessionTable.from_keyed_records(records)


@given(st.binary(max_size=40))
def test_an_envelope_is_opened_or_not_but_never_fails(raw: bytes) -> None:
    envelope = open_envelope(raw)
    if envelope is not None:
        open_limits(envelope.payload)
        assert raw[0] == 1


@pytest.mark.parametrize(
    "limits",
    [
        {"max_sessions": 0},
        {"timeout_ms": 0},
        {"window": 0},
        {"reply_bytes": -1},
        {"max_sessions": 2**20},
        {"window": 2**12, "reply_bytes": 2**12},
        {"max_sessions": 2**16, "reply_bytes": 2**16},
    ],
)
def test_limits_without_a_bound_are_not_accepted(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limits"):
        SessionLimits(**limits)
