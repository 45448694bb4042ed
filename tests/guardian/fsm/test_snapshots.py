from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guardian.fsm.commands import ConfigWritten, CreateConfig, UpdateConfig, encode_command
from guardian.fsm.machine import GuardianMachine
from guardian.fsm.records import REVISIONS, STATE_FORMAT
from guardian.fsm.snapshots import BATCH_SIZE_BYTES, Batch, Footer, Header
from guardian.fsm.tables import StateCorruptError
from raftcore.errors import FormatTooNewError, StorageError
from raftcore.statemachine import AppliedPosition

PRINT = b"f" * 32


def fill(driver: Any, count: int = 30, size: int = 10_000) -> None:
    for i in range(count):
        driver.do(CreateConfig, "p", f"c{i:03}", "s", 1, bytes([i % 256]) * size)


def snapshot(driver: Any) -> list[bytes]:
    source = driver.machine.open_snapshot()
    try:
        return list(source.records())
    finally:
        source.close()


@pytest.fixture
def other(new_driver: Callable[..., Any]) -> Any:
    driver = new_driver()
    yield driver
    driver.machine.close()


def test_an_installed_snapshot_is_the_same_state(driver: Any, other: Any) -> None:
    fill(driver)
    position = driver.machine.last_applied()
    other.machine.install_snapshot(snapshot(driver), position)
    assert other.machine.last_applied() == position
    assert other.state.state_hash() == driver.state.state_hash()
    assert other.state.verify_chain() == driver.state.verify_chain()
    assert other.state.config("p", "c007") == driver.state.config("p", "c007")


def test_an_empty_state_can_be_snapshot_and_installed_only_as_what_it_is(
    bare: Any, other: Any
) -> None:
    records = snapshot(bare)
    assert len(records) == 2
    with pytest.raises(StateCorruptError):
        other.machine.install_snapshot(records, AppliedPosition(5, 1, bytes(32)))


def test_a_snapshot_is_of_its_moment_while_writes_go_on(driver: Any, other: Any) -> None:
    fill(driver)
    before, position = driver.state.state_hash(), driver.machine.last_applied()
    source = driver.machine.open_snapshot()
    records = source.records()
    received = [next(records)]
    for i in range(30):
        driver.do(UpdateConfig, "p", f"c{i:03}", "s", 1, b"new", 1)
        received.extend(record for record in (next(records, None),) if record is not None)
    received.extend(records)
    source.close()
    assert source.position == position
    other.machine.install_snapshot(received, position)
    assert other.state.state_hash() == before
    assert driver.state.state_hash() != before


def test_a_snapshot_is_read_on_another_thread(driver: Any, other: Any) -> None:
    fill(driver)
    position = driver.machine.last_applied()
    source = driver.machine.open_snapshot()
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.extend(source.records()))
    thread.start()
    driver.do(UpdateConfig, "p", "c000", "s", 1, b"new", 1)
    thread.join(60)
    source.close()
    other.machine.install_snapshot(received, position)
    assert other.state.config("p", "c000").version == 1


def test_equal_states_give_equal_snapshots(driver: Any, other: Any) -> None:
    fill(driver)
    records = snapshot(driver)
    other.machine.install_snapshot(records, driver.machine.last_applied())
    assert snapshot(other) == records


def test_records_are_bounded_and_a_large_value_stands_alone(driver: Any) -> None:
    fill(driver, count=40, size=5_000)
    driver.do(CreateConfig, "p", "huge", "s", 1, bytes(1_000_000))
    sizes = []
    for raw in snapshot(driver):
        record = msgspec.msgpack.decode(raw, type=Header | Batch | Footer)
        if isinstance(record, Batch) and len(raw) > BATCH_SIZE_BYTES * 1.1:
            assert len(record.pairs) == 1
        sizes.append(len(raw))
    assert sum(size > 1_000_000 for size in sizes) == 1
    assert sorted(sizes)[-2] <= BATCH_SIZE_BYTES * 1.1


def test_applying_goes_on_after_an_install(driver: Any, other: Any) -> None:
    fill(driver)
    other.machine.install_snapshot(snapshot(driver), driver.machine.last_applied())
    tail = [
        driver.entry(commands)
        for commands in (
            _encoded(driver, UpdateConfig, "p", "c001", "s", 1, b"after", 1),
            _encoded(driver, CreateConfig, "p", "late", "s", 1, b"late"),
        )
    ]
    first = driver.feed(tail)
    second = other.machine.apply(tail, driver.machine.last_applied())
    assert first == second
    assert other.state.state_hash() == driver.state.state_hash()


def _encoded(driver: Any, kind: Any, *args: Any, **head: Any) -> bytes:
    return encode_command(driver.make(kind, *args, **head))


