from __future__ import annotations

from typing import Any

import pytest

from guardian.fsm.commands import (
    CreateConfig,
    CreateKey,
    CreateProject,
    DeleteConfig,
    DeleteProject,
    DeleteSchema,
    Done,
    PurgeProject,
    Refused,
    RevokeKey,
    UpdateConfig,
)
from guardian.fsm.projects import PURGE_LIMIT

KEY_A, KEY_B, KEY_C = b"a" * 32, b"b" * 32, b"c" * 32


def code(result: Any) -> str:
    assert isinstance(result, Refused), result
    return result.code


def test_a_created_project_lives_with_its_first_key(bare: Any) -> None:
    result = bare.do(CreateProject, "p", "k", KEY_A, "first", actor="user:3")
    assert result == Done(1, count=1, subject="p")
    assert bare.state.project_exists("p")
    assert bare.state.api_key_project(KEY_A) == "p"
    (info,) = bare.state.api_keys("p", "", 10)
    assert (info.id, info.name, info.created_by, info.created_at_ms) == (
        "k",
        "first",
        "user:3",
        1_000,
    )


def test_a_project_is_created_once(driver: Any) -> None:
    assert code(driver.do(CreateProject, "p", "k9", KEY_A)) == "already_exists"
    assert driver.state.api_key_project(KEY_A) is None


def test_a_project_needs_a_fresh_key(driver: Any) -> None:
    driver.do(CreateKey, "p", "k2", KEY_A)
    assert code(driver.do(CreateProject, "q", "k", KEY_A)) == "key_taken"
    assert not driver.state.project_exists("q")


def test_an_id_deleted_before_it_was_created_can_never_be_created(bare: Any) -> None:
    assert bare.do(DeleteProject, "p") == Done(1, count=0, subject="p")
    assert bare.do(DeleteProject, "p") == Done(2, count=0, subject="p")
    assert code(bare.do(CreateProject, "p", "k", KEY_A)) == "project_gone"
    assert not bare.state.project_exists("p")
    assert bare.state.deleted_projects_needing_purge(10) == []
    assert [c.kind for c in bare.state.changes((0, 0), 10)] == ["project_deleted"]


def test_deleting_kills_project_and_keys_at_once(driver: Any) -> None:
    driver.do(CreateKey, "p", "k2", KEY_B)
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert driver.do(DeleteProject, "p").count == 1
    assert not driver.state.project_exists("p")
    assert driver.state.api_key_project(KEY_B) is None
    assert driver.state.serving_bytes(KEY_B, "a") is None
    assert driver.state.api_keys("p", "", 10) == []
    assert driver.state.configs("p", "", 10) == []
    assert driver.state.revisions("p", "a", None, 10) == []
    assert driver.state.revision_of("p", "a", 1) is None
    assert code(driver.do(DeleteProject, "p")) == "not_found"
    assert code(driver.do(CreateProject, "p", "k", KEY_C)) == "project_gone"


def test_keys_are_added_and_revoked(driver: Any) -> None:
    assert driver.do(CreateKey, "p", "k2", KEY_A, "ci") == Done(3, count=1, subject="k2")
    assert [k.id for k in driver.state.api_keys("p", "", 10)] == ["k", "k2"]
    assert [k.id for k in driver.state.api_keys("p", "k", 10)] == ["k2"]
    assert driver.do(RevokeKey, "p", "k2") == Done(4, count=1, subject="k2")
    assert driver.state.api_key_project(KEY_A) is None
    assert [k.id for k in driver.state.api_keys("p", "", 10)] == ["k"]
    assert code(driver.do(RevokeKey, "p", "k2")) == "not_found"


def test_a_digest_is_used_once_ever_and_an_id_once_at_a_time(driver: Any) -> None:
    driver.do(CreateKey, "p", "k2", KEY_A)
    assert code(driver.do(CreateKey, "p", "k3", KEY_A)) == "key_taken"
    assert code(driver.do(CreateKey, "p", "k2", KEY_B)) == "key_taken"
    driver.do(RevokeKey, "p", "k2")
    assert code(driver.do(CreateKey, "p", "k4", KEY_A)) == "key_taken"


def test_keys_of_a_dead_or_unknown_project_are_refused(driver: Any) -> None:
    driver.do(DeleteProject, "p")
    for project in ("p", "never"):
        assert code(driver.do(CreateKey, project, "k2", KEY_A)) == "project_gone"
        assert code(driver.do(RevokeKey, project, "k")) == "project_gone"


def test_purge_of_a_living_or_unknown_project_is_refused(driver: Any) -> None:
    for project in ("p", "never"):
        assert code(driver.do(PurgeProject, project, 10)) == "not_found"


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_purge_removes_everything_in_bounded_steps_and_frees_schemas(
    driver: Any, limit: int
) -> None:
    driver.do(CreateProject, "other", "k", KEY_C)
    driver.do(CreateConfig, "other", "a", "s", 1, b"keep")
    for key in "abc":
        driver.do(CreateConfig, "p", key, "s", 1, b"1")
        driver.do(UpdateConfig, "p", key, "s", 1, b"2", 1)
    driver.do(DeleteConfig, "p", "c", 2)
    driver.do(CreateKey, "p", "k2", KEY_A)
    assert driver.state.schema("s").usage_count == 3
    driver.do(DeleteProject, "p")
    assert driver.state.schema("s").usage_count == 3, "until purged, usage is still counted"
    total = 0
    steps = 0
    while driver.state.deleted_projects_needing_purge(10) == ["p"]:
        result = driver.do(PurgeProject, "p", limit)
        assert result.count <= limit
        total += result.count
        steps += 1
    assert total == 2 + 2 + 1 + 7  # keys, configs, tombstones, revisions
    assert steps == total // limit + 1
    assert driver.state.schema("s").usage_count == 1
    assert driver.state.schema_users("s", ("", ""), 10) == [("other", "a")]
    assert driver.state.config("other", "a").content == b"keep"
    assert driver.do(PurgeProject, "p", limit).count == 0
    assert code(driver.do(CreateKey, "other", "k9", KEY_A)) == "key_taken", "digests never return"
    assert driver.state.verify_chain() > 0


def test_a_purged_projects_schema_can_be_deleted(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(DeleteProject, "p")
    assert code(driver.do(DeleteSchema, "s")) == "schema_in_use"
    driver.do(PurgeProject, "p", 100)
    assert isinstance(driver.do(DeleteSchema, "s"), Done)


def test_a_purge_step_is_bounded_whatever_it_asks_for(driver: Any) -> None:
    driver.run_all(
        [driver.make(CreateConfig, "p", f"c{i:04}", "s", 1, b"1") for i in range(PURGE_LIMIT)]
    )
    driver.do(DeleteProject, "p")
    assert driver.do(PurgeProject, "p", 10**9).count == PURGE_LIMIT


def test_projects_are_listed_with_their_state(driver: Any) -> None:
    driver.do(CreateProject, "q", "k", KEY_A, actor="user:5")
    driver.do(DeleteProject, "q", actor="user:6")
    driver.do(DeleteProject, "r")
    rows = driver.state.projects("", 10)
    assert [(r.project_id, r.alive, r.existed) for r in rows] == [
        ("p", True, True),
        ("q", False, True),
        ("r", False, False),
    ]
    assert rows[1].actor == "user:6"
    assert [r.project_id for r in driver.state.projects("p", 1)] == ["q"]
