"""Without PostgreSQL what needs it says so, everything else goes on, and nobody has to restart."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardian.adapters.postgres.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, running; it may stop it."""
    # not below pytest's own directory, which is closed to the user that the server runs as
    directory = Path(tempfile.mkdtemp(prefix="guardian-pg-"))
    postgres = EmbeddedPostgres(directory, fsync=False)
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.stop()
        shutil.rmtree(directory)


def test_postgres_goes_and_comes_back(
    server: EmbeddedPostgres, make_cluster: Any, until: Any
) -> None:
    cluster = make_cluster(database_url=server.dsn, size=1)
    (node,) = cluster.nodes
    cluster.start()
    place = cluster.furnish()
    cluster.store(place, "a", {"count": 1})
    read = f"/api/v1/read/{place.api_key}/a"

    def degraded() -> Any:
        answer = cluster.ask(node, "GET", "/ready")
        return answer.status == 200 and answer.json.get("degraded") == ["postgres"]

    def away() -> None:
        until("the node notices", degraded)
        assert cluster.ask(node, "GET", read).json["content"] == {"count": 1}
        assert cluster.ask(node, "GET", f"{read}?consistency=linearizable").status == 200
        for method, path, body in (
            ("GET", "/api/v1/projects", None),
            ("POST", "/api/v1/projects", {"name": "later"}),
            ("GET", "/api/v1/schemas", None),
            ("POST", "/api/v1/auth/login", {"email": "admin@localhost", "password": "x" * 12}),
        ):
            answer = cluster.ask(node, method, path, body)
            assert (answer.status, answer.code) == (503, "unavailable"), (path, answer.raw)
            assert int(answer.headers["Retry-After"]) >= 1

    server.stop()
    away()
    cluster.kill(node)
    cluster.start(node)  # also a start must not need it
    away()
    server.start()
    until("the node is whole again", lambda: not degraded())
    until("it works again", lambda: cluster.ask(node, "GET", "/api/v1/projects").status == 200)
    body = {"content": {"count": 2}, "expected_version": 1}
    assert cluster.ask(node, "PUT", place.path("a"), body).status == 200
    until(
        "the mirror has what happened since",
        lambda: cluster.sql("SELECT 1 FROM configs WHERE key = 'a' AND version = 2"),
    )


def test_a_node_that_first_starts_without_postgres_sets_it_up_later(
    server: EmbeddedPostgres, make_cluster: Any, until: Any
) -> None:
    url = server.dsn
    server.stop()
    cluster = make_cluster(database_url=url, size=1)
    (node,) = cluster.nodes
    node.start()
    cluster.until_ready(node)
    answer = cluster.ask(node, "POST", "/api/v1/auth/login", {"email": "a@b", "password": "x" * 12})
    assert (answer.status, answer.code) == (503, "unavailable")
    server.start()
    cluster.token = cluster.log_in_when_created()
    cluster.store(cluster.furnish(), "a", {"count": 1})
