"""The mirror in PostgreSQL says what the log says, whatever happens to those who write it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytestmark = pytest.mark.slow

KEYS = 6


def mirror(cluster: Any, place: Any) -> Any:
    """Configs and revisions of a project as PostgreSQL has them."""
    configs = cluster.sql(
        "SELECT key, version, revision, content FROM configs WHERE project_id = %s ORDER BY key",
        place.project,
    )
    revisions = cluster.sql(
        "SELECT key, version, revision, kind, encode(digest, 'hex') FROM config_revisions"
        " WHERE project_id = %s ORDER BY key, version DESC",
        place.project,
    )
    return [(*row[:3], json.loads(row[3])) for row in configs], revisions


def truth(cluster: Any, place: Any, keys: list[str]) -> Any:
    """The same as the state machine has them."""
    items = cluster.get("GET", f"{place.path()}?limit=1000")["items"]
    configs = [(c["key"], c["version"], c["revision"], c["content"]) for c in items]
    revisions = []
    for key in sorted(keys):
        for r in cluster.get("GET", place.path(key, "revisions?limit=1000"))["items"]:
            digest = r["content_digest"].removeprefix("sha256:")
            revisions.append((key, r["version"], r["revision"], r["kind"], digest))
    return configs, revisions


def until_mirrored(cluster: Any, until: Any, place: Any, keys: list[str]) -> None:
    expected = truth(cluster, place, keys)
    assert expected[1], "nothing to compare"
    until("the mirror says what the log says", lambda: mirror(cluster, place) == expected)


def write_some(cluster: Any, place: Any, first: int = 0) -> list[str]:
    """Creations, updates, a rollback, a deletion and a second creation."""
    keys = [f"m/{number}" for number in range(first, first + KEYS)]
    for number, key in enumerate(keys):
        cluster.store(place, key, {"count": number})
        body = {"content": {"count": number + 100}, "expected_version": 1}
        cluster.get("PUT", place.path(key), body)
    cluster.get("POST", place.path(keys[0], "rollback"), {"to_version": 1, "expected_version": 2})
    cluster.get("DELETE", place.path(keys[1]) + "?expected_version=2", status=204)
    cluster.get("DELETE", place.path(keys[2]) + "?expected_version=2", status=204)
    cluster.store(place, keys[2], {"count": 7})
    return keys


@contextmanager
def writing(cluster: Any, place: Any, key: str) -> Iterator[None]:
    """A writer in the background, so that a projector is at work at any moment."""
    stopping = threading.Event()
    failures: list[BaseException] = []
    version = cluster.store(place, key, {"count": 0})["version"]

    def write() -> None:
        nonlocal version
        try:
            while not stopping.is_set():
                body = {"content": {"count": version}, "expected_version": version}
                version = cluster.get("PUT", place.path(key), body)["version"]
        except BaseException as error:  # noqa: BLE001 - raised in the test
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    assert not failures, failures


def make_leader(cluster: Any, chosen: Any, witness: Any) -> None:
    """With one node down, the leader has only ``chosen`` to hand over to. The entry that begins its
    term is then in nobody's log but its own and perhaps the old leader's, who stays down until it
    leads again: ``witness`` can not win against it."""
    old = cluster.leader()
    cluster.kill(witness)
    old._process.terminate()
    assert cluster.wait_exit(old) == 0
    cluster.start(witness)
    assert cluster.leader() is chosen
    cluster.start(old)


def test_what_is_written_is_mirrored(cluster: Any, until: Any) -> None:
    place = cluster.furnish()
    keys = write_some(cluster, place)
    until_mirrored(cluster, until, place, keys)


def test_a_projector_paused_across_an_election_changes_nothing_afterwards(
    cluster: Any, until: Any
) -> None:
    place = cluster.furnish()
    paused = cluster.leader()
    term = cluster.view(paused)["term"]
    with writing(cluster, place, "busy"):
        until(
            "the mirror has begun",
            lambda: cluster.sql("SELECT 1 FROM configs WHERE project_id = %s", place.project),
        )
        cluster.pause(paused)
        successor = cluster.leader(after_term=term)
        assert successor is not paused
        keys = write_some(cluster, place)
    keys.append("busy")
    until_mirrored(cluster, until, place, keys)  # while the old leader is paused
    cluster.resume(paused)
    cluster.until_ready(paused)
    keys += write_some(cluster, place, first=50)
    cluster.until_level()
    until_mirrored(cluster, until, place, keys)
    positions = cluster.sql("SELECT revision FROM projection_position")
    assert len(positions) == 1
    newest = cluster.sql("SELECT max(revision) FROM config_revisions")
    assert positions[0][0] >= newest[0][0]


def test_an_older_postgres_heals(cluster: Any, until: Any) -> None:
    place = cluster.furnish()
    keys = write_some(cluster, place)
    until_mirrored(cluster, until, place, keys)
    tables = ("configs", "config_revisions", "projection_position")
    for table in tables:
        cluster.sql(f"CREATE TABLE backup_{table} AS TABLE {table}")
    keys += write_some(cluster, place, first=50)
    until_mirrored(cluster, until, place, keys)
    for node in cluster.nodes:  # as with a restored server, nobody is at work meanwhile
        cluster.pause(node)
    cluster.sql(
        "; ".join(
            f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM backup_{table};"
            f" DROP TABLE backup_{table}"
            for table in tables
        )
    )
    for node in cluster.nodes:
        cluster.resume(node)
    until_mirrored(cluster, until, place, keys)


def test_the_mirror_is_rebuilt_with_one_command_while_the_cluster_runs(
    cluster: Any, until: Any
) -> None:
    place = cluster.furnish()
    keys = write_some(cluster, place)
    until_mirrored(cluster, until, place, keys)
    # rows that nobody would miss, and one that nobody wrote
    cluster.sql("DELETE FROM config_revisions WHERE project_id = %s", place.project)
    cluster.sql("UPDATE configs SET content = '{}' WHERE project_id = %s", place.project)
    assert mirror(cluster, place) != truth(cluster, place, keys)
    done = subprocess.run(
        [
            sys.executable, "-m", "guardian.cli.main", "db",
            "--database-url", cluster.database_url, "rebuild-projection",
        ],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    until_mirrored(cluster, until, place, keys)


def test_a_node_that_caught_up_by_snapshot_projects_all_it_never_saw_in_its_log(
    cluster: Any, until: Any
) -> None:
    place = cluster.furnish()
    leader = cluster.leader()
    follower, witness = cluster.others(leader)
    cluster.kill(follower)
    keys = write_some(cluster, place)
    held = cluster.view(leader)["commit_index"]
    first = 50
    while cluster.metric(leader, "raft_first_index") <= held + 1:
        assert first < 1000, "the leader's log still holds what the follower lacks"
        keys += write_some(cluster, place, first)
        first += KEYS
    cluster.start(follower)
    cluster.until_level()
    assert cluster.metric(follower, "raft_snapshots_installed") >= 1
    make_leader(cluster, follower, witness)
    cluster.sql("UPDATE projection_position SET revision = 0, ordinal = 0")
    cluster.sql("TRUNCATE configs, config_revisions")
    until_mirrored(cluster, until, place, keys)
    assert cluster.metric(follower, "projected_revision") > 0
