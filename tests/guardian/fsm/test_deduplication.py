from __future__ import annotations

from typing import Any

import pytest

from guardian.fsm.commands import (
    ConfigWritten,
    CreateConfig,
    CreateProject,
    DeleteConfig,
    PutSchema,
    Refused,
    UpdateConfig,
)
from guardian.fsm.deduplication import (
    FORGOTTEN_PER_ENTRY,
    IDEMPOTENCY_KEPT_MS,
    RESULT_KEPT_MS,
)
from guardian.fsm.records import DUE, IDEMPOTENCY, RESULTS
from raftcore.core.types import EntryType

PRINT = b"f" * 32


def remembered(driver: Any) -> tuple[int, int, int]:
    """How many results, idempotency records and due records there are."""
    with driver.machine._environment.read() as view:
        first, second, third = (
            len(list(view.scan(t.number, b""))) for t in (RESULTS, IDEMPOTENCY, DUE)
        )
    return first, second, third


def test_a_repeated_command_id_gets_the_identical_first_result(driver: Any) -> None:
    command = driver.make(CreateConfig, "p", "a", "s", 1, b"1")
    first = driver.run(command)
    driver.do(UpdateConfig, "p", "a", "s", 1, b"2", 1)
    assert driver.run(command) == first
    assert not first.replayed
    assert driver.state.config("p", "a").version == 2


def test_a_repeated_refusal_stays_a_refusal(driver: Any) -> None:
    command = driver.make(UpdateConfig, "p", "a", "s", 1, b"1", 1)
    first = driver.run(command)
    assert isinstance(first, Refused)
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert driver.run(command) == first, "a retry never becomes another outcome"
    assert driver.state.config("p", "a").version == 1


def test_a_repeat_within_one_batch_is_found(driver: Any) -> None:
    command = driver.make(CreateConfig, "p", "a", "s", 1, b"1")
    first, second = driver.run_all([command, command])
    assert first == second
    assert first.version == 1


def test_an_idempotency_key_replays_the_result_marked_as_such(driver: Any) -> None:
    first = driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    second = driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    assert isinstance(second, ConfigWritten)
    assert second.replayed
    assert (second.version, second.revision) == (first.version, first.revision)
    assert driver.state.config("p", "a").version == 1


def test_the_repeat_of_a_replay_is_that_replay(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    command = driver.make(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    second = driver.run(command)
    assert second.replayed
    assert driver.run(command) == second


def test_another_request_under_the_same_idempotency_key_is_refused(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    result = driver.do(CreateConfig, "p", "b", "s", 1, b"1", idem="i", fingerprint=b"g" * 32)
    assert isinstance(result, Refused)
    assert result.code == "idempotency_key_reused"
    assert driver.state.config("p", "b") is None


def test_idempotency_keys_of_two_actors_are_two(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT, actor="user:1")
    result = driver.do(
        CreateConfig, "p", "b", "s", 1, b"1", idem="i", fingerprint=b"g" * 32, actor="user:2"
    )
    assert isinstance(result, ConfigWritten)


def test_refusals_are_bound_to_the_idempotency_key(driver: Any) -> None:
    first = driver.do(DeleteConfig, "p", "a", 1, idem="i", fingerprint=PRINT)
    assert first.code == "not_found"
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    second = driver.do(DeleteConfig, "p", "a", 1, idem="i", fingerprint=PRINT)
    assert (second.code, second.replayed) == ("not_found", True)


def test_a_stale_schema_is_not_the_requests_result(driver: Any) -> None:
    """The proposer validates again and proposes anew under the client's key."""
    first = driver.do(CreateConfig, "p", "a", "s", 7, b"1", idem="i", fingerprint=PRINT)
    assert first.code == "schema_stale"
    second = driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    assert isinstance(second, ConfigWritten)
    assert not second.replayed


def test_a_changed_usage_is_not_the_requests_result(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    args = ("s", 1, bytes(32), "y")
    first = driver.do(PutSchema, *args, 0, idem="i", fingerprint=PRINT)
    assert first.code == "schema_usage_changed"
    second = driver.do(PutSchema, *args, 1, idem="i", fingerprint=PRINT)
    assert second.count == 1


def test_a_replay_names_what_the_first_request_made(driver: Any) -> None:
    driver.do(CreateProject, "q1", "k1", b"1" * 32, idem="i", fingerprint=PRINT)
    again = driver.do(CreateProject, "q2", "k2", b"2" * 32, idem="i", fingerprint=PRINT)
    assert (again.subject, again.replayed) == ("q1", True)
    assert not driver.state.project_exists("q2")


def test_results_are_kept_for_ten_minutes_and_then_forgotten(driver: Any) -> None:
    command = driver.make(CreateConfig, "p", "a", "s", 1, b"1")
    first = driver.run(command)
    driver.now_ms += RESULT_KEPT_MS - 1
    assert driver.run(command) == first
    driver.now_ms += 1
    assert driver.run(command).code == "already_exists"


def test_idempotency_keys_are_kept_for_a_day(driver: Any) -> None:
    args = (CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(*args, idem="i", fingerprint=PRINT)
    driver.now_ms += IDEMPOTENCY_KEPT_MS - 1
    driver.feed([driver.entry(b"", EntryType.NOOP) for _ in range(10)])
    assert driver.do(*args, idem="i", fingerprint=PRINT).replayed
    driver.now_ms += 1
    assert driver.do(*args, idem="i", fingerprint=PRINT).code == "already_exists"


def test_forgetting_is_bounded_per_entry_and_catches_up(driver: Any) -> None:
    driver.run_all(
        [
            driver.make(CreateConfig, "p", f"c{i}", "s", 1, b"1", idem=f"i{i}", fingerprint=PRINT)
            for i in range(20)
        ]
    )
    assert remembered(driver) == (22, 20, 42)
    driver.now_ms += RESULT_KEPT_MS
    driver.feed([driver.entry(b"", EntryType.NOOP)])
    assert remembered(driver) == (22 - FORGOTTEN_PER_ENTRY, 20, 42 - FORGOTTEN_PER_ENTRY)
    driver.feed([driver.entry(b"", EntryType.NOOP) for _ in range(10)])
    assert remembered(driver) == (0, 20, 20)
    driver.now_ms += IDEMPOTENCY_KEPT_MS
    driver.feed([driver.entry(b"", EntryType.NOOP) for _ in range(5)])
    assert remembered(driver) == (0, 0, 0)


def test_the_replicated_clock_never_goes_back(driver: Any) -> None:
    driver.now_ms = 100_000
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.now_ms = 50
    assert driver.do(UpdateConfig, "p", "a", "s", 1, b"2", 1).updated_at_ms == 100_000


@pytest.mark.parametrize("stamp", [2**63, 2**64 - 1])
def test_an_absurd_stamp_stops_nothing(driver: Any, stamp: int) -> None:
    driver.now_ms = stamp
    result = driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    assert result.updated_at_ms == 2**53 - 1


def test_what_is_kept_under_an_idempotency_key_can_be_asked_for(driver: Any) -> None:
    assert driver.state.remembered("user:1", "i") is None
    first = driver.do(CreateConfig, "p", "a", "s", 1, b"1", idem="i", fingerprint=PRINT)
    kept = driver.state.remembered("user:1", "i")
    assert (kept.fingerprint, kept.result) == (PRINT, first)
    assert driver.state.remembered("user:2", "i") is None
    assert driver.state.remembered("\ud800", "\ud800") is None
