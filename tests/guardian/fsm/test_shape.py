from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardian.fsm.commands import (
    FORMAT,
    CreateConfig,
    CreateKey,
    CreateProject,
    DeleteProject,
    Envelope,
    PurgeProject,
    PutSchema,
    Refused,
    RollbackConfig,
    UpdateConfig,
    encode_command,
)
from guardian.fsm.shape import is_well_formed

HEAD = Envelope(bytes(16), "user:1")


def malformed(result: Any) -> bool:
    return isinstance(result, Refused) and result.code == "malformed"


GOOD = UpdateConfig(HEAD, "p", "a", "s", 1, b"1", 1)

BAD = {
    "short command id": msgspec.structs.replace(GOOD, head=Envelope(b"x", "a")),
    "long command id": msgspec.structs.replace(GOOD, head=Envelope(bytes(17), "a")),
    "no actor": msgspec.structs.replace(GOOD, head=Envelope(bytes(16), "")),
    "NUL in actor": msgspec.structs.replace(GOOD, head=Envelope(bytes(16), "a\0b")),
    "long actor": msgspec.structs.replace(GOOD, head=Envelope(bytes(16), "a" * 1025)),
    "long idempotency key": msgspec.structs.replace(
        GOOD, head=Envelope(bytes(16), "a", "i" * 1025)
    ),
    "NUL in idempotency key": msgspec.structs.replace(GOOD, head=Envelope(bytes(16), "a", "\0")),
    "long fingerprint": msgspec.structs.replace(
        GOOD, head=Envelope(bytes(16), "a", "i", bytes(33))
    ),
    "no project": msgspec.structs.replace(GOOD, project_id=""),
    "long project": msgspec.structs.replace(GOOD, project_id="p" * 65),
    "wide project": msgspec.structs.replace(GOOD, project_id="é" * 33),
    "NUL in key": msgspec.structs.replace(GOOD, key="a\0b"),
    "long key": msgspec.structs.replace(GOOD, key="k" * 257),
    "no schema": msgspec.structs.replace(GOOD, schema_id=""),
    "negative version": msgspec.structs.replace(GOOD, expected_version=-1),
    "huge version": msgspec.structs.replace(GOOD, expected_version=2**53),
    "huge schema version": msgspec.structs.replace(GOOD, schema_version=2**63),
    "negative target": RollbackConfig(HEAD, "p", "a", -1, 1, "s", 1),
    "short key digest": CreateProject(HEAD, "p", "k", b"d"),
    "no key digest": CreateKey(HEAD, "p", "k", b""),
    "NUL in key name": CreateKey(HEAD, "p", "k", bytes(32), "\0"),
    "long key name": CreateKey(HEAD, "p", "k", bytes(32), "n" * 1025),
    "long body digest": PutSchema(HEAD, "s", 0, bytes(33), "x"),
    "no attempt": PutSchema(HEAD, "s", 0, bytes(32), ""),
    "negative usage": PutSchema(HEAD, "s", 1, bytes(32), "x", -1),
    "negative limit": PurgeProject(HEAD, "p", -1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_command_out_of_bounds_is_malformed_and_changes_nothing(driver: Any, name: str) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    changes = len(driver.state.changes((0, 0), 100))
    assert malformed(driver.run(BAD[name]))
    assert len(driver.state.changes((0, 0), 100)) == changes
    # and nothing is remembered of it either
    assert driver.run(msgspec.structs.replace(GOOD, head=Envelope(bytes(16), "a"))).version == 2


def test_commands_at_their_bounds_are_stored(driver: Any) -> None:
    head = Envelope(b"\xff" * 16, "a" * 1024, "i" * 1024, bytes(32))
    widest = "\U0001f600" * 16
    assert driver.run(CreateProject(head, widest, "k" * 64, bytes(32), "n" * 1024)).count == 1
    assert driver.do(PutSchema, widest, 0, bytes(32), "x" * 64).count == 1
    key = "\U0001f600" * 64
    assert driver.do(CreateConfig, widest, key, widest, 1, b"1").version == 1
    assert driver.do(UpdateConfig, widest, key, widest, 1, b"2", 2**53 - 1).current_version == 1
    assert driver.state.config(widest, key).content == b"1"
    assert driver.state.schema_users(widest, ("", ""), 10) == [(widest, key)]


RAW = {
    "nothing": b"",
    "only a format": bytes([FORMAT]),
    "another format": bytes([FORMAT + 1]) + encode_command(GOOD)[1:],
    "cut short": encode_command(GOOD)[:-1],
    "with a tail": encode_command(GOOD) + b"\0",
    "unknown tag": bytes([FORMAT]) + msgspec.msgpack.encode([99, ["x"]]),
    "unknown field": bytes([FORMAT])
    + msgspec.msgpack.encode([2, [bytes(16), "a", "", b""], "p", "more"]),
    "deeply nested unknown field": bytes([FORMAT])
    + b"\x94\x02\x94\xc4\x10"
    + bytes(16)
    + b"\xa1a\xa0\xc4\x00\xa1p"
    + b"\x91" * 100_000
    + b"\x01",
    "not UTF-8": bytes([FORMAT])
    + b"\x93\x02\x94\xc4\x10"
    + bytes(16)
    + b"\xa1\xff\xa0\xc4\x00\xa1p",
    "a number for a text": bytes([FORMAT])
    + msgspec.msgpack.encode([2, [bytes(16), "a", "", b""], 5]),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_command_are_malformed(driver: Any, name: str) -> None:
    (result,) = driver.feed([driver.entry(RAW[name])])
    assert malformed(result)
    assert result.revision == 3
    assert driver.machine.last_applied() == driver.position(3)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_no_bytes_make_the_machine_raise(new_driver: Any, blobs: list[bytes]) -> None:
    driver = new_driver()
    raw = encode_command(DeleteProject(HEAD, "p"))
    entries = []
    for blob in blobs:
        mixed = bytearray(raw)
        for i, byte in enumerate(blob):
            mixed[(byte + i) % len(mixed)] ^= blob[i - 1]
        entries += [driver.entry(bytes(mixed)), driver.entry(bytes([FORMAT]) + blob)]
    results = driver.feed(entries)
    assert len(results) == len(entries)
    assert all(result is not None for result in results)
    driver.machine.close()


def test_every_command_has_a_rule_for_every_field() -> None:
    assert is_well_formed(GOOD)
    assert is_well_formed(DeleteProject(HEAD, "p"))