def test_exactly_once_survives_a_snapshot(driver: Any, other: Any) -> None:
    command = driver.make(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    first = driver.run(command)
    records = snapshot(driver)
    other.machine.install_snapshot(records, driver.machine.last_applied())
    repeat = driver.make(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    results = []
    for data in (command, repeat):
        entry = driver.entry(encode_command(data))
        driver.feed([entry])
        results += other.machine.apply([entry], driver.machine.last_applied())
    assert results[0] == first
    assert results[1] == msgspec.structs.replace(first, replayed=True)


def test_an_install_replaces_what_was_there(driver: Any, other: Any) -> None:
    other.furnish()
    fill(other, count=3)
    fill(driver, count=1)
    other.machine.install_snapshot(snapshot(driver), driver.machine.last_applied())
    assert other.state.config("p", "c001") is None
    assert other.state.state_hash() == driver.state.state_hash()


def test_an_installed_state_survives_a_restart(driver: Any, other: Any) -> None:
    fill(driver)
    other.machine.install_snapshot(snapshot(driver), driver.machine.last_applied())
    other.reopen()
    assert other.machine.last_applied() == driver.machine.last_applied()
    assert other.state.state_hash() == driver.state.state_hash()


def test_a_small_map_grows_during_an_install(driver: Any, new_driver: Callable[..., Any]) -> None:
    fill(driver, count=200, size=20_000)
    small = new_driver(map_size_bytes=512 * 1024)
    small.machine.install_snapshot(snapshot(driver), driver.machine.last_applied())
    assert small.state.state_hash() == driver.state.state_hash()
    small.machine.close()


def test_a_reader_that_holds_the_old_state_keeps_it(driver: Any, other: Any) -> None:
    fill(driver)
    other.furnish()
    position = other.machine.last_applied()
    old = other.machine.open_snapshot()
    for _ in range(2):
        other.machine.install_snapshot(snapshot(driver), driver.machine.last_applied())
    records = list(old.records())
    old.close()
    third = GuardianMachine.open(other.path.parent / "third", cluster_id="c", incarnation=bytes(16))
    third.install_snapshot(records, position)
    assert third.state.config("p", "c001") is None
    assert third.state.project_exists("p")
    third.close()


def test_reads_go_on_while_states_are_replaced(driver: Any, other: Any) -> None:
    fill(driver, count=5)
    records, position = snapshot(driver), driver.machine.last_applied()
    other.machine.install_snapshot(records, position)
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                assert other.state.config("p", "c003").version == 1
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(5):
        other.machine.install_snapshot(records, position)
    stop.set()
    thread.join(60)
    assert errors == []


def test_listeners_hear_of_applies_and_installs(driver: Any, other: Any) -> None:
    heard: list[int] = []
    other.machine.on_applied(heard.append)
    other.furnish()
    fill(driver, count=5)
    other.machine.install_snapshot(snapshot(driver), driver.machine.last_applied())
    assert heard == [2, 7]


def test_discard_empties_the_state(driver: Any) -> None:
    fill(driver, count=2)
    driver.machine.discard()
    assert driver.machine.last_applied() == AppliedPosition()
    assert driver.state.revision() == 0
    assert not driver.state.project_exists("p")
    driver.reopen()
    assert driver.machine.last_applied() == AppliedPosition()


def corrupt_cases(records: list[bytes]) -> dict[str, list[bytes]]:
    flipped = bytearray(records[3])
    flipped[len(flipped) // 2] ^= 4
    header = msgspec.msgpack.decode(records[0], type=Header)
    stranger = msgspec.msgpack.encode(Batch("unheard of", [(b"k", b"v")]))
    return {
        "nothing": [],
        "no header": records[1:],
        "no footer": records[:-1],
        "a record is missing": records[:2] + records[3:],
        "a record is twice": [*records[:3], records[2], *records[3:]],
        "two records swapped": [records[0], records[2], records[1], *records[3:]],
        "a flipped bit": [*records[:3], bytes(flipped), *records[4:]],
        "garbage": [*records[:3], b"\xff\x00garbage", *records[3:]],
        "goes on after the end": [*records, records[1]],
        "two headers": [records[0], *records],
        "unknown table": [records[0], stranger, *records[1:]],
        "another position": [
            msgspec.msgpack.encode(msgspec.structs.replace(header, index=header.index + 1)),
            *records[1:],
        ],
    }


def test_a_damaged_snapshot_is_refused_and_changes_nothing(driver: Any, other: Any) -> None:
    fill(driver)
    other.furnish()
    before = other.state.state_hash()
    records, position = snapshot(driver), driver.machine.last_applied()
    assert len(records) > 5
    for name, damaged in corrupt_cases(records).items():
        with pytest.raises(StateCorruptError):
            other.machine.install_snapshot(damaged, position)
        assert other.state.state_hash() == before, name
        assert not other.path.with_name("state.new").exists(), name
    other.machine.install_snapshot(records, position)


def test_a_snapshot_must_stand_where_the_node_says(driver: Any, other: Any) -> None:
    position = driver.machine.last_applied()
    for wrong in (
        AppliedPosition(position.index + 1, position.term, position.chain),
        AppliedPosition(position.index, position.term + 1, position.chain),
        AppliedPosition(position.index, position.term, bytes(32)),
    ):
        with pytest.raises(StateCorruptError):
            other.machine.install_snapshot(snapshot(driver), wrong)


def test_a_snapshot_of_a_newer_release_is_refused(driver: Any, other: Any) -> None:
    records = snapshot(driver)
    header = msgspec.msgpack.decode(records[0], type=Header)
    newer = msgspec.msgpack.encode(msgspec.structs.replace(header, format=STATE_FORMAT + 1))
    with pytest.raises(FormatTooNewError):
        other.machine.install_snapshot([newer, *records[1:]], driver.machine.last_applied())


def test_an_error_of_the_stream_leaves_the_state(driver: Any, other: Any) -> None:
    other.furnish()
    before = other.state.state_hash()

    def broken() -> Any:
        yield snapshot(driver)[0]
        raise ConnectionError("the leader is gone")

    with pytest.raises(ConnectionError):
        other.machine.install_snapshot(broken(), driver.machine.last_applied())
    assert other.state.state_hash() == before
    assert isinstance(other.do(CreateConfig, "p", "a", "s", 1, b"1"), ConfigWritten)


def test_a_flipped_bit_is_not_carried_into_a_snapshot(driver: Any) -> None:
    fill(driver, count=3)
    handle = driver.machine._environment._current
    with handle.env.begin(write=True) as txn:
        cursor = txn.cursor(handle.databases[REVISIONS.number])
        assert cursor.first()
        raw = bytearray(cursor.value())
        raw[-1] ^= 1
        txn.put(cursor.key(), bytes(raw), db=handle.databases[REVISIONS.number])
    source = driver.machine.open_snapshot()
    with pytest.raises(StateCorruptError):
        list(source.records())
    source.close()
    with pytest.raises(StorageError):
        driver.state.revision()


CRASHER = textwrap.dedent(
    """
    import os, pickle, sys
    from pathlib import Path
    from guardian.fsm.machine import GuardianMachine
    from raftcore.storage.files import Files

    directory, step, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    class Crashing(Files):
        armed = False
        steps = 0

        def reached(self, name):
            if self.armed:
                self.steps += 1
                if self.steps == step:
                    print(name, flush=True)
                    os._exit(9)

    files = Crashing()
    machine = GuardianMachine.open(
        directory / "state", cluster_id="c", incarnation=bytes(16), files=files
    )
    records, position = pickle.loads((directory / "snapshot").read_bytes())
    files.armed = True
    if what == "install":
        machine.install_snapshot(records, position)
    else:
        machine.discard()
    print("done", flush=True)
    os._exit(0)
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["install", "discard"])
def test_a_crash_at_every_step_of_a_replacement_leaves_old_new_or_nothing(
    driver: Any, other: Any, tmp_path: Path, what: str
) -> None:
    other.furnish()
    old, old_hash = (snapshot(other), other.machine.last_applied()), other.state.state_hash()
    fill(driver, count=3)
    new_hash = driver.state.state_hash()
    (tmp_path / "snapshot").write_bytes(
        pickle.dumps((snapshot(driver), driver.machine.last_applied()))
    )
    outcomes: list[tuple[str, str]] = []
    for step in range(1, 30):
        machine = GuardianMachine.open(tmp_path / "state", cluster_id="c", incarnation=bytes(16))
        machine.install_snapshot(*old)
        machine.close()
        child = subprocess.run(
            [sys.executable, "-c", CRASHER, str(tmp_path), str(step), what],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert child.returncode in (0, 9), child.stderr
        machine = GuardianMachine.open(tmp_path / "state", cluster_id="c", incarnation=bytes(16))
        empty = machine.last_applied() == AppliedPosition()
        states = {old_hash: "old", new_hash: "new"}
        found = "nothing" if empty else states[machine.state.state_hash()]
        machine.state.verify_chain()
        machine.close()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["snapshot", "state"]
        outcomes.append((child.stdout.strip(), found))
        if child.returncode == 0:
            break
    final = "new" if what == "install" else "nothing"
    assert outcomes[-1] == ("done", final)
    assert dict(outcomes)["state:synced"] == "old"
    assert dict(outcomes)["state:moved away"] == "nothing"
    assert dict(outcomes)["state:moved in"] == final
    assert len(outcomes) >= 7
