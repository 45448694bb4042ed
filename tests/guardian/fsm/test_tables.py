from __future__ import annotations

from typing import Any

import pytest

from guardian.fsm.commands import CreateConfig, DeleteConfig
from guardian.fsm.records import CONFIGS, CONTENTS, SCHEMAS, USAGES, joined
from guardian.fsm.tables import StateCorruptError, open_value, seal_value
from raftcore.errors import ExitCode


def test_a_sealed_value_opens_and_any_flipped_bit_is_noticed() -> None:
    sealed = seal_value(b"key", b"payload")
    assert bytes(open_value(b"key", memoryview(sealed))) == b"payload"
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StateCorruptError):
            open_value(b"key", memoryview(flipped))
    with pytest.raises(StateCorruptError):
        open_value(b"kez", memoryview(sealed))


@pytest.mark.parametrize("length", range(5))
def test_a_value_cut_short_is_noticed(length: int) -> None:
    with pytest.raises(StateCorruptError):
        open_value(b"key", memoryview(seal_value(b"key", b"payload")[:length]))


def test_the_error_says_how_the_process_exits() -> None:
    assert StateCorruptError.code == "E_STATE_CORRUPT"
    assert StateCorruptError.exit_code is ExitCode.STORAGE_IO


def test_a_record_of_another_shape_under_a_good_checksum_is_noticed(driver: Any) -> None:
    with driver.machine._environment.write() as view:
        view.put(SCHEMAS.number, b"s", b"\xc1 not a record")
    with pytest.raises(StateCorruptError, match="schemas"):
        driver.state.schema("s")


@pytest.mark.parametrize("lost", ["contents", "schemas"])
def test_a_record_that_another_promises_is_missed(driver: Any, lost: str) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    with driver.machine._environment.write() as view:
        if lost == "contents":
            for key, _ in list(view.scan(CONTENTS.number, b"")):
                assert CONTENTS.delete(view, key)
        else:
            assert SCHEMAS.delete(view, b"s")
    uses = {
        "contents": lambda: driver.state.config("p", "a"),
        "schemas": lambda: driver.do(DeleteConfig, "p", "a", 1),
    }
    with pytest.raises(StateCorruptError, match=f"{lost} is missing"):
        uses[lost]()


def test_scans_go_both_ways_and_stay_within_their_prefix(driver: Any) -> None:
    with driver.machine._environment.write() as view:
        for name in ("a", "b\0x", "b\0y", "b\0z", "c"):
            view.put(USAGES.number, name.encode(), b"\x90")
        prefix = b"b\0"

        def keys(found: Any) -> list[bytes]:
            return [key for key, _ in found]

        assert keys(view.scan(USAGES.number, prefix, prefix)) == [b"b\0x", b"b\0y", b"b\0z"]
        assert keys(view.scan(USAGES.number, b"b\0y", prefix)) == [b"b\0y", b"b\0z"]
        assert keys(view.scan(USAGES.number, b"d")) == []
        assert keys(view.scan_back(USAGES.number, b"b\1", prefix)) == [b"b\0z", b"b\0y", b"b\0x"]
        assert keys(view.scan_back(USAGES.number, b"b\0y", prefix)) == [b"b\0x"]
        assert keys(view.scan_back(USAGES.number, b"z", b"c")) == [b"c"]
        assert keys(view.scan_back(USAGES.number, b"a", b"a")) == []
        assert view.first_key(USAGES.number, prefix) == b"b\0x"
        assert view.first_key(USAGES.number, b"bb") is None
        assert view.first_key(USAGES.number, b"x") is None


def test_bulk_loading_insists_on_order(driver: Any) -> None:
    def load(items: list[tuple[bytes, bytes]]) -> None:
        with driver.machine._environment.write() as view:
            view.append(CONFIGS.number, items)

    load([(joined("x", "1"), b"a"), (joined("x", "2"), b"b")])
    with pytest.raises(StateCorruptError, match="order"):
        load([(joined("x", "1"), b"c")])
