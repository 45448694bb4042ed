from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from guardian.fsm.commands import (
    AbortSchemaAttempt,
    CreateConfig,
    CreateKey,
    DeleteConfig,
    DeleteProject,
    DeleteSchema,
    PurgeProject,
    PutSchema,
    RevokeKey,
    RollbackConfig,
    UpdateConfig,
)
from guardian.fsm.history import GENESIS_CHAIN, next_chain
from guardian.fsm.records import (
    CONTENTS,
    CORE,
    CORE_KEY,
    HISTORY,
    HistoryRecord,
    history_key,
    joined,
    version_key,
)
from guardian.fsm.tables import StateCorruptError


def live_through_everything(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"one")
    driver.do(UpdateConfig, "p", "a", "s", 1, b"two", 1)
    driver.do(RollbackConfig, "p", "a", 1, 2, "s", 1)
    driver.do(UpdateConfig, "p", "a", "s", 1, b"refused", 1)
    driver.do(DeleteConfig, "p", "a", 3)
    driver.do(CreateKey, "p", "k2", b"2" * 32, "second")
    driver.do(RevokeKey, "p", "k2")
    driver.do(PutSchema, "s", 1, b"b" * 32, "a2", 4)
    driver.do(AbortSchemaAttempt, "s", "a3")
    driver.do(DeleteSchema, "s")
    driver.do(DeleteProject, "p")


def test_every_change_is_told_in_order_with_all_it_takes_to_mirror_it(driver: Any) -> None:
    live_through_everything(driver)
    changes = driver.state.changes((0, 0), 100)
    assert [(c.revision, c.ordinal, c.kind.value, c.version) for c in changes] == [
        (1, 0, "project_created", 0),
        (1, 1, "key_created", 0),
        (2, 0, "schema_put", 1),
        (3, 0, "config_created", 1),
        (4, 0, "config_updated", 2),
        (5, 0, "config_rolled_back", 3),
        (7, 0, "config_deleted", 4),
        (8, 0, "key_created", 0),
        (9, 0, "key_revoked", 0),
        (10, 0, "schema_put", 2),
        (11, 0, "schema_attempt_aborted", 0),
        (12, 0, "schema_deleted", 2),
        (13, 0, "project_deleted", 0),
    ]
    created = changes[3]
    assert (created.project_id, created.key, created.schema_id, created.schema_version) == (
        "p",
        "a",
        "s",
        1,
    )
    assert (created.content, created.digest) == (b"one", hashlib.sha256(b"one").digest())
    assert (created.actor, created.at_ms, created.place) == ("user:1", 1_000, (3, 0))
    assert changes[5].content == b"one"
    assert (changes[6].content, changes[6].digest) == (None, b"")
    assert (changes[7].key_id, changes[7].name, changes[7].digest) == ("k2", "second", b"2" * 32)
    assert changes[9].digest == b"b" * 32


def test_changes_go_on_from_any_place(driver: Any) -> None:
    live_through_everything(driver)
    everything = driver.state.changes((0, 0), 100)
    assert driver.state.first_change() == (1, 0)
    collected: list[Any] = []
    place = (0, 0)
    while page := driver.state.changes(place, 3):
        assert len(page) <= 3
        collected += page
        place = page[-1].place
    assert [c.place for c in collected] == [c.place for c in everything]
    assert collected == everything
    assert driver.state.changes((1, 0), 1)[0].place == (1, 1)
    assert driver.state.changes((6, 0), 1)[0].place == (7, 0), "a refusal is no change"


def test_a_page_of_changes_is_bounded_in_bytes(driver: Any) -> None:
    for i in range(12):
        driver.do(CreateConfig, "p", f"c{i}", "s", 1, bytes(1_000_000))
    page = driver.state.changes((2, 0), 100)
    assert len(page) == 3
    assert len(driver.state.changes(page[-1].place, 100)) == 3
    assert len(driver.state.changes(driver.state.changes((2, 0), 1)[0].place, 2)) == 2


def test_a_purge_takes_content_away_but_leaves_history(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"one")
    driver.do(DeleteProject, "p")
    driver.do(PurgeProject, "p", 100)
    changes = driver.state.changes((2, 0), 100)
    assert [(c.kind.value, c.content) for c in changes] == [
        ("config_created", None),
        ("project_deleted", None),
        ("project_purged", None),
    ]
    assert changes[-1].version == 3
    assert driver.state.verify_chain() == 6


