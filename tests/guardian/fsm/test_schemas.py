from __future__ import annotations

from typing import Any

import pytest

from guardian.fsm.commands import (
    AbortSchemaAttempt,
    CreateConfig,
    DeleteConfig,
    DeleteSchema,
    Done,
    PutSchema,
    Refused,
    RollbackConfig,
    UpdateConfig,
)

BODY = b"b" * 32
OTHER = b"o" * 32


def refused(result: Any) -> tuple[str, int]:
    assert isinstance(result, Refused), result
    return result.code, result.current_version


def test_a_schema_begins_at_version_one(bare: Any) -> None:
    assert bare.do(PutSchema, "s", 0, BODY, "x") == Done(1, count=1, subject="s")
    schema = bare.state.schema("s")
    assert (schema.version, schema.body_digest, schema.deleted) == (1, BODY, False)
    assert (schema.usage_count, schema.usage_counter) == (0, 0)
    assert bare.state.schema_attempt("s", "x").won


def test_a_new_version_replaces_the_digest(driver: Any) -> None:
    assert isinstance(driver.do(PutSchema, "s", 1, OTHER, "y"), Done)
    schema = driver.state.schema("s")
    assert (schema.version, schema.body_digest) == (2, OTHER)


@pytest.mark.parametrize("expected", [0, 2])
def test_a_wrong_expected_version_is_a_conflict(driver: Any, expected: int) -> None:
    assert refused(driver.do(PutSchema, "s", expected, OTHER, "y")) == ("version_conflict", 1)
    assert driver.state.schema_attempt("s", "y") is None


def test_a_new_version_of_nothing_is_not_found(driver: Any) -> None:
    assert refused(driver.do(PutSchema, "t", 1, OTHER, "y")) == ("not_found", 0)


def test_every_write_under_a_schema_moves_its_counter_and_only_users_count(driver: Any) -> None:
    driver.do(PutSchema, "t", 0, BODY, "x")

    def usage() -> list[tuple[int, int]]:
        schemas = [driver.state.schema(s) for s in ("s", "t")]
        return [(s.usage_count, s.usage_counter) for s in schemas]

    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert usage() == [(1, 1), (0, 0)]
    driver.do(UpdateConfig, "p", "a", "s", 1, b"2", 1)
    assert usage() == [(1, 2), (0, 0)]
    driver.do(UpdateConfig, "p", "a", "t", 1, b"3", 2)
    assert usage() == [(0, 3), (1, 1)]
    driver.do(RollbackConfig, "p", "a", 1, 3, "s", 1)
    assert usage() == [(1, 4), (0, 2)]
    driver.do(DeleteConfig, "p", "a", 4)
    assert usage() == [(0, 5), (0, 2)]
    driver.do(UpdateConfig, "p", "a", "s", 1, b"2", 9)
    assert usage() == [(0, 5), (0, 2)], "what is refused moves nothing"


def test_a_put_that_did_not_see_the_latest_use_is_refused(driver: Any) -> None:
    seen = driver.state.schema("s").usage_counter
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    result = driver.do(PutSchema, "s", 1, OTHER, "y", seen)
    assert refused(result) == ("schema_usage_changed", 1)
    seen = driver.state.schema("s").usage_counter
    assert isinstance(driver.do(PutSchema, "s", 1, OTHER, "y", seen), Done)


def test_a_schema_in_use_is_not_deleted(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert refused(driver.do(DeleteSchema, "s")) == ("schema_in_use", 1)
    driver.do(DeleteConfig, "p", "a", 1)
    assert driver.do(DeleteSchema, "s") == Done(6, count=1, subject="s")
    assert driver.state.schema("s").deleted


def test_a_deleted_schema_never_returns(driver: Any) -> None:
    driver.do(DeleteSchema, "s")
    for expected in (0, 1, 2):
        assert refused(driver.do(PutSchema, "s", expected, OTHER, "y")) == ("not_found", 0)
    assert refused(driver.do(DeleteSchema, "s")) == ("not_found", 0)
    assert refused(driver.do(DeleteSchema, "never")) == ("not_found", 0)


def test_an_aborted_attempt_never_wins(driver: Any) -> None:
    assert driver.do(AbortSchemaAttempt, "s", "y") == Done(3, count=1, subject="s")
    assert driver.do(AbortSchemaAttempt, "s", "y").count == 1
    assert refused(driver.do(PutSchema, "s", 1, OTHER, "y")) == ("attempt_aborted", 0)
    assert driver.state.schema("s").version == 1
    assert not driver.state.schema_attempt("s", "y").won
    assert isinstance(driver.do(PutSchema, "s", 1, OTHER, "z"), Done), "others may"


def test_an_attempt_that_won_can_not_be_aborted(driver: Any) -> None:
    driver.do(PutSchema, "s", 1, OTHER, "y")
    assert driver.do(AbortSchemaAttempt, "s", "y").count == 0
    assert driver.state.schema("s").version == 2


def test_an_attempt_wins_once_and_its_repeat_hears_of_the_win(driver: Any) -> None:
    first = driver.do(PutSchema, "s", 1, OTHER, "y")
    driver.do(PutSchema, "s", 2, BODY, "z")
    assert driver.do(PutSchema, "s", 1, OTHER, "y") == first
    assert driver.state.schema("s").version == 3


def test_an_attempt_belongs_to_its_schema(driver: Any) -> None:
    driver.do(AbortSchemaAttempt, "t", "y")
    assert isinstance(driver.do(PutSchema, "s", 1, OTHER, "y"), Done)


def test_schemas_and_their_users_are_listed_in_order(driver: Any) -> None:
    driver.do(PutSchema, "a", 0, BODY, "x")
    driver.do(PutSchema, "s2", 0, BODY, "x")
    for key in ("c", "a", "b"):
        driver.do(CreateConfig, "p", key, "s", 1, b"1")
    driver.do(CreateConfig, "p", "z", "s2", 1, b"1")
    assert [s.schema_id for s in driver.state.schemas("", 10)] == ["a", "s", "s2"]
    assert [s.schema_id for s in driver.state.schemas("a", 1)] == ["s"]
    users = driver.state.schema_users
    assert users("s", ("", ""), 10) == [("p", "a"), ("p", "b"), ("p", "c")]
    assert users("s", ("p", "a"), 1) == [("p", "b")]
    assert users("s", ("p", "c"), 10) == []
