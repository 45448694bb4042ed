"""The mirror against a real PostgreSQL, fed from a history held here."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import pytest

from guardian.adapters.postgres.connection import Connection, Row
from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.projector import (
    ORIGIN,
    LostRaceError,
    Place,
    Projector,
    reset_projection,
)
from guardian.adapters.postgres.projects import PostgresProjects
from guardian.adapters.postgres.schemas import PostgresSchemas
from guardian.domain.entities import Project, Schema
from guardian.domain.problems import Problem
from guardian.fsm.history import Change, ChangeKind


class History:
    """A change feed."""

    def __init__(self) -> None:
        self.all: list[Change] = []

    def changes(self, after: Place, limit: int) -> Sequence[Change]:
        return [change for change in self.all if change.place > after][:limit]

    def add(
        self,
        kind: ChangeKind,
        *,
        key: str = "",
        content: bytes | None = None,
        version: int = 0,
        project_id: str = "p1",
        schema_id: str = "s1",
        name: str = "",
        ordinal: int = 0,
    ) -> None:
        revision = (self.all[-1].revision if self.all else 10) + (0 if ordinal else 1)
        digest = hashlib.sha256(content or b"").digest()
        self.all.append(
            Change(
                revision=revision,
                ordinal=ordinal,
                kind=kind,
                actor="user:u1",
                at_ms=1_700_000_000_000 + revision,
                project_id=project_id,
                key=key,
                key_id="",
                name=name,
                schema_id=schema_id,
                schema_version=1,
                version=version,
                digest=digest,
                content=content,
                chain=b"",
            )
        )

    def config(self, key: str, version: int, content: bytes, *, project_id: str = "p1") -> None:
        kind = ChangeKind.CONFIG_CREATED if version == 1 else ChangeKind.CONFIG_UPDATED
        self.add(kind, key=key, version=version, content=content, project_id=project_id)


@pytest.fixture
def history() -> History:
    return History()


def _projector(database: Database, history: History, **options: object) -> Projector:
    return Projector(database, history, "cluster", lambda: True, **options)  # type: ignore[arg-type]


async def _catch_up(projector: Projector) -> Place:
    place = await projector.load_position()
    while (following := await projector.step(place)) != place:
        place = following
    return place


async def _tables(database: Database) -> dict[str, list[Row]]:
    return {
        name: await database.fetch(f"SELECT * FROM {name} ORDER BY 1, 2, 3")
        for name in ("configs", "config_revisions", "projection_position")
    }


def _story(history: History) -> None:
    history.config("a", 1, b'{"x":1}')
    history.config("b", 1, b"[1,2]")
    history.config("a", 2, b'{"x":2}')
    history.add(ChangeKind.CONFIG_DELETED, key="b", version=2)
    history.config("a", 3, b'{"x":3}')
    history.config("b", 3, b'"again"')
    history.config("c", 1, b"null", project_id="p2")


async def test_the_mirror_holds_current_configs_and_all_revisions(
    database: Database, history: History
) -> None:
    _story(history)
    assert await _catch_up(_projector(database, history)) == history.all[-1].place
    assert await database.fetch(
        "SELECT project_id, key, version, revision, content, content_json FROM configs"
        " ORDER BY project_id, key"
    ) == [
        ("p1", "a", 3, 15, '{"x":3}', {"x": 3}),
        ("p1", "b", 3, 16, '"again"', "again"),
        ("p2", "c", 1, 17, "null", None),
    ]
    assert await database.fetch(
        "SELECT key, version, kind, content FROM config_revisions WHERE project_id = 'p1'"
        " ORDER BY key, version"
    ) == [
        ("a", 1, "create", '{"x":1}'),
        ("a", 2, "update", '{"x":2}'),
        ("a", 3, "update", '{"x":3}'),
        ("b", 1, "create", "[1,2]"),
        ("b", 2, "delete", None),
        ("b", 3, "update", '"again"'),
    ]


@pytest.mark.parametrize("batch_limit", [1, 2, 3, 100])
async def test_the_mirror_does_not_depend_on_how_history_is_cut(
    database: Database, history: History, batch_limit: int
) -> None:
    _story(history)
    await _catch_up(_projector(database, history))
    whole = await _tables(database)
    await reset_projection(database)
    await _catch_up(_projector(database, history, batch_limit=batch_limit))
    assert await _tables(database) == whole


@pytest.mark.parametrize(
    ("content", "as_json"),
    [
        (b'"\\u0000"', None),
        (b'"\\ud800"', None),
        (b'{"\\u0000":1}', None),
        (b"1e999999", None),
        (b'"\xff\x00"', "\ufffd\ufffd"),
        (b"no json", None),
    ],
)
async def test_content_that_postgres_can_not_hold_stops_nothing(
    database: Database, history: History, content: bytes, as_json: str | None
) -> None:
    history.config("a", 1, content)
    history.config("b", 1, b"true")
    assert await _catch_up(_projector(database, history)) == history.all[-1].place
    rows = await database.fetch("SELECT key, content_json FROM configs ORDER BY key")
    assert rows == [("a", as_json), ("b", True)]


async def test_a_projector_that_lost_the_race_writes_nothing(
    database: Database, history: History
) -> None:
    _story(history)
    slow, fast = _projector(database, history), _projector(database, history)
    start = await slow.load_position()
    await _catch_up(fast)
    before = await _tables(database)
    with pytest.raises(LostRaceError):
        await slow.step(start)
    assert await _tables(database) == before


async def test_of_racing_projectors_one_wins_each_batch(
    database: Database, history: History
) -> None:
    _story(history)
    projectors = [_projector(database, history, batch_limit=3) for _ in range(4)]
    for projector in projectors:
        await projector.load_position()
    results = await asyncio.gather(
        *(projector.step(ORIGIN) for projector in projectors), return_exceptions=True
    )
    assert sum(isinstance(result, LostRaceError) for result in results) == 3
    assert history.all[2].place in results


async def test_a_postgres_restored_from_yesterday_is_caught_up(
    database: Database, history: History
) -> None:
    _story(history)
    projector = _projector(database, history, batch_limit=3)
    await projector.step(await projector.load_position())
    copies = ("configs", "config_revisions", "projection_position")
    for name in copies:
        await database.execute(f"CREATE TABLE backup_{name} AS TABLE {name}")
    place = await _catch_up(projector)
    today = await _tables(database)
    for name in copies:
        await database.execute(f"DELETE FROM {name}")
        await database.execute(f"INSERT INTO {name} SELECT * FROM backup_{name}")
    # the running projector finds that its position is gone, and takes the one that is there
    history.config("a", 4, b"4")
    with pytest.raises(LostRaceError):
        await projector.step(place)
    await _catch_up(projector)
    history.all.pop()
    await reset_projection(database)
    await _catch_up(projector)
    assert await _tables(database) == today


async def test_a_position_put_back_alone_does_no_harm(database: Database, history: History) -> None:
    _story(history)
    projector = _projector(database, history)
    await _catch_up(projector)
    before = await _tables(database)
    await database.execute("UPDATE projection_position SET revision = 12, ordinal = 0")
    await _catch_up(projector)
    assert await _tables(database) == before


async def test_another_cluster_starts_the_mirror_anew(
    database: Database, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    _story(history)
    await _catch_up(_projector(database, history))
    other = History()
    other.config("z", 1, b"1")
    await _catch_up(Projector(database, other, "another", lambda: True))
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "mirrored cluster cluster " in warning.getMessage()
    assert "with cluster another;" in warning.getMessage()
    assert await database.fetch("SELECT key FROM configs") == [("z",)]
    assert await database.fetch("SELECT cluster_id FROM projection_position") == [("another",)]


async def test_what_the_log_decided_about_projects_and_schemas_is_finished(
    database: Database, history: History, add_user
) -> None:
    await add_user("u1")
    projects, schemas = PostgresProjects(database), PostgresSchemas(database)
    for project_id in ("p1", "p2"):
        await projects.add_pending(Project(project_id, "p", "u1", 1))
    for schema_id, attempt in (("s1", "won"), ("s1", "lost"), ("s2", "won"), ("s3", "aborted")):
        await schemas.add_pending(Schema(schema_id, "s", 1, b"{}", b"d", "u1", 1), attempt)
    history.add(ChangeKind.PROJECT_CREATED, project_id="p1")
    history.add(ChangeKind.PROJECT_CREATED, project_id="p2")
    history.config("a", 1, b"1", project_id="p2")
    history.add(ChangeKind.PROJECT_DELETED, project_id="p2")
    history.add(ChangeKind.PROJECT_PURGED, project_id="p2", version=1)
    history.add(ChangeKind.SCHEMA_PUT, schema_id="s1", version=1, name="won")
    history.add(ChangeKind.SCHEMA_PUT, schema_id="s2", version=1, name="won")
    history.add(ChangeKind.SCHEMA_DELETED, schema_id="s2", version=1)
    history.add(ChangeKind.SCHEMA_ATTEMPT_ABORTED, schema_id="s3", name="aborted")
    await _catch_up(_projector(database, history))
    assert await database.fetch("SELECT id, state FROM projects") == [("p1", "active")]
    assert await database.fetch("SELECT id, attempt_id, state FROM config_schemas") == [
        ("s1", "won", "active")
    ]
    assert await database.fetch("SELECT count(*) FROM configs") == [(0,)]
    assert await database.fetch("SELECT count(*) FROM config_revisions") == [(0,)]


async def test_several_changes_of_one_revision_are_kept_in_order(
    database: Database, history: History
) -> None:
    history.config("a", 1, b"1")
    history.add(ChangeKind.CONFIG_UPDATED, key="a", version=2, content=b"2", ordinal=1)
    history.add(ChangeKind.CONFIG_DELETED, key="a", version=3, ordinal=2)
    projector = _projector(database, history, batch_limit=1)
    assert await _catch_up(projector) == (11, 2)
    assert await database.fetch("SELECT count(*) FROM configs") == [(0,)]


async def _reached(database: Database, history: History) -> None:
    async with asyncio.timeout(60):
        while True:
            rows = await database.fetch("SELECT revision, ordinal FROM projection_position")
            if rows == [history.all[-1].place]:
                return
            await asyncio.sleep(0.01)


async def test_a_running_projector_follows_notifications_and_resets(
    database: Database, history: History
) -> None:
    projector = _projector(database, history, poll_s=3600, lost_pause_s=0.01)
    running = asyncio.create_task(projector.run())
    _story(history)
    projector.notify()
    await _reached(database, history)
    whole = await _tables(database)
    await reset_projection(database)
    history.config("d", 1, b"1")
    projector.notify()
    await _reached(database, history)
    filled = await _tables(database)
    assert len(filled["config_revisions"]) == len(whole["config_revisions"]) + 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("lost", ["reset", "restored"])
async def test_a_mirror_that_went_back_is_filled_again_although_nobody_writes(
    database: Database, history: History, lost: str
) -> None:
    _story(history)
    projector = _projector(database, history, poll_s=0.01)
    running = asyncio.create_task(projector.run())
    await _reached(database, history)
    whole = await _tables(database)
    if lost == "reset":
        await reset_projection(database)
    else:

        async def restore(connection: Connection) -> None:
            await connection.execute("UPDATE projection_position SET revision = 14")
            await connection.execute("DELETE FROM config_revisions WHERE revision > 14")
            await connection.execute("DELETE FROM configs WHERE revision > 14")

        await database.write(restore)
    await _reached(database, history)
    assert await _tables(database) == whole
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_projector_outlives_an_absence_of_postgres(
    database: Database, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    _story(history)
    projector = _projector(database, history)
    real, failures = database.write, iter(["unavailable", "outcome_unknown"])

    async def failing(*args: object, **kwargs: object) -> object:
        code = next(failures, None)
        if code is not None:
            raise Problem(code)
        return await real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "write", failing)
    running = asyncio.create_task(projector.run())
    await _reached(database, history)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_projector_ends_when_its_node_no_longer_leads(
    database: Database, history: History
) -> None:
    _story(history)
    answers = iter([True, True, False])
    projector = Projector(database, history, "cluster", lambda: next(answers), batch_limit=2)
    await projector.run()
    assert projector.position == history.all[3].place
