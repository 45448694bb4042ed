"""Projects, API keys and roles: rights, and what is left behind when a store is away."""

from __future__ import annotations

from typing import Any

import pytest

from guardian.domain.entities import Role
from guardian.domain.problems import Problem
from guardian.fsm.commands import CreateProject, DeleteProject, PurgeProject
from guardian.usecases.executing import LOCAL, Call, Consistency, system_envelope
from guardian.usecases.paging import PageRequest

FRESH = Consistency()
CALL = Call(timeout_s=3600.0)  # its clock starts with the module


async def code_of(awaitable: Any) -> str:
    with pytest.raises(Problem) as caught:
        await awaitable
    return caught.value.code


@pytest.fixture
async def ready(stage: Any) -> Any:
    created = await stage.services.projects.create(stage.who("admin"), "p", CALL)
    stage.p, stage.key = created.value.project.id, created.value.api_key
    for name in ("editor", "viewer"):
        stage.roles.grants[stage.p, name] = Role(name)
    stage.world.sent.clear()
    return stage


async def test_a_new_project_has_an_owner_a_key_and_an_admin(stage: Any) -> None:
    created = await stage.services.projects.create(stage.who("editor"), "Größe", CALL)
    project = created.value.project
    assert (project.name, project.owner_id) == ("Größe", "editor")
    assert stage.world.api_key_project(stage.services.reading._codec.digest("cfg_1")) == project.id
    assert created.value.api_key == "cfg_1"
    assert stage.roles.grants[project.id, "editor"] is Role.ADMIN
    assert stage.projects.rows[project.id][1] == "active"
    assert created.revision == stage.world.truth.revision


@pytest.mark.parametrize(("name", "code"), [("", "validation_failed"), ("a\0", "invalid_string")])
async def test_a_bad_name_changes_nothing(stage: Any, name: str, code: str) -> None:
    assert await code_of(stage.services.projects.create(stage.who("admin"), name, CALL)) == code
    assert stage.projects.rows == {}
    assert stage.world.sent == []


@pytest.mark.parametrize("trouble", ["no_leader", "overloaded", "storage_full"])
async def test_a_creation_that_certainly_failed_leaves_no_row(stage: Any, trouble: str) -> None:
    stage.world.trouble = [trouble]
    assert await code_of(stage.services.projects.create(stage.who("admin"), "p", CALL)) == trouble
    assert stage.projects.rows == {}


@pytest.mark.parametrize("trouble", ["outcome_unknown", "outcome_unknown!"])
async def test_a_creation_of_unknown_outcome_stays_for_the_reconciler(
    stage: Any, trouble: str
) -> None:
    stage.world.trouble = [trouble]
    creation = stage.services.projects.create(stage.who("admin"), "p", CALL)
    assert await code_of(creation) == "outcome_unknown"
    ((_, state),) = stage.projects.rows.values()
    assert state == "creating"


async def test_without_postgres_nothing_reaches_the_log(stage: Any) -> None:
    stage.projects.away_for = {"*"}
    creation = stage.services.projects.create(stage.who("admin"), "p", CALL)
    assert await code_of(creation) == "unavailable"
    assert stage.world.sent == []


async def test_once_the_log_decided_the_answer_stands_without_postgres(stage: Any) -> None:
    stage.projects.away_for = {"activate"}
    created = await stage.services.projects.create(stage.who("admin"), "p", CALL)
    assert created.value.api_key is not None
    assert stage.projects.rows[created.value.project.id][1] == "creating"
    stage.projects.away_for = {"remove"}
    project_id = created.value.project.id
    await stage.services.projects.delete(stage.who("admin"), project_id, CALL)
    assert not stage.world.project_exists(project_id)
    assert project_id in stage.projects.rows


