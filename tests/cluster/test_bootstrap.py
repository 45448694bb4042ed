"""Who may start on which directory, and what everybody else is told."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def digests(root: Path) -> dict[str, str]:
    """Every file below ``root`` with its digest, but for locks: those name the last process."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "lock.mdb")
    }


def wipe(cluster: Any, node: Any) -> None:
    """As somebody does who thinks that the cluster will fill it again."""
    shutil.rmtree(cluster.data_dir(node))


# -- founding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["DATABASE_URL", "GUARDIAN_JWT_SECRET"])
def test_several_members_need_a_shared_database_and_secret(
    make_cluster: Any, variable: str
) -> None:
    cluster = make_cluster()
    node = cluster.nodes[0]
    del node.environment[variable]
    assert cluster.run(node) == 78
    assert variable in node.last_log_line()
    assert not cluster.data_dir(node).exists()


def test_a_wiped_member_is_refused_and_the_cluster_goes_on(make_cluster: Any) -> None:
    cluster = make_cluster()
    cluster.start()
    place = cluster.furnish()
    cluster.store(place, "a", {"count": 1})
    wiped = cluster.others(cluster.leader())[0]
    rest = cluster.others(wiped)
    cluster.kill(wiped)
    wipe(cluster, wiped)
    terms = [cluster.view(node)["term"] for node in rest]

    assert cluster.run(wiped) == 78
    assert "already_bootstrapped" in wiped.last_log_line()
    assert [cluster.view(node)["term"] for node in rest] == terms, "it asked for votes"
    for number, node in enumerate(rest, 1):
        body = {"content": {"count": number + 1}, "expected_version": number}
        assert cluster.ask(node, "PUT", place.path("a"), body).status == 200
    members = {m["id"]: m for m in cluster.view(rest[0])["members"]}
    assert not members[wiped.name]["healthy"]

    # with one of the others down as well, its vote would make a majority: it must not count
    survivor, other = rest
    cluster.kill(other)
    assert cluster.run(wiped) == 78
    assert "already_bootstrapped" in wiped.last_log_line()
    answer = cluster.ask(
        survivor, "PUT", place.path("a"), {"content": {"count": 9}, "expected_version": 3}
    )
    assert answer.status in (503, 504)

    # with all others down nobody can tell it, and it must wait instead of founding a cluster
    cluster.kill(survivor)
    wiped.start()
    waits = "missing " + ", ".join(sorted(node.name for node in rest))
    deadline = time.monotonic() + 60
    while waits not in wiped.log_path.read_text():
        assert wiped.running, wiped.last_log_line()
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.05)
    assert not (cluster.data_dir(wiped) / "log").exists()
    cluster.start(survivor, other)
    assert cluster.wait_exit(wiped) == 78
    assert "already_bootstrapped" in wiped.last_log_line()
    assert cluster.get("GET", place.path("a"))["version"] in (3, 4)


# -- directories --------------------------------------------------------------------------------


@pytest.fixture
def one(make_cluster: Any) -> Any:
    """A cluster of one, up."""
    cluster = make_cluster(size=1)
    cluster.start()
    return cluster


def test_a_second_process_on_a_directory_is_refused_and_the_first_goes_on(one: Any) -> None:
    place = one.furnish()
    one.store(place, "a", {"count": 1})
    (node,) = one.nodes
    second = type(node)(
        node.name, node.url, node.arguments, node.environment, one.root / "second.log"
    )
    assert one.run(second) == 73
    assert "E_LOCKED" in second.last_log_line()
    body = {"content": {"count": 2}, "expected_version": 1}
    assert one.ask(node, "PUT", place.path("a"), body).status == 200


def test_the_directory_of_another_node_is_refused_untouched(one: Any) -> None:
    (node,) = one.nodes
    one.kill(node)
    before = digests(one.data_dir(node))
    arguments = [a.replace("node1", "node2") if a == "node1" else a for a in node.arguments]
    environment = node.environment | {
        "GUARDIAN_BOOTSTRAP": node.environment["GUARDIAN_BOOTSTRAP"].replace("node1", "node2")
    }
    other = type(node)("node2", node.url, arguments, environment, one.root / "other.log")
    assert one.run(other) == 78
    assert "E_IDENTITY" in other.last_log_line()
    assert digests(one.data_dir(node)) == before


def test_a_truncated_log_is_refused_untouched(one: Any) -> None:
    place = one.furnish()
    for number in range(20):
        one.store(place, f"k{number}", {"count": number})
    (node,) = one.nodes
    one.kill(node)
    data = one.data_dir(node) / "log" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    before = digests(one.data_dir(node))
    assert one.run(node) == 76
    assert "E_TRUNCATED" in node.last_log_line()
    assert digests(one.data_dir(node)) == before


def test_a_flipped_bit_in_the_log_is_refused_again_and_again(one: Any) -> None:
    place = one.furnish()
    one.store(place, "marked", {"count": 4_242_424_242})
    (node,) = one.nodes
    one.kill(node)
    data = one.data_dir(node) / "log" / "data.mdb"
    raw = data.read_bytes()
    assert b"4242424242" in raw
    data.write_bytes(raw.replace(b"4242424242", b"4242424243"))
    for _ in range(2):
        assert one.run(node) == 76
        assert "E_LOG_CORRUPT" in node.last_log_line()
    # what was found is still there to be looked at: nothing was cut off or mended
    assert b"4242424243" in data.read_bytes()
