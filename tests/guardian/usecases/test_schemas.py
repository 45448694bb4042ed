"""Schemas: two stores, one decision; a change must fit all who use it."""

from __future__ import annotations

from typing import Any

import pytest

from guardian.domain.entities import Role
from guardian.domain.problems import Problem
from guardian.usecases.executing import Call, Consistency, Expected
from guardian.usecases.paging import PageRequest

FRESH = Consistency()
CALL = Call(timeout_s=3600.0)  # its clock starts with the module


async def code_of(awaitable: Any) -> str:
    with pytest.raises(Problem) as caught:
        await awaitable
    return caught.value.code


@pytest.fixture
async def ready(stage: Any) -> Any:
    """A schema of ``admin`` up to 10, used by ``a`` = 1 and ``b`` = 7 of project ``p``."""
    schema = await stage.services.schemas.create(stage.who("admin"), "s", b'{"max":10}', CALL)
    stage.s, stage.verbs = schema.value.id, stage.services.schemas
    created = await stage.services.projects.create(stage.who("editor"), "p", CALL)
    stage.p = created.value.project.id
    for key, content in (("a", b"1"), ("b", b"7")):
        await stage.services.configs.create(
            stage.who("editor"), stage.p, key, stage.s, content, CALL
        )
    stage.world.sent.clear()
    return stage


def put(stage: Any, body: bytes, version: int = 1, who: str = "admin", key: str = "") -> Any:
    return stage.verbs.update(stage.who(who), stage.s, body, Expected(version), Call(key))


async def test_anyone_creates_reads_and_uses_schemas(stage: Any) -> None:
    verbs = stage.services.schemas
    created = await verbs.create(stage.who("stranger"), "mine", b'{"max":1}', CALL)
    schema = created.value
    assert (schema.version, schema.created_by, schema.body) == (1, "stranger", b'{"max":1}')
    assert stage.schemas.states() == [(1, "active")]
    seen = await verbs.get(stage.who("viewer"), schema.id, FRESH)
    assert (seen.value.schema, seen.value.usage_count) == (schema, 0)


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("", b'{"max":1}', "validation_failed"),
        ("a\0", b'{"max":1}', "invalid_string"),
        ("a", b"{}", "invalid_schema"),
    ],
)
async def test_a_bad_schema_changes_nothing(stage: Any, name: str, body: bytes, code: str) -> None:
    assert await code_of(stage.services.schemas.create(stage.who("a"), name, body, CALL)) == code
    assert stage.schemas.attempts == {}
    assert stage.world.sent == []


async def test_an_update_that_all_users_fit_is_the_next_version(ready: Any) -> None:
    written = await put(ready, b'{"max":7}')
    schema = written.value
    assert (schema.version, schema.body, schema.name) == (2, b'{"max":7}', "s")
    assert ready.schemas.states() == [(1, "active"), (2, "active")]
    seen = await ready.verbs.get(ready.who("stranger"), ready.s, FRESH)
    assert (seen.value.schema.version, seen.value.usage_count) == (2, 2)


async def test_an_update_that_breaks_configs_names_what_the_caller_may_see(ready: Any) -> None:
    with pytest.raises(Problem) as caught:
        await put(ready, b'{"max":5}')
    assert caught.value.code == "schema_breaks_configs"
    assert caught.value.extra == {"configs": [], "configs_count": 1}
    ready.roles.grants[ready.p, "admin"] = Role.VIEWER
    for who, body, keys in (("admin", b'{"max":5}', ["b"]), ("root", b'{"max":0}', ["a", "b"])):
        with pytest.raises(Problem) as caught:
            await put(ready, body, who=who)
        configs: Any = caught.value.extra["configs"]
        assert [(c["project_id"], c["key"]) for c in configs] == [(ready.p, key) for key in keys]
        assert configs[0]["errors"] == [{"pointer": "", "message": "too large"}]
        assert caught.value.extra["configs_count"] == len(keys)
    assert ready.world.sent == []
    assert ready.schemas.states() == [(1, "active")]