async def test_a_retried_creation_names_the_first_project_without_its_secret(stage: Any) -> None:
    create = stage.services.projects.create
    stage.world.trouble = ["outcome_unknown!"]
    assert await code_of(create(stage.who("admin"), "p", Call("k"))) == "outcome_unknown"
    again = await create(stage.who("admin"), "p", Call("k"))
    assert again.replayed
    assert again.value.api_key is None
    assert list(stage.projects.rows) == [again.value.project.id] == list(stage.world.truth.projects)
    assert stage.projects.rows[again.value.project.id][1] == "active"
    other = create(stage.who("admin"), "q", Call("k"))
    assert await code_of(other) == "idempotency_key_reused"
    own = await create(stage.who("editor"), "p", Call("k"))
    assert not own.replayed
    assert len(stage.projects.rows) == 2


PROJECT_VERBS = {
    # verb: who may, and what the others get
    "get": {"viewer": "", "editor": "", "admin": "", "root": "", "stranger": "not_found"},
    "delete": {
        "viewer": "forbidden",
        "editor": "forbidden",
        "admin": "",
        "root": "",
        "stranger": "not_found",
    },
}
PROJECT_VERBS |= dict.fromkeys(
    ["keys.list", "keys.create", "keys.revoke", "roles.list", "roles.grant", "roles.revoke"],
    PROJECT_VERBS["delete"],
)


@pytest.mark.parametrize("who", ["viewer", "editor", "admin", "root", "stranger"])
@pytest.mark.parametrize("verb", PROJECT_VERBS)
async def test_rights_matrix(ready: Any, verb: str, who: str) -> None:
    s, principal = ready.services, ready.who(who)
    key_id = ready.world.api_keys(ready.p, "", 1)[0].id
    asked = {
        "get": lambda: s.projects.get(principal, ready.p, FRESH),
        "delete": lambda: s.projects.delete(principal, ready.p, CALL),
        "keys.list": lambda: s.api_keys.list(principal, ready.p, PageRequest(), FRESH),
        "keys.create": lambda: s.api_keys.create(principal, ready.p, "", CALL),
        "keys.revoke": lambda: s.api_keys.revoke(principal, ready.p, key_id, CALL),
        "roles.list": lambda: s.roles.list(principal, ready.p, PageRequest(), FRESH),
        "roles.grant": lambda: s.roles.grant(principal, ready.p, "stranger", Role.VIEWER, CALL),
        "roles.revoke": lambda: s.roles.revoke(principal, ready.p, "viewer", CALL),
    }[verb]
    expected = PROJECT_VERBS[verb][who]
    if expected:
        grants = dict(ready.roles.grants)
        assert await code_of(asked()) == expected
        assert ready.world.sent == []
        assert ready.roles.grants == grants
    else:
        await asked()


async def test_a_missing_and_a_hidden_project_look_alike(ready: Any) -> None:
    refusals = []
    for project_id in (ready.p, "nowhere"):
        with pytest.raises(Problem) as caught:
            await ready.services.projects.get(ready.who("stranger"), project_id, FRESH)
        refusals.append((caught.value.code, caught.value.detail, caught.value.extra))
    assert refusals[0] == refusals[1]


async def test_a_list_shows_what_one_has_a_role_in(ready: Any) -> None:
    mine = await ready.services.projects.create(ready.who("viewer"), "own", CALL)

    async def listed(who: str, owner: str | None = None) -> list[str]:
        seen = await ready.services.projects.list(ready.who(who), owner, PageRequest(), FRESH)
        return [project.name for project in seen.value.items]

    assert sorted(await listed("viewer")) == ["own", "p"]
    assert await listed("editor") == ["p"]
    assert await listed("stranger") == []
    assert sorted(await listed("root")) == ["own", "p"]
    assert await listed("viewer", "viewer") == ["own"]
    assert await listed("stranger", "viewer") == []
    assert await listed("root", "a\0b") == []
    await ready.services.projects.delete(ready.who("viewer"), mine.value.project.id, CALL)
    assert await listed("viewer") == ["p"]


