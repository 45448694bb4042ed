"""Configs: rights, the lock, schemas that move, retries, and views that lag behind."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from guardian.domain.entities import Role
from guardian.domain.problems import Problem
from guardian.fsm.commands import CreateConfig, PutSchema, UpdateConfig
from guardian.usecases.executing import LOCAL, Call, Consistency, Expected
from guardian.usecases.paging import PageRequest

FRESH = Consistency()
CALL = Call(timeout_s=3600.0)  # its clock starts with the module


@pytest.fixture
async def ready(stage: Any) -> Any:
    """A project ``p`` of ``admin`` with an editor and a viewer, schema up to 10, config at 1."""
    created = await stage.services.projects.create(stage.who("admin"), "p", CALL)
    stage.p = created.value.project.id
    for name in ("editor", "viewer"):
        stage.roles.grants[stage.p, name] = Role(name)
    schema = await stage.services.schemas.create(stage.who("admin"), "s", b'{"max":10}', CALL)
    stage.s = schema.value.id
    stage.configs = stage.services.configs
    await stage.configs.create(stage.who("editor"), stage.p, "k", stage.s, b"1", CALL)
    stage.world.sent.clear()
    return stage


async def code_of(awaitable: Any) -> str:
    with pytest.raises(Problem) as caught:
        await awaitable
    return caught.value.code


READS = ["list", "get", "revisions", "revision"]
WRITES = ["create", "update", "delete", "rollback"]
MATRIX = {"root": "", "admin": "", "editor": "", "viewer": "forbidden", "stranger": "not_found"}


def ask(stage: Any, who: str, verb: str, project_id: str = "") -> Any:
    principal, project_id = stage.who(who), project_id or stage.p
    configs = stage.configs
    return {
        "list": lambda: configs.list(principal, project_id, PageRequest(), FRESH),
        "get": lambda: configs.get(principal, project_id, "k", FRESH),
        "revisions": lambda: configs.revisions(principal, project_id, "k", PageRequest(), FRESH),
        "revision": lambda: configs.revision(principal, project_id, "k", 1, FRESH),
        "create": lambda: configs.create(principal, project_id, "n", stage.s, b"1", CALL),
        "update": lambda: configs.update(principal, project_id, "k", b"2", Expected(1), CALL),
        "delete": lambda: configs.delete(principal, project_id, "k", Expected(1), CALL),
        "rollback": lambda: configs.rollback(principal, project_id, "k", 1, Expected(2), CALL),
    }[verb]()


@pytest.mark.parametrize("who", MATRIX)
@pytest.mark.parametrize("verb", READS + WRITES)
async def test_rights_matrix(ready: Any, who: str, verb: str) -> None:
    expected = "not_found" if who == "stranger" else MATRIX[who] if verb in WRITES else ""
    if verb == "rollback":
        await ask(ready, "editor", "update")
    ready.world.sent.clear()
    if not expected:
        await ask(ready, who, verb)
    else:
        assert await code_of(ask(ready, who, verb)) == expected
        assert ready.world.sent == []


@pytest.mark.parametrize("verb", READS + WRITES)
@pytest.mark.parametrize("project_id", ["nowhere", "a/b", "x" * 600, "\0"])
async def test_a_project_that_is_none_is_not_found_even_for_admins(
    ready: Any, verb: str, project_id: str
) -> None:
    assert await code_of(ask(ready, "root", verb, project_id)) == "not_found"


async def test_an_update_under_the_lock_gives_the_next_version(ready: Any) -> None:
    written = await ask(ready, "editor", "update")
    config = written.value
    assert (config.version, config.content, config.updated_by) == (2, b"2", "user:editor")
    assert (config.schema_id, config.schema_version) == (ready.s, 1)
    assert config.revision == written.revision == ready.world.truth.revision
    assert not written.replayed


async def test_a_stale_version_is_409_or_412_with_the_current_one(ready: Any) -> None:
    for expected, code in (
        (Expected(7), "version_conflict"),
        (Expected(7, if_match=True), "precondition_failed"),
    ):
        for ask_it in (
            ready.configs.update(ready.who("editor"), ready.p, "k", b"2", expected, CALL),
            ready.configs.delete(ready.who("editor"), ready.p, "k", expected, CALL),
            ready.configs.rollback(ready.who("editor"), ready.p, "k", 1, expected, CALL),
        ):
            with pytest.raises(Problem) as caught:
                await ask_it
            assert (caught.value.code, caught.value.current_version) == (code, 1)
    assert ready.world.truth.configs[ready.p, "k"].version == 1


@pytest.mark.parametrize("version", [0, -1, 2**53])
def test_a_version_that_can_not_be_is_refused_as_input(version: int) -> None:
    with pytest.raises(Problem) as caught:
        Expected(version)
    assert caught.value.errors[0].pointer == "/expected_version"
    with pytest.raises(Problem) as caught:
        Expected(version, if_match=True)
    assert caught.value.code == "invalid_etag"


async def test_one_of_many_racing_updates_wins(ready: Any) -> None:
    principal = ready.who("editor")
    outcomes = await asyncio.gather(
        *(
            ready.configs.update(principal, ready.p, "k", b"%d" % n, Expected(1), CALL)
            for n in range(10)
        ),
        return_exceptions=True,
    )
    codes = [o.code for o in outcomes if isinstance(o, Problem)]
    assert codes == ["version_conflict"] * 9
    assert ready.world.truth.configs[ready.p, "k"].version == 2


async def test_existence_and_version_are_left_to_the_log(ready: Any) -> None:
    """This node still sees version 1 and no config ``n``; the log knows better."""
    ready.world.lagging = True
    await ask(ready, "editor", "update")
    assert ready.world.config(ready.p, "k").version == 1
    assert await code_of(ask(ready, "editor", "update")) == "version_conflict"
    await ask(ready, "editor", "create")
    assert await code_of(ask(ready, "editor", "create")) == "already_exists"


async def test_a_project_and_config_unknown_here_are_looked_for_after_a_barrier(ready: Any) -> None:
    ready.world.view = type(ready.world.truth)()
    ready.world.lagging = True
    written = await ask(ready, "editor", "update")
    assert written.value.version == 2
    assert ready.world.barriers > 0


async def test_an_update_that_expects_a_newer_version_than_seen_here_looks_again(
    ready: Any,
) -> None:
    """Version 2 changed the schema; validating against the one seen here would be wrong."""
    wide = await ready.services.schemas.create(ready.who("admin"), "w", b'{"max":99}', CALL)
    ready.world.lagging = True
    await ready.configs.update(
        ready.who("editor"), ready.p, "k", b"50", Expected(1), CALL, schema_id=wide.value.id
    )
    assert ready.world.config(ready.p, "k").version == 1
    written = await ready.configs.update(
        ready.who("editor"), ready.p, "k", b"60", Expected(2), CALL
    )
    assert (written.value.version, written.value.schema_id) == (3, wide.value.id)


async def test_a_misfit_names_the_faults_and_changes_nothing(ready: Any) -> None:
    with pytest.raises(Problem) as caught:
        await ready.configs.update(ready.who("editor"), ready.p, "k", b"11", Expected(1), CALL)
    assert caught.value.code == "document_invalid"
    assert [fault.message for fault in caught.value.errors] == ["too large"]
    assert ready.world.sent == []


@pytest.mark.parametrize("schema_id", ["nowhere", "", "a/b", "x" * 600])
async def test_an_unknown_schema_is_a_fault_of_the_body(ready: Any, schema_id: str) -> None:
    with pytest.raises(Problem) as caught:
        await ready.configs.create(ready.who("editor"), ready.p, "n", schema_id, b"1", CALL)
    assert caught.value.code == "validation_failed"
    assert [fault.pointer for fault in caught.value.errors] == ["/schema_id"]


async def test_a_schema_unknown_here_is_looked_for_after_a_barrier(ready: Any) -> None:
    ready.world.lagging = True
    schema = await ready.services.schemas.create(ready.who("admin"), "t", b'{"max":5}', CALL)
    assert ready.world.schema(schema.value.id) is None
    await ready.configs.create(ready.who("editor"), ready.p, "n", schema.value.id, b"1", CALL)


async def test_a_document_is_not_refused_for_a_schema_of_yesterday(ready: Any) -> None:
    yesterday = dict(ready.world.view.schemas)
    ready.world.lagging = True
    await ready.services.schemas.update(
        ready.who("admin"), ready.s, b'{"max":20}', Expected(1), CALL
    )
    ready.world.view.schemas = yesterday
    written = await ready.configs.update(
        ready.who("editor"), ready.p, "k", b"15", Expected(1), CALL
    )
    assert written.value.schema_version == 2


def tighten(stage: Any, body: bytes) -> Any:
    """Another node puts a new version of the schema just before the config command arrives."""

    def before(command: Any) -> None:
        if not isinstance(command, CreateConfig | UpdateConfig):
            return
        stage.world.before = None
        now = stage.world.truth.schemas[stage.s]
        old = next(s for s, _ in stage.schemas.attempts.values() if s.id == stage.s)
        digest = hashlib.sha256(body).digest()
        newer = replace(old, version=now.version + 1, body=body, digest=digest)
        stage.schemas.attempts[stage.s, "other"] = (newer, "active")
        stage.world.truth._PutSchema(
            PutSchema(command.head, stage.s, now.version, digest, "other", now.usage_counter)
        )

    return before


@pytest.mark.parametrize("key", ["", "idem-1"])
async def test_a_stale_schema_is_revalidated_and_retried(ready: Any, key: str) -> None:
    ready.world.before = tighten(ready, b'{"max":8}')
    written = await ready.configs.update(
        ready.who("editor"), ready.p, "k", b"7", Expected(1), Call(key)
    )
    assert (written.value.version, written.value.schema_version) == (2, 2)
    first, second = ready.world.sent
    assert first.head.command_id != second.head.command_id
    assert first.head.idempotency_key == second.head.idempotency_key == key


async def test_a_document_that_fits_only_the_stale_schema_is_refused(ready: Any) -> None:
    ready.world.before = tighten(ready, b'{"max":3}')
    assert (
        await code_of(
            ready.configs.update(ready.who("editor"), ready.p, "k", b"7", Expected(1), CALL)
        )
        == "document_invalid"
    )
    assert ready.world.truth.configs[ready.p, "k"].version == 1


async def test_a_schema_that_never_rests_is_503_after_bounded_tries(ready: Any) -> None:
    def again(command: Any) -> None:
        tighten(ready, b'{"max":%d}' % (90 + len(ready.world.sent)))(command)
        ready.world.before = again

    ready.world.before = again
    assert (
        await code_of(
            ready.configs.update(ready.who("editor"), ready.p, "k", b"7", Expected(1), CALL)
        )
        == "overloaded"
    )
    assert len(ready.world.sent) == 3


async def test_rollback_is_a_new_version_with_the_old_content(ready: Any) -> None:
    await ask(ready, "editor", "update")
    written = await ask(ready, "editor", "rollback")
    assert (written.value.version, written.value.content) == (3, b"1")
    seen = await ready.configs.revision(ready.who("viewer"), ready.p, "k", 3, FRESH)
    assert (seen.value.kind, seen.value.content) == ("rollback", b"1")


@pytest.mark.parametrize(
    ("to_version", "code"), [(9, "not_found"), (0, "not_found"), (2, "no_change")]
)
async def test_rollback_to_nowhere(ready: Any, to_version: int, code: str) -> None:
    await ask(ready, "editor", "update")
    rollback = ready.configs.rollback(
        ready.who("editor"), ready.p, "k", to_version, Expected(2), CALL
    )
    assert await code_of(rollback) == code


async def test_rollback_to_a_content_that_no_longer_fits_is_refused(ready: Any) -> None:
    await ready.configs.update(ready.who("editor"), ready.p, "k", b"9", Expected(1), CALL)
    await ready.configs.update(ready.who("editor"), ready.p, "k", b"2", Expected(2), CALL)
    await ready.services.schemas.update(
        ready.who("admin"), ready.s, b'{"max":5}', Expected(1), CALL
    )
    rollback = ready.configs.rollback(ready.who("editor"), ready.p, "k", 2, Expected(3), CALL)
    assert await code_of(rollback) == "document_invalid"


async def test_a_deleted_config_keeps_its_history_and_goes_on_counting(ready: Any) -> None:
    await ready.configs.delete(ready.who("editor"), ready.p, "k", Expected(1), CALL)
    assert await code_of(ask(ready, "viewer", "get")) == "not_found"
    history = await ask(ready, "viewer", "revisions")
    assert [(r.version, r.kind) for r in history.value.items] == [(2, "delete"), (1, "create")]
    again = await ready.configs.create(ready.who("editor"), ready.p, "k", ready.s, b"1", CALL)
    assert again.value.version == 3
    rollback = ready.configs.rollback(ready.who("editor"), ready.p, "k", 2, Expected(3), CALL)
    assert await code_of(rollback) == "not_found"


async def test_a_retry_under_the_same_key_gets_the_first_result(ready: Any) -> None:
    def ask_it(content: bytes = b"2") -> Any:
        return ready.configs.update(
            ready.who("editor"), ready.p, "k", content, Expected(1), Call("key-1")
        )

    first = await ask_it()
    again = await ask_it()
    assert again.replayed
    assert again.value == first.value
    assert await code_of(ask_it(b"3")) == "idempotency_key_reused"
    assert ready.world.truth.configs[ready.p, "k"].version == 2


async def test_a_retry_wins_over_checks_that_would_refuse_it_by_now(ready: Any) -> None:
    """The first try deleted the config, and its author lost the role since."""
    delete = ready.configs.delete
    await delete(ready.who("editor"), ready.p, "k", Expected(1), Call("key-1"))
    del ready.roles.grants[ready.p, "editor"]
    again = await delete(ready.who("editor"), ready.p, "k", Expected(1), Call("key-1"))
    assert again.replayed
    assert await code_of(delete(ready.who("editor"), ready.p, "k", Expected(2), Call("key-1"))) == (
        "idempotency_key_reused"
    )
    assert await code_of(delete(ready.who("editor"), ready.p, "k", Expected(1), Call("key-2"))) == (
        "not_found"
    )


async def test_a_replayed_rollback_brings_its_content(ready: Any) -> None:
    await ask(ready, "editor", "update")
    call = ("editor", ready.p, "k", 1, Expected(2))
    first = await ready.configs.rollback(ready.who(call[0]), *call[1:], Call("key-9"))
    again = await ready.configs.rollback(ready.who(call[0]), *call[1:], Call("key-9"))
    assert again.replayed
    assert again.value == first.value


@pytest.mark.parametrize("key", ["x" * 256, "a\nb", "é", "\x7f"])
def test_an_unusable_idempotency_key_is_refused(key: str) -> None:
    with pytest.raises(Problem) as caught:
        Call(key)
    assert caught.value.code == "invalid_idempotency_key"


@pytest.mark.parametrize("trouble", ["no_leader", "overloaded", "storage_full", "outcome_unknown"])
async def test_the_logs_trouble_is_the_callers(ready: Any, trouble: str) -> None:
    ready.world.trouble = [trouble]
    assert await code_of(ask(ready, "editor", "update")) == trouble


async def test_a_deadline_that_has_passed_sends_nothing(ready: Any) -> None:
    late = Call(timeout_s=-1.0)
    update = ready.configs.update(ready.who("editor"), ready.p, "k", b"2", Expected(1), late)
    assert await code_of(update) == "overloaded"
    assert ready.world.sent == []


@pytest.mark.parametrize("key", ["a//b", "", "../x", "ä", "x" * 300])
async def test_an_ill_formed_key_is_422_in_a_body_and_404_in_a_path(ready: Any, key: str) -> None:
    who = ready.who("editor")
    create = ready.configs.create(who, ready.p, key, ready.s, b"1", CALL)
    assert await code_of(create) == "validation_failed"
    for ask_it in (
        ready.configs.get(who, ready.p, key, FRESH),
        ready.configs.update(who, ready.p, key, b"1", Expected(1), CALL),
        ready.configs.delete(who, ready.p, key, Expected(1), CALL),
        ready.configs.rollback(who, ready.p, key, 1, Expected(1), CALL),
        ready.configs.revisions(who, ready.p, key, PageRequest(), FRESH),
        ready.configs.revision(who, ready.p, key, 1, FRESH),
    ):
        assert await code_of(ask_it) == "not_found"


async def test_pages_follow_the_keys_and_cursors_belong_to_their_list(ready: Any) -> None:
    for n in range(45):
        key = f"n/{n:02}"
        await ready.configs.create(ready.who("editor"), ready.p, key, ready.s, b"1", CALL)
    keys: list[str] = []
    page = PageRequest(limit=20)
    while True:
        seen = (await ready.configs.list(ready.who("viewer"), ready.p, page, FRESH)).value
        keys += [config.key for config in seen.items]
        if seen.next_cursor is None:
            break
        assert len(seen.items) == 20
        page = PageRequest(20, seen.next_cursor)
    assert keys == sorted(["k", *(f"n/{n:02}" for n in range(45))])
    other = await ready.services.projects.create(ready.who("admin"), "q", CALL)
    listing = ready.configs.list(ready.who("admin"), other.value.project.id, page, FRESH)
    assert await code_of(listing) == "invalid_cursor"


async def test_a_page_of_large_contents_ends_early(ready: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("guardian.usecases.configs.MAX_PAGE_BYTES", 10)
    for n in range(40):
        key = f"n/{n:02}"
        await ready.configs.create(ready.who("editor"), ready.p, key, ready.s, b"1", CALL)
    seen = await ready.configs.list(ready.who("viewer"), ready.p, PageRequest(), FRESH)
    assert 10 <= len(seen.value.items) < 41
    rest = PageRequest(cursor=seen.value.next_cursor)
    after = await ready.configs.list(ready.who("viewer"), ready.p, rest, FRESH)
    assert after.value.items[0].key > seen.value.items[-1].key


async def test_revisions_page_downwards(ready: Any) -> None:
    for version in range(1, 5):
        await ready.configs.update(ready.who("editor"), ready.p, "k", b"2", Expected(version), CALL)
    seen = await ready.configs.revisions(ready.who("viewer"), ready.p, "k", PageRequest(2), FRESH)
    assert [r.version for r in seen.value.items] == [5, 4]
    assert all(r.content is None for r in seen.value.items)
    rest = PageRequest(10, seen.value.next_cursor)
    seen = await ready.configs.revisions(ready.who("viewer"), ready.p, "k", rest, FRESH)
    assert [r.version for r in seen.value.items] == [3, 2, 1]
    assert seen.value.next_cursor is None


async def test_consistency_is_a_barrier_or_none(ready: Any) -> None:
    ready.world.barriers = 0
    await ready.configs.get(ready.who("viewer"), ready.p, "k", LOCAL)
    assert ready.world.barriers == 0
    await ready.configs.get(ready.who("viewer"), ready.p, "k", FRESH)
    assert ready.world.barriers == 1
    ready.world.no_leader = True
    seen = await ready.configs.get(ready.who("viewer"), ready.p, "k", LOCAL)
    assert (seen.revision, seen.staleness_ms) == (ready.world.truth.revision, 5)
    assert await code_of(ask(ready, "viewer", "get")) == "no_leader"


async def test_min_revision_reads_your_own_write_on_a_late_node(ready: Any) -> None:
    ready.world.lagging = True
    written = await ask(ready, "editor", "update")
    behind = await ready.configs.get(ready.who("viewer"), ready.p, "k", LOCAL)
    assert behind.value.version == 1
    wanted = Consistency.parse("local", str(written.revision))
    seen = await ready.configs.get(ready.who("viewer"), ready.p, "k", wanted)
    assert seen.value.version == 2
    too_much = Consistency.parse("local", "9999")
    late = ready.configs.get(ready.who("viewer"), ready.p, "k", too_much)
    assert await code_of(late) == "unavailable"


@pytest.mark.parametrize(
    ("level", "minimum"),
    [
        *(("lease", None), ("", None), ("LOCAL", None), (None, "-1"), (None, "x")),
        *((None, "1" * 17), (None, ""), (None, "٣")),
    ],
)
def test_a_wrong_consistency_is_422(level: str | None, minimum: str | None) -> None:
    with pytest.raises(Problem) as caught:
        Consistency.parse(level, minimum)
    assert caught.value.code == "invalid_parameter"


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "abc", "", "1e3", "99999", "٣"])
def test_a_wrong_limit_is_422(limit: str) -> None:
    with pytest.raises(Problem) as caught:
        PageRequest.parse(limit, None)
    assert caught.value.code == "invalid_parameter"


async def test_two_requests_with_one_key_at_a_time_are_one_and_a_conflict(ready: Any) -> None:
    def ask_it() -> Any:
        return ready.configs.update(
            ready.who("editor"), ready.p, "k", b"2", Expected(1), Call("key-1")
        )

    codes: list[str] = []

    def before(command: Any) -> None:
        ready.world.before = None
        with pytest.raises(Problem) as caught:
            ask_it().send(None)  # it is refused before it waits for anything
        codes.append(caught.value.code)

    ready.world.before = before
    assert not (await ask_it()).replayed
    assert codes == ["idempotency_in_progress"]
    assert (await ask_it()).replayed


async def test_a_failed_request_does_not_block_its_key(ready: Any) -> None:
    ready.world.trouble = ["no_leader"]
    call = (ready.p, "k", b"2", Expected(1), Call("key-1"))
    assert await code_of(ready.configs.update(ready.who("editor"), *call)) == "no_leader"
    assert (await ready.configs.update(ready.who("editor"), *call)).value.version == 2


async def test_requests_with_keys_are_bounded(ready: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("guardian.usecases.executing.MAX_UNDER_WAY", 0)
    call = (ready.p, "k", b"2", Expected(1), Call("key-1"))
    assert await code_of(ready.configs.update(ready.who("editor"), *call)) == "overloaded"
    assert ready.world.sent == []