async def test_only_the_creator_or_an_admin_changes_and_deletes(ready: Any) -> None:
    for who in ("editor", "stranger"):
        assert await code_of(put(ready, b'{"max":9}', who=who)) == "forbidden"
        assert await code_of(ready.verbs.delete(ready.who(who), ready.s, CALL)) == "forbidden"
    await put(ready, b'{"max":9}', who="root")
    await put(ready, b'{"max":8}', version=2, who="admin")


@pytest.mark.parametrize("schema_id", ["nowhere", "a\0b", "x" * 999])
async def test_a_schema_that_is_none_is_not_found(ready: Any, schema_id: str) -> None:
    ready.s = schema_id
    assert await code_of(put(ready, b'{"max":9}')) == "not_found"
    assert await code_of(ready.verbs.delete(ready.who("root"), schema_id, CALL)) == "not_found"
    assert await code_of(ready.verbs.get(ready.who("root"), schema_id, FRESH)) == "not_found"


async def test_a_stale_version_is_a_conflict_with_the_current_one(ready: Any) -> None:
    await put(ready, b'{"max":9}')
    with pytest.raises(Problem) as caught:
        await put(ready, b'{"max":8}')
    assert (caught.value.code, caught.value.current_version) == ("version_conflict", 2)
    update = ready.verbs.update(
        ready.who("admin"), ready.s, b'{"max":8}', Expected(1, if_match=True), CALL
    )
    assert await code_of(update) == "precondition_failed"


async def test_a_config_that_changes_during_the_check_is_checked_again(ready: Any) -> None:
    """Another node moves ``b`` from 7 to 3 while the new schema is being put."""

    def before(_: Any) -> None:
        ready.world.before = None
        _rewrite(ready, b"3", version=1)

    ready.world.before = before
    await put(ready, b'{"max":7}')
    assert len(ready.world.sent) == 2
    assert [command.usage_seen for command in ready.world.sent] == [2, 4]
    assert b"3" in ready.validator.checked
    assert ready.schemas.states() == [(1, "active"), (2, "active")]


async def test_a_config_that_slips_in_during_the_check_can_still_refuse_it(ready: Any) -> None:
    def before(_: Any) -> None:
        ready.world.before = None
        _rewrite(ready, b"9", version=1)

    ready.world.before = before
    assert await code_of(put(ready, b'{"max":7}')) == "schema_breaks_configs"
    assert ready.schemas.states() == [(1, "active")]
    assert ready.world.truth.schemas[ready.s].version == 1


async def test_configs_that_never_rest_are_503_after_bounded_tries(ready: Any) -> None:
    versions = iter(range(1, 99))
    ready.world.before = lambda _: _rewrite(ready, b"3", version=next(versions))
    assert await code_of(put(ready, b'{"max":7}')) == "overloaded"
    assert len(ready.world.sent) == 3
    assert ready.schemas.states() == [(1, "active")]


def _rewrite(stage: Any, content: bytes, version: int) -> None:
    from guardian.fsm.commands import UpdateConfig
    from guardian.usecases.executing import system_envelope

    result = stage.world.decide(
        UpdateConfig(system_envelope("x"), stage.p, "b", stage.s, 1, content, version)
    )
    assert result.version == version + 1


@pytest.mark.parametrize("trouble", ["no_leader", "overloaded", "storage_full"])
async def test_an_attempt_that_certainly_failed_is_dropped(ready: Any, trouble: str) -> None:
    ready.world.trouble = [trouble]
    assert await code_of(put(ready, b'{"max":9}')) == trouble
    assert ready.schemas.states() == [(1, "active")]


@pytest.mark.parametrize("trouble", ["outcome_unknown", "outcome_unknown!"])
async def test_an_attempt_of_unknown_outcome_stays_for_the_reconciler(
    ready: Any, trouble: str
) -> None:
    ready.world.trouble = [trouble]
    assert await code_of(put(ready, b'{"max":9}')) == "outcome_unknown"
    assert ready.schemas.states() == [(1, "active"), (2, "pending")]
    if trouble.endswith("!"):  # it took effect: the pending body serves
        seen = await ready.verbs.get(ready.who("viewer"), ready.s, FRESH)
        assert seen.value.schema.body == b'{"max":9}'