async def test_a_deletion_enters_the_log_first_and_kills_the_keys(ready: Any) -> None:
    digest = ready.services.reading._codec.digest(ready.key)
    assert ready.world.api_key_project(digest) == ready.p
    await ready.services.projects.delete(ready.who("admin"), ready.p, CALL)
    assert [type(command) for command in ready.world.sent] == [DeleteProject, PurgeProject]
    assert ready.world.api_key_project(digest) is None
    assert ready.projects.rows == {}
    again = ready.services.projects.delete(ready.who("admin"), ready.p, CALL)
    assert await code_of(again) == "not_found"


async def test_a_deletion_that_failed_keeps_the_row(ready: Any) -> None:
    for trouble in ("no_leader", "outcome_unknown"):
        ready.world.trouble = [trouble]
        deletion = ready.services.projects.delete(ready.who("admin"), ready.p, CALL)
        assert await code_of(deletion) == trouble
        assert ready.p in ready.projects.rows


async def test_cleaning_up_is_bounded_and_its_trouble_is_not_the_callers(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardian.usecases.projects.PURGE_LIMIT", 2)
    s = await ready.services.schemas.create(ready.who("admin"), "s", b'{"max":9}', CALL)
    for n in range(20):
        await ready.services.configs.create(
            ready.who("editor"), ready.p, f"k{n}", s.value.id, b"1", CALL
        )
    ready.world.sent.clear()
    await ready.services.projects.delete(ready.who("admin"), ready.p, CALL)
    assert [type(command) for command in ready.world.sent].count(PurgeProject) == 4
    other = await ready.services.projects.create(ready.who("admin"), "q", CALL)
    ready.world.trouble = ["", "outcome_unknown"]
    await ready.services.projects.delete(ready.who("admin"), other.value.project.id, CALL)


async def test_a_project_deleted_elsewhere_is_gone_for_writes_here(ready: Any) -> None:
    """This node has not applied the deletion yet; the log refuses what this node would allow."""
    ready.world.lagging = True
    ready.world.decide(DeleteProject(system_envelope("test"), ready.p))
    assert ready.world.project_exists(ready.p)
    creation = ready.services.api_keys.create(ready.who("admin"), ready.p, "", CALL)
    assert await code_of(creation) == "not_found"


async def test_a_key_is_shown_once_and_listed_without_its_secret(ready: Any) -> None:
    created = await ready.services.api_keys.create(ready.who("admin"), ready.p, "ci", CALL)
    assert created.value.api_key == "cfg_2"
    info = created.value.info
    assert (info.name, info.created_by, info.created_at_ms) == ("ci", "user:admin", 7)
    seen = await ready.services.api_keys.list(ready.who("admin"), ready.p, PageRequest(), FRESH)
    assert info in seen.value.items
    assert len(seen.value.items) == 2
    first = await ready.services.api_keys.list(ready.who("admin"), ready.p, PageRequest(1), FRESH)
    rest = PageRequest(1, first.value.next_cursor)
    second = await ready.services.api_keys.list(ready.who("admin"), ready.p, rest, FRESH)
    assert (*first.value.items, *second.value.items) == seen.value.items


async def test_a_retried_key_is_the_first_one_without_its_secret(ready: Any) -> None:
    create = ready.services.api_keys.create
    first = await create(ready.who("admin"), ready.p, "ci", Call("k"))
    again = await create(ready.who("admin"), ready.p, "ci", Call("k"))
    assert again.replayed
    assert again.value.info == first.value.info
    assert again.value.api_key is None
    assert len(ready.world.truth.keys) == 2


async def test_a_revoked_key_is_dead_and_revoking_again_is_not_found(ready: Any) -> None:
    key_id = ready.world.api_keys(ready.p, "", 1)[0].id
    read = ready.services.reading.read
    assert await code_of(read(ready.key, "k")) == "not_found"
    await ready.services.api_keys.revoke(ready.who("admin"), ready.p, key_id, CALL)
    assert await code_of(read(ready.key, "k", FRESH)) == "invalid_api_key"
    for gone in (key_id, "a\0b", "x" * 999):
        revocation = ready.services.api_keys.revoke(ready.who("admin"), ready.p, gone, CALL)
        assert await code_of(revocation) == "not_found"


async def test_roles_are_granted_changed_and_revoked(ready: Any) -> None:
    roles = ready.services.roles
    grant = await roles.grant(ready.who("admin"), ready.p, "stranger", Role.EDITOR, CALL)
    assert (grant.value.user_id, grant.value.role) == ("stranger", Role.EDITOR)
    await roles.grant(ready.who("admin"), ready.p, "stranger", Role.VIEWER, CALL)
    seen = await roles.list(ready.who("admin"), ready.p, PageRequest(), FRESH)
    assert {g.user_id: g.role for g in seen.value.items}["stranger"] is Role.VIEWER
    await ready.services.projects.get(ready.who("stranger"), ready.p, FRESH)
    await roles.revoke(ready.who("admin"), ready.p, "stranger", CALL)
    hidden = ready.services.projects.get(ready.who("stranger"), ready.p, FRESH)
    assert await code_of(hidden) == "not_found"
    again = roles.revoke(ready.who("admin"), ready.p, "stranger", CALL)
    assert await code_of(again) == "not_found"


@pytest.mark.parametrize("user_id", ["nobody", "a\0b", "", "x" * 999])
async def test_a_role_for_nobody_is_a_fault_of_the_body(ready: Any, user_id: str) -> None:
    with pytest.raises(Problem) as caught:
        await ready.services.roles.grant(ready.who("admin"), ready.p, user_id, Role.VIEWER, CALL)
    assert caught.value.code == "validation_failed"
    assert [fault.pointer for fault in caught.value.errors] == ["/user_id"]


async def test_a_read_by_key_touches_no_postgres_and_no_leader(ready: Any) -> None:
    s = await ready.services.schemas.create(ready.who("admin"), "s", b'{"max":9}', CALL)
    await ready.services.configs.create(ready.who("editor"), ready.p, "k", s.value.id, b"1", CALL)
    for rows in (ready.projects, ready.roles, ready.schemas, ready.users):
        rows.away_for = {"*"}
    ready.world.no_leader = True
    ready.world.barriers = 0
    seen = await ready.services.reading.read(ready.key, "k")
    assert (seen.value.content, seen.staleness_ms) == (b"1", 5)
    assert ready.world.barriers == 0
    assert await code_of(ready.services.reading.read(ready.key, "k", FRESH)) == "no_leader"
    assert await code_of(ready.services.reading.read(ready.key, "../k", LOCAL)) == "not_found"
    assert await code_of(ready.services.reading.read("cfg_9", "k")) == "invalid_api_key"


async def test_local_reads_are_refused_while_the_node_rebuilds_its_state(ready: Any) -> None:
    ready.world.rebuilding = True
    assert await code_of(ready.services.reading.read(ready.key, "k")) == "unavailable"
    assert await code_of(ready.services.reading.read(ready.key, "k", FRESH)) == "not_found"
    ready.world.rebuilding = False
    assert await code_of(ready.services.reading.read(ready.key, "k")) == "not_found"


async def test_a_key_with_a_typo_costs_no_barrier(ready: Any) -> None:
    ready.world.barriers = 0
    assert await code_of(ready.services.reading.read("typo", "k", FRESH)) == "invalid_api_key"
    assert ready.world.barriers == 0


async def test_the_cluster_view_needs_no_leader(ready: Any) -> None:
    ready.world.no_leader = True
    assert ready.services.cluster.view(ready.who("stranger")).value.node_id == "n1"


async def test_commands_name_the_actor_and_fresh_ids(ready: Any) -> None:
    await ready.services.projects.create(ready.who("editor"), "a", CALL)
    await ready.services.projects.create(ready.who("editor"), "a", CALL)
    first, second = (c for c in ready.world.sent if isinstance(c, CreateProject))
    assert first.head.actor == "user:editor"
    assert first.head.fingerprint == second.head.fingerprint
    assert len(first.head.command_id) == 16
    assert first.head.command_id != second.head.command_id
    assert first.project_id != second.project_id
