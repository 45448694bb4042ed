"""Commands and results are in the logs and on the wires of all releases: no byte may change."""

from __future__ import annotations

import msgspec
import pytest

from guardian.fsm.commands import (
    AbortSchemaAttempt,
    AnyCommand,
    AnyResult,
    ConfigWritten,
    CreateConfig,
    CreateKey,
    CreateProject,
    DeleteConfig,
    DeleteProject,
    DeleteSchema,
    Done,
    Envelope,
    PurgeProject,
    PutSchema,
    Refused,
    RevokeKey,
    RollbackConfig,
    UndecodableError,
    UpdateConfig,
    decode_command,
    decode_result,
    encode_command,
    encode_result,
)

HEAD = Envelope(b"0123456789abcdef", "user:1", "key", b"p")
#: the canonical bytes of HEAD, after which every command goes on
HEAD_HEX = "94c41030313233343536373839616263646566a6757365723a31a36b6579c40170"

COMMANDS: list[tuple[AnyCommand, str]] = [
    (CreateProject(HEAD, "p", "k", b"d", "n"), "019601" + HEAD_HEX + "a170a16bc40164a16e"),
    (DeleteProject(HEAD, "p"), "019302" + HEAD_HEX + "a170"),
    (PurgeProject(HEAD, "p", 5), "019403" + HEAD_HEX + "a17005"),
    (CreateKey(HEAD, "p", "k", b"d", "n"), "019604" + HEAD_HEX + "a170a16bc40164a16e"),
    (RevokeKey(HEAD, "p", "k"), "019405" + HEAD_HEX + "a170a16b"),
    (PutSchema(HEAD, "s", 1, b"d", "x", 300), "019706" + HEAD_HEX + "a17301c40164a178cd012c"),
    (DeleteSchema(HEAD, "s"), "019307" + HEAD_HEX + "a173"),
    (AbortSchemaAttempt(HEAD, "s", "x"), "019408" + HEAD_HEX + "a173a178"),
    (CreateConfig(HEAD, "p", "a", "s", 1, b"{}"), "019709" + HEAD_HEX + "a170a161a17301c4027b7d"),
    (
        UpdateConfig(HEAD, "p", "a", "s", 1, b"{}", 2),
        "01980a" + HEAD_HEX + "a170a161a17301c4027b7d02",
    ),
    (DeleteConfig(HEAD, "p", "a", 3), "01950b" + HEAD_HEX + "a170a16103"),
    (RollbackConfig(HEAD, "p", "a", 1, 3, "s", 2), "01980c" + HEAD_HEX + "a170a1610103a17302"),
]

RESULTS: list[tuple[AnyResult, str]] = [
    (Done(7, 1, True, "p"), "95010701c3a170"),
    (
        ConfigWritten(7, "p", "a", "s", 1, 2, b"d", "user:1", 1000, False),
        "9b0207a170a161a1730102c40164a6757365723a31cd03e8c2",
    ),
    (Refused(7, "not_found", 1, "d", True), "960307a96e6f745f666f756e6401a164c3"),
]


@pytest.mark.parametrize(("command", "golden"), COMMANDS, ids=lambda value: type(value).__name__)
def test_the_bytes_of_a_command_are_golden(command: AnyCommand, golden: str) -> None:
    assert encode_command(command).hex() == golden
    assert decode_command(bytes.fromhex(golden)) == command


def test_every_command_and_result_has_golden_bytes() -> None:
    assert {type(command) for command, _ in COMMANDS} == set(AnyCommand.__args__)
    assert {type(result) for result, _ in RESULTS} == set(AnyResult.__args__)


@pytest.mark.parametrize(("result", "golden"), RESULTS, ids=lambda value: type(value).__name__)
def test_the_bytes_of_a_result_are_golden(result: AnyResult, golden: str) -> None:
    assert encode_result(result).hex() == golden
    assert decode_result(bytes.fromhex(golden)) == result


def test_a_result_of_an_earlier_release_lacks_the_later_fields() -> None:
    assert decode_result(bytes.fromhex("9401070" + "1c3")) == Done(7, 1, True)


@pytest.mark.parametrize("raw", [b"", b"\x93", b"\x91\x63", b"\x95\x03\x07\xa1\xff\x01\xa0"])
def test_what_is_no_result_is_refused(raw: bytes) -> None:
    with pytest.raises(UndecodableError):
        decode_result(raw)


def test_defaults_may_be_left_out_on_the_wire() -> None:
    short = bytes([1]) + msgspec.msgpack.encode([1, [bytes(16), "a"], "p", "k", b"d"])
    assert decode_command(short) == CreateProject(Envelope(bytes(16), "a"), "p", "k", b"d")
