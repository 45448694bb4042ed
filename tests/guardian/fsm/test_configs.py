from __future__ import annotations

import hashlib
from typing import Any

import pytest

from guardian.fsm.commands import (
    ConfigWritten,
    CreateConfig,
    CreateProject,
    DeleteConfig,
    DeleteProject,
    DeleteSchema,
    PutSchema,
    Refused,
    RollbackConfig,
    UpdateConfig,
)


def refused(result: Any) -> tuple[str, int]:
    assert isinstance(result, Refused), result
    return result.code, result.current_version


def test_create_starts_at_version_one_and_reports_what_was_written(driver: Any) -> None:
    driver.now_ms = 5_000
    result = driver.do(CreateConfig, "p", "a", "s", 1, b'{"x":1}', actor="user:7")
    assert result == ConfigWritten(
        revision=3,
        project_id="p",
        key="a",
        schema_id="s",
        schema_version=1,
        version=1,
        content_digest=hashlib.sha256(b'{"x":1}').digest(),
        updated_by="user:7",
        updated_at_ms=5_000,
    )
    config = driver.state.config("p", "a")
    assert (config.content, config.version, config.revision) == (b'{"x":1}', 1, 3)


def test_create_of_a_live_config_is_refused_with_its_version(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(UpdateConfig, "p", "a", "s", 1, b"2", 1)
    result = driver.do(CreateConfig, "p", "a", "s", 1, b"3")
    assert refused(result) == ("already_exists", 2)
    assert driver.state.config("p", "a").content == b"2"


def test_versions_never_repeat_across_a_delete(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    for version in range(1, 6):
        driver.do(UpdateConfig, "p", "a", "s", 1, b"u%d" % version, version)
    deleted = driver.do(DeleteConfig, "p", "a", 6)
    assert (deleted.version, deleted.content_digest) == (7, b"")
    assert driver.state.config("p", "a") is None
    created = driver.do(CreateConfig, "p", "a", "s", 1, b"again")
    assert created.version == 8
    kinds = [(r.version, r.kind) for r in driver.state.revisions("p", "a", None, 100)]
    assert kinds[:3] == [(8, "create"), (7, "delete"), (6, "update")]
    assert driver.state.revision_of("p", "a", 7).content is None
    assert driver.state.revision_of("p", "a", 6).content == b"u5"


def test_two_deletes_in_a_row_count_on(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(DeleteConfig, "p", "a", 1)
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert driver.do(DeleteConfig, "p", "a", 3).version == 4
    assert driver.do(CreateConfig, "p", "a", "s", 1, b"1").version == 5


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_a_wrong_expected_version_is_a_conflict_that_names_the_current_one(
    driver: Any, expected: int
) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(UpdateConfig, "p", "a", "s", 1, b"2", 1)
    before = driver.state.config("p", "a")
    for result in (
        driver.do(UpdateConfig, "p", "a", "s", 1, b"3", expected),
        driver.do(DeleteConfig, "p", "a", expected),
        driver.do(RollbackConfig, "p", "a", 1, expected, "s", 1),
    ):
        assert refused(result) == ("version_conflict", 2)
    assert driver.state.config("p", "a") == before


def test_a_config_that_is_not_there_is_not_found(driver: Any) -> None:
    for result in (
        driver.do(UpdateConfig, "p", "a", "s", 1, b"3", 1),
        driver.do(DeleteConfig, "p", "a", 1),
        driver.do(RollbackConfig, "p", "a", 1, 1, "s", 1),
    ):
        assert refused(result) == ("not_found", 0)


@pytest.mark.parametrize("project", ["gone", "never"])
def test_a_dead_or_unknown_project_comes_before_everything_else(driver: Any, project: str) -> None:
    from_project = driver.make(CreateProject, "gone", "k2", bytes(32))
    driver.run(from_project)
    driver.do(CreateConfig, "gone", "a", "s", 1, b"1")
    driver.do(DeleteProject, "gone")
    for result in (
        driver.do(CreateConfig, project, "a", "nope", 9, b"1"),
        driver.do(UpdateConfig, project, "a", "nope", 9, b"1", 9),
        driver.do(DeleteConfig, project, "a", 9),
        driver.do(RollbackConfig, project, "a", 9, 9, "nope", 9),
    ):
        assert refused(result) == ("project_gone", 0)
    assert driver.state.config(project, "a") is None


def test_an_older_or_newer_schema_version_is_stale(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    usage = driver.state.schema("s").usage_counter
    driver.do(PutSchema, "s", 1, bytes(32), "attempt-2", usage)
    for named in (1, 3, 0):
        for result in (
            driver.do(CreateConfig, "p", "b", "s", named, b"1"),
            driver.do(UpdateConfig, "p", "a", "s", named, b"2", 1),
        ):
            assert refused(result) == ("schema_stale", 2)
    assert driver.do(UpdateConfig, "p", "a", "s", 2, b"2", 1).schema_version == 2
    assert refused(driver.do(RollbackConfig, "p", "a", 1, 2, "s", 1)) == ("schema_stale", 2)


def test_an_unknown_or_deleted_schema_is_stale_at_version_zero(driver: Any) -> None:
    driver.do(PutSchema, "t", 0, bytes(32), "x")
    driver.do(DeleteSchema, "t")
    for schema_id in ("t", "unknown"):
        for named in (0, 1):
            result = driver.do(CreateConfig, "p", "a", schema_id, named, b"1")
            assert refused(result) == ("schema_stale", 0)


def test_a_version_conflict_is_reported_before_a_stale_schema(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert refused(driver.do(UpdateConfig, "p", "a", "s", 9, b"2", 5)) == ("version_conflict", 1)
    assert refused(driver.do(CreateConfig, "p", "a", "s", 9, b"2")) == ("already_exists", 1)


def test_rollback_writes_the_old_content_as_a_new_version(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"old")
    driver.do(UpdateConfig, "p", "a", "s", 1, b"new", 1)
    result = driver.do(RollbackConfig, "p", "a", 1, 2, "s", 1, actor="user:9")
    assert (result.version, result.content_digest) == (3, hashlib.sha256(b"old").digest())
    config = driver.state.config("p", "a")
    assert (config.content, config.version, config.updated_by) == (b"old", 3, "user:9")
    assert driver.state.revision_of("p", "a", 3).kind == "rollback"


def test_rollback_across_a_delete_reaches_content_from_before_it(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"first life")
    driver.do(DeleteConfig, "p", "a", 1)
    driver.do(CreateConfig, "p", "a", "s", 1, b"second life")
    assert driver.do(RollbackConfig, "p", "a", 1, 3, "s", 1).version == 4
    assert driver.state.config("p", "a").content == b"first life"


@pytest.mark.parametrize("target", [0, 2, 9])
def test_rollback_to_a_delete_or_to_what_never_was_is_not_found(driver: Any, target: int) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(DeleteConfig, "p", "a", 1)
    driver.do(CreateConfig, "p", "a", "s", 1, b"3")
    assert refused(driver.do(RollbackConfig, "p", "a", target, 3, "s", 1)) == ("not_found", 3)


def test_rollback_to_the_current_version_changes_nothing(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    # even under a stale schema: there is nothing to validate
    assert refused(driver.do(RollbackConfig, "p", "a", 1, 1, "s", 5)) == ("no_change", 1)


def test_configs_of_one_batch_see_each_other(driver: Any) -> None:
    results = driver.run_all(
        [
            driver.make(CreateConfig, "p", "a", "s", 1, b"1"),
            driver.make(UpdateConfig, "p", "a", "s", 1, b"2", 1),
            driver.make(UpdateConfig, "p", "a", "s", 1, b"x", 1),
            driver.make(DeleteConfig, "p", "a", 2),
            driver.make(CreateConfig, "p", "a", "s", 1, b"3"),
        ]
    )
    assert [getattr(r, "version", None) for r in results] == [1, 2, None, 3, 4]
    assert refused(results[2]) == ("version_conflict", 2)


def test_empty_and_large_contents_come_back_as_they_were(driver: Any) -> None:
    large = bytes(range(256)) * 8192
    driver.do(CreateConfig, "p", "empty", "s", 1, b"")
    driver.do(CreateConfig, "p", "large", "s", 1, large)
    assert driver.state.config("p", "empty").content == b""
    assert driver.state.config("p", "large").content == large
