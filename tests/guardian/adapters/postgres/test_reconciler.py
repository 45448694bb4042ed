"""Each flow that crosses log and PostgreSQL, cut off after each of its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.projects import PostgresProjects
from guardian.adapters.postgres.reconciler import Reconciled, Reconciler
from guardian.adapters.postgres.refresh_tokens import PostgresRefreshTokens
from guardian.adapters.postgres.schemas import PostgresSchemas
from guardian.domain.entities import Project, Schema
from guardian.domain.problems import Problem
from guardian.fsm.commands import (
    AbortSchemaAttempt,
    AnyCommand,
    AnyResult,
    CreateProject,
    DeleteProject,
    DeleteSchema,
    Done,
    Envelope,
    PurgeProject,
    PutSchema,
    Refused,
)


@dataclass(frozen=True)
class _Fate:
    project_id: str
    alive: bool


@dataclass(frozen=True)
class _SchemaFate:
    schema_id: str
    deleted: bool


@dataclass
class Cluster:
    """The rules of the state machine that matter here, applied at once."""

    lives: dict[str, bool] = field(default_factory=dict)
    to_purge: dict[str, int] = field(default_factory=dict)
    attempts: dict[tuple[str, str], bool] = field(default_factory=dict)
    deleted: dict[str, bool] = field(default_factory=dict)
    commands: list[AnyCommand] = field(default_factory=list)
    away: bool = False
    leads: bool = True

    async def execute(self, command: AnyCommand, *, timeout_s: float) -> AnyResult:
        assert timeout_s > 0
        if self.away:
            raise Problem("no_leader")
        self.commands.append(command)
        return self._apply(command)

    def _apply(self, command: AnyCommand) -> AnyResult:
        match command:
            case CreateProject(project_id=project_id):
                if project_id in self.lives:
                    return Refused(1, "project_gone")
                self.lives[project_id] = True
            case DeleteProject(project_id=project_id):
                if self.lives.get(project_id) is False:
                    return Refused(1, "not_found")
                existed = project_id in self.lives
                self.lives[project_id] = False
                return Done(1, count=int(existed))
            case PurgeProject(project_id=project_id, limit=limit):
                removed = min(limit, self.to_purge.get(project_id, 0))
                self.to_purge[project_id] = self.to_purge.get(project_id, 0) - removed
                if removed < limit:
                    del self.to_purge[project_id]
                return Done(1, count=removed)
            case PutSchema(schema_id=schema_id, attempt_id=attempt_id):
                if self.attempts.get((schema_id, attempt_id)) is False:
                    return Refused(1, "attempt_aborted")
                self.attempts[schema_id, attempt_id] = True
                self.deleted[schema_id] = False
            case AbortSchemaAttempt(schema_id=schema_id, attempt_id=attempt_id):
                won = self.attempts.setdefault((schema_id, attempt_id), False)
                return Done(1, count=int(not won))
            case DeleteSchema(schema_id=schema_id):
                self.deleted[schema_id] = True
        return Done(1, count=1)

    async def barrier(self, *, timeout_s: float) -> None:
        assert timeout_s > 0
        if self.away:
            raise Problem("no_leader")

    def is_leader(self) -> bool:
        return self.leads

    def project_exists(self, project_id: str) -> bool:
        return self.lives.get(project_id, False)

    def projects(self, after: str, limit: int) -> Sequence[_Fate]:
        return [_Fate(*item) for item in sorted(self.lives.items()) if item[0] > after][:limit]

    def schemas(self, after: str, limit: int) -> Sequence[_SchemaFate]:
        found = sorted(self.deleted.items())
        return [_SchemaFate(*item) for item in found if item[0] > after][:limit]

    def deleted_projects_needing_purge(self, limit: int) -> Sequence[str]:
        return sorted(self.to_purge)[:limit]


class World:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.cluster = Cluster()
        self.projects = PostgresProjects(database)
        self.schemas = PostgresSchemas(database)
        self.tokens = PostgresRefreshTokens(database)

    def reconciler(self, *, grace_s: float = 0.0) -> Reconciler:
        return Reconciler(
            self.cluster,
            self.cluster,
            self.projects,
            self.schemas,
            self.tokens,
            grace_s=grace_s,
            interval_s=0.0,
            now_ms=lambda: 1_000,
        )

    async def execute(self, command: AnyCommand) -> AnyResult:
        return await self.cluster.execute(command, timeout_s=1.0)

    async def project_states(self) -> dict[str, str]:
        return dict(await self.database.fetch("SELECT id, state FROM projects"))  # type: ignore[arg-type]

    async def attempts(self) -> list[tuple[object, ...]]:
        return await self.database.fetch(
            "SELECT id, version, attempt_id, state FROM config_schemas ORDER BY 1, 2, 3"
        )


@pytest.fixture
async def world(database: Database, add_user) -> World:
    await add_user("u1")
    return World(database)


_HEAD = Envelope(b"c" * 16, "user:u1")
_CREATE = CreateProject(_HEAD, "p1", "k1", b"d")
_PROJECT = Project("p1", "p", "u1", 1)


def _schema(version: int = 1) -> Schema:
    return Schema("s1", "s", version, b"{}", b"d", "u1", 1)


def _put(version: int = 1, attempt_id: str = "try1") -> PutSchema:
    return PutSchema(_HEAD, "s1", version - 1, b"d", attempt_id)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_a_creation_cut_off_anywhere_ends_in_both_stores_or_in_none(
    world: World, steps: int
) -> None:
    if steps >= 1:
        await world.projects.add_pending(_PROJECT)
    if steps >= 2:
        await world.execute(_CREATE)
    if steps >= 3:
        await world.projects.activate("p1")
    await world.reconciler().round()
    there = steps >= 2
    assert await world.project_states() == ({"p1": "active"} if there else {})
    assert world.cluster.project_exists("p1") is there
    # and whatever is still on its way can not change that
    if steps == 1:
        assert isinstance(await world.execute(_CREATE), Refused)


async def test_a_creation_within_the_grace_period_is_left_alone(world: World) -> None:
    await world.projects.add_pending(_PROJECT)
    assert await world.reconciler(grace_s=3600).round() == Reconciled()
    assert await world.project_states() == {"p1": "creating"}
    assert world.cluster.commands == []


async def test_an_ended_creation_whose_row_stayed_is_ended_once_more(world: World) -> None:
    """The reconciler itself died between the tombstone and the row."""
    await world.projects.add_pending(_PROJECT)
    await world.execute(DeleteProject(_HEAD, "p1"))
    await world.reconciler().round()
    assert await world.project_states() == {}


@pytest.mark.parametrize("steps", [1, 2])
async def test_a_deletion_cut_off_anywhere_is_finished(world: World, steps: int) -> None:
    await world.projects.add_pending(_PROJECT)
    await world.execute(_CREATE)
    await world.projects.activate("p1")
    await world.execute(DeleteProject(_HEAD, "p1"))
    world.cluster.to_purge["p1"] = 450
    if steps >= 2:
        await world.projects.remove("p1")
    done = await world.reconciler().round()
    assert await world.project_states() == {}
    assert world.cluster.to_purge == {}
    assert done.projects_purged == 1
    assert sum(isinstance(command, PurgeProject) for command in world.cluster.commands) == 3


async def test_purging_goes_on_in_the_next_round(world: World) -> None:
    world.cluster.to_purge["p1"] = 200 * 60
    reconciler = world.reconciler()
    assert (await reconciler.round()).projects_purged == 0
    assert (await reconciler.round()).projects_purged == 1
    assert world.cluster.to_purge == {}


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_a_schema_attempt_cut_off_anywhere_is_settled(world: World, steps: int) -> None:
    await world.schemas.add_pending(_schema(), "try1")
    if steps >= 2:
        await world.execute(_put())
    if steps >= 3:
        await world.schemas.activate("s1", 1, "try1")
    await world.reconciler().round()
    won = steps >= 2
    assert await world.attempts() == ([("s1", 1, "try1", "active")] if won else [])
    if not won:
        assert isinstance(await world.execute(_put()), Refused)


async def test_of_two_attempts_the_one_that_won_stays(world: World) -> None:
    await world.schemas.add_pending(_schema(), "try1")
    await world.schemas.add_pending(_schema(), "try2")
    await world.execute(_put(attempt_id="try2"))
    await world.reconciler().round()
    assert await world.attempts() == [("s1", 1, "try2", "active")]


@pytest.mark.parametrize("activated", [False, True])
async def test_rows_of_a_schema_deleted_in_the_log_go(world: World, activated: bool) -> None:
    await world.schemas.add_pending(_schema(), "try1")
    await world.execute(_put())
    if activated:
        await world.schemas.activate("s1", 1, "try1")
    await world.execute(DeleteSchema(_HEAD, "s1"))
    await world.reconciler().round()
    assert await world.attempts() == []


async def test_rows_that_a_restored_backup_brings_back_go(world: World) -> None:
    await world.execute(_CREATE)
    await world.execute(DeleteProject(_HEAD, "p1"))
    reconciler = world.reconciler()
    await reconciler.round()
    await world.projects.add_pending(_PROJECT)
    await world.projects.activate("p1")
    assert (await reconciler.round()).projects_removed == 1
    assert await world.project_states() == {}


async def test_rows_that_the_log_never_heard_of_are_not_touched(world: World) -> None:
    """A new cluster on an old database must not empty it."""
    await world.projects.add_pending(_PROJECT)
    await world.projects.activate("p1")
    await world.reconciler().round()
    assert await world.project_states() == {"p1": "active"}


async def test_the_walk_over_the_dead_goes_on_where_it_ended(world: World) -> None:
    for number in range(450):
        world.cluster.lives[f"p{number:03}"] = False
    await world.projects.add_pending(Project("p449", "p", "u1", 1))
    await world.projects.activate("p449")
    reconciler = world.reconciler()
    removed = [(await reconciler.round()).projects_removed for _ in range(3)]
    assert removed == [0, 0, 1]


async def test_without_a_leader_nothing_is_decided_and_the_rest_is_done(world: World) -> None:
    await world.projects.add_pending(_PROJECT)
    await world.schemas.add_pending(_schema(), "try1")
    await world.tokens.add(b"t", "f", "u1", 500)
    world.cluster.away = True
    done = await world.reconciler().round()
    assert done == Reconciled(tokens_forgotten=1)
    assert await world.project_states() == {"p1": "creating"}
    assert await world.attempts() == [("s1", 1, "try1", "pending")]


async def test_a_second_round_has_nothing_to_do(world: World) -> None:
    await world.projects.add_pending(_PROJECT)
    await world.execute(_CREATE)
    await world.schemas.add_pending(_schema(), "try1")
    reconciler = world.reconciler()
    assert await reconciler.round() != Reconciled()
    assert await reconciler.round() == Reconciled()


async def test_it_ends_when_its_node_no_longer_leads(world: World) -> None:
    await world.projects.add_pending(_PROJECT)
    reconciler = world.reconciler()
    rounds = 0

    def leads() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds <= 2

    world.cluster.is_leader = leads  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        await reconciler.run()
    assert rounds == 3
    assert await world.project_states() == {}