def test_an_empty_history_has_the_genesis_chain(bare: Any) -> None:
    assert bare.state.chain_head() == GENESIS_CHAIN
    assert bare.state.first_change() is None
    assert bare.state.changes((0, 0), 10) == []
    assert bare.state.verify_chain() == 0


def test_the_chain_can_be_recomputed_from_what_is_told(driver: Any) -> None:
    """By a stranger, from the description alone."""
    live_through_everything(driver)
    chain = bytes(32)
    for c in driver.state.changes((0, 0), 100):
        numbers = (
            b"\x01"
            + c.revision.to_bytes(8, "big")
            + c.ordinal.to_bytes(4, "big")
            + c.at_ms.to_bytes(8, "big")
            + c.version.to_bytes(8, "big")
            + c.schema_version.to_bytes(8, "big")
            + bytes([len(c.digest)])
        )
        texts = "\0".join(
            (c.kind.value, c.project_id, c.key, c.key_id, c.schema_id, c.name, c.actor)
        )
        chain = hashlib.sha256(chain + numbers + c.digest + texts.encode()).digest()
        assert chain == c.chain
    assert chain == driver.state.chain_head()


def test_the_first_links_never_change() -> None:
    """Golden: a chain written today must verify for ever."""
    record = HistoryRecord(
        "config_created", "user:1", 1_700_000_000_000, b"", "p", "a", "", "", "s", 2, 1, bytes(32)
    )
    assert next_chain(bytes(32), 5, 0, record).hex() == (
        "318555ec9183b03bca07c34c7e633e5bbb0470422b9f40c4ce257062f15e4e24"
    )


def rewrite(driver: Any, place: tuple[int, int], **fields: Any) -> None:
    """What somebody with the file could do: a record with a fitting checksum."""
    with driver.machine._environment.write() as view:
        key = history_key(*place)
        record = HISTORY.must(view, key)
        HISTORY.put(view, key, msgspec.structs.replace(record, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "config_updated"},
        {"actor": "user:2"},
        {"at_ms": 999},
        {"project_id": "q"},
        {"key": "b"},
        {"key_id": "x"},
        {"name": "x"},
        {"schema_id": "t"},
        {"schema_version": 2},
        {"version": 2},
        {"digest": bytes(32)},
        {"digest": b""},
        {"chain": bytes(32)},
        {"project_id": "p\0a", "key": ""},
    ],
)
def test_a_rewritten_change_breaks_the_chain(driver: Any, fields: dict[str, Any]) -> None:
    live_through_everything(driver)
    rewrite(driver, (3, 0), **fields)
    with pytest.raises(StateCorruptError, match=r"does not chain at 3\.0"):
        driver.state.verify_chain()


def test_a_dropped_added_or_moved_change_breaks_the_chain(
    new_driver: Callable[..., Any],
) -> None:
    def drop_middle(view: Any) -> None:
        view.delete(HISTORY.number, history_key(4, 0))

    def drop_last(view: Any) -> None:
        view.delete(HISTORY.number, history_key(13, 0))

    def move(view: Any) -> None:
        record = HISTORY.must(view, history_key(5, 0))
        view.delete(HISTORY.number, history_key(5, 0))
        HISTORY.put(view, history_key(6, 0), record)

    def add(view: Any) -> None:
        HISTORY.put(view, history_key(99, 0), HISTORY.must(view, history_key(13, 0)))

    def drop_all(view: Any) -> None:
        for key in [key for key, _ in view.scan(HISTORY.number, b"")]:
            view.delete(HISTORY.number, key)

    def other_head(view: Any) -> None:
        core = CORE.must(view, CORE_KEY)
        CORE.put(view, CORE_KEY, msgspec.structs.replace(core, history_chain=bytes(32)))

    for tamper in (drop_middle, drop_last, move, add, drop_all, other_head):
        driver = new_driver()
        driver.furnish()
        live_through_everything(driver)
        with driver.machine._environment.write() as view:
            tamper(view)
        with pytest.raises(StateCorruptError):
            driver.state.verify_chain()
        driver.machine.close()


def test_a_rewritten_content_is_found(driver: Any) -> None:
    live_through_everything(driver)
    key = version_key(joined("p", "a"), 2)
    with driver.machine._environment.write() as view:
        CONTENTS.put(view, key, b"forged")
    with pytest.raises(StateCorruptError, match=r"content is not what history recorded at 4\.0"):
        driver.state.verify_chain()
