"""What crosses the log and PostgreSQL is finished or undone, also when whoever began stays dead.

A node is killed at a known step by holding up what comes after it: the log, by pausing the leader
it would forward to, or PostgreSQL, by holding a lock. Rows are made to look old, because nobody
touches those of a request that may still be under way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

pytestmark = pytest.mark.slow

AGE = "interval '5 minutes'"


@contextmanager
def in_background(work: Any) -> Iterator[None]:
    """Run a request that will not be answered; its connection breaks with its node."""

    def run() -> None:
        try:
            work()
        except OSError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


def kill_both(cluster: Any, node: Any, paused_leader: Any) -> None:
    """What the paused leader was sent and had not read is lost with it."""
    cluster.kill(node)
    cluster.kill(paused_leader)
    cluster._stopped.discard(paused_leader.name)


def test_a_project_that_never_reached_the_log_is_undone(cluster: Any, until: Any) -> None:
    leader = cluster.leader()
    node = cluster.others(leader)[0]

    def row() -> Any:
        return cluster.sql("SELECT id, state FROM projects WHERE name = 'doomed'")

    def create() -> None:
        cluster.ask(node, "POST", "/api/v1/projects", {"name": "doomed"})

    cluster.pause(leader)
    with in_background(create):
        ((project, state),) = until("the row is there", row)
        kill_both(cluster, node, leader)
    assert state == "creating"
    cluster.sql(f"UPDATE projects SET state_changed_at = now() - {AGE} WHERE id = %s", project)
    cluster.start(leader)
    until("the row is gone", lambda: not row())
    assert not node.running
    assert cluster.ask(leader, "GET", f"/api/v1/projects/{project}").status == 404


def test_a_schema_version_that_never_reached_the_log_is_undone(cluster: Any, until: Any) -> None:
    place = cluster.furnish()
    leader = cluster.leader()
    node = cluster.others(leader)[0]
    wanted = {"type": "object", "title": "never in the log"}

    def update() -> None:
        body = {"schema": wanted, "expected_version": 1}
        cluster.ask(node, "PUT", f"/api/v1/schemas/{place.schema}", body)

    def pending() -> Any:
        return cluster.sql(
            "SELECT version FROM config_schemas WHERE id = %s AND state = 'pending'", place.schema
        )

    with psycopg.connect(cluster.database_url) as lock, in_background(update):
        lock.execute("LOCK TABLE config_schemas IN SHARE MODE")
        until("the update waits to store its body", lambda: waiting(cluster, "%config_schemas%"))
        cluster.pause(leader)
        lock.rollback()
        until("the row is there", pending)
        kill_both(cluster, node, leader)
    cluster.sql(
        f"UPDATE config_schemas SET state_changed_at = now() - {AGE} WHERE id = %s", place.schema
    )
    cluster.start(leader)
    until("the row is settled", lambda: not pending())
    assert not node.running
    schema = cluster.get("GET", f"/api/v1/schemas/{place.schema}")
    rows = cluster.sql("SELECT version FROM config_schemas WHERE id = %s", place.schema)
    assert max(rows) == (schema["version"],) == (1,)
    # the version is free for the next who wants it
    body = {"schema": {"type": "object"}, "expected_version": 1}
    assert cluster.get("PUT", f"/api/v1/schemas/{place.schema}", body)["version"] == 2


def waiting(cluster: Any, query: str) -> list[Any]:
    """Sessions of nodes that wait for a lock with such a statement."""
    found: list[Any] = cluster.sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'guardian' AND wait_event_type = 'Lock' AND query LIKE %s",
        query,
    )
    return found


def kill_while_blocked(cluster: Any, until: Any, node: Any, query: str) -> None:
    """Kill a node that waits for a lock, and what PostgreSQL still does in its name."""
    until("the node waits for its row", lambda: waiting(cluster, query))
    cluster.kill(node)
    cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'guardian'"
    )
    until("no statement of it is left", lambda: not waiting(cluster, query))


def test_a_project_that_the_log_has_is_finished(cluster: Any, until: Any) -> None:
    leader = cluster.leader()
    node = cluster.others(leader)[0]

    def row(state: str) -> Any:
        return cluster.sql("SELECT id FROM projects WHERE name = 'finished' AND state = %s", state)

    def create() -> None:
        cluster.ask(node, "POST", "/api/v1/projects", {"name": "finished"})

    cluster.pause(leader)  # so that the row can be locked before the log has the project
    with psycopg.connect(cluster.database_url) as lock, in_background(create):
        ((project,),) = until("the row is there", lambda: row("creating"))
        lock.execute("SELECT 1 FROM projects WHERE id = %s FOR UPDATE", (project,))
        cluster.resume(leader)
        kill_while_blocked(cluster, until, node, "UPDATE projects%")
        assert row("creating")
        lock.rollback()
    until("the row is active", lambda: row("active"))
    assert not node.running
    assert cluster.get("GET", f"/api/v1/projects/{project}")["name"] == "finished"


def test_a_deleted_project_s_rows_go_although_the_node_died(cluster: Any, until: Any) -> None:
    place = cluster.furnish()
    cluster.store(place, "a", {"count": 1})
    node = cluster.others(cluster.leader())[0]

    def delete() -> None:
        cluster.ask(node, "DELETE", f"/api/v1/projects/{place.project}")

    def rows() -> Any:
        return cluster.sql("SELECT 1 FROM projects WHERE id = %s", place.project)

    with psycopg.connect(cluster.database_url) as lock, in_background(delete):
        lock.execute("SELECT 1 FROM projects WHERE id = %s FOR UPDATE", (place.project,))
        kill_while_blocked(cluster, until, node, "DELETE FROM projects%")
        assert rows()
        survivor = cluster.others(node)[0]
        read = f"/api/v1/read/{place.api_key}/a?consistency=linearizable"
        assert cluster.ask(survivor, "GET", read).status == 401, "its key outlived it"
        lock.rollback()
    until("the row is gone", lambda: not rows())
    assert not node.running