async def test_without_postgres_nothing_reaches_the_log(ready: Any) -> None:
    ready.schemas.away_for = {"add_pending"}
    assert await code_of(put(ready, b'{"max":9}')) == "unavailable"
    assert ready.world.sent == []


async def test_once_the_log_decided_the_answer_stands_without_postgres(ready: Any) -> None:
    ready.schemas.away_for = {"activate"}
    assert (await put(ready, b'{"max":9}')).value.version == 2
    assert ready.schemas.states() == [(1, "active"), (2, "pending")]


async def test_retries_get_the_first_result_and_leave_nothing_behind(ready: Any) -> None:
    first = await put(ready, b'{"max":9}', key="k")
    again = await put(ready, b'{"max":9}', key="k")
    assert again.replayed
    assert again.value == first.value
    assert await code_of(put(ready, b'{"max":8}', key="k")) == "idempotency_key_reused"
    create = ready.verbs.create
    one = await create(ready.who("viewer"), "n", b'{"max":1}', Call("c"))
    two = await create(ready.who("viewer"), "n", b'{"max":1}', Call("c"))
    assert two.replayed
    assert two.value == one.value
    assert ready.schemas.states() == [(1, "active"), (1, "active"), (2, "active")]


async def test_a_schema_in_use_stays(ready: Any) -> None:
    assert await code_of(ready.verbs.delete(ready.who("admin"), ready.s, CALL)) == "schema_in_use"
    assert ready.schemas.states() == [(1, "active")]
    for key in ("a", "b"):
        await ready.services.configs.delete(ready.who("editor"), ready.p, key, Expected(1), CALL)
    ready.schemas.away_for = {"remove"}
    await ready.verbs.delete(ready.who("admin"), ready.s, CALL)
    assert await code_of(ready.verbs.get(ready.who("admin"), ready.s, FRESH)) == "not_found"
    creation = ready.services.configs.create(ready.who("editor"), ready.p, "n", ready.s, b"1", CALL)
    assert await code_of(creation) == "validation_failed"


async def test_a_body_that_is_missing_is_named_as_damage(ready: Any) -> None:
    await put(ready, b'{"max":9}')
    ready.schemas.attempts.clear()
    assert await code_of(ready.verbs.get(ready.who("admin"), ready.s, FRESH)) == "data_integrity"


async def test_the_list_shows_living_schemas_at_the_version_of_the_log(ready: Any) -> None:
    for n in range(45):
        await ready.verbs.create(ready.who("viewer"), f"n{n}", b'{"max":1}', CALL)
    ready.schemas.away_for = {"activate"}
    await put(ready, b'{"max":9}')
    seen: list[Any] = []
    page = PageRequest(limit=10)
    while True:
        found = (await ready.verbs.list(ready.who("viewer"), page, FRESH)).value
        seen += found.items
        if found.next_cursor is None:
            break
        page = PageRequest(10, found.next_cursor)
    assert len(seen) == 46
    assert [view.schema.id for view in seen] == sorted(view.schema.id for view in seen)
    (mine,) = [view for view in seen if view.schema.id == ready.s]
    assert (mine.schema.version, mine.usage_count) == (2, 2)


async def test_bodies_are_cached_within_a_bound(ready: Any) -> None:
    from guardian.usecases.fitting import SchemaBodies

    bodies = SchemaBodies(ready.schemas, limit_bytes=25)
    for n in range(3):
        await ready.verbs.create(ready.who("viewer"), f"n{n}", b'{"max":1}', CALL)
    states = list(ready.world.truth.schemas.values())
    for state in states:
        assert (await bodies.get(state)).digest == state.body_digest
    assert bodies._size_bytes <= 25
    ready.schemas.away_for = {"by_digest"}
    await bodies.get(states[-1])
    assert await code_of(bodies.get(states[0])) == "unavailable"
