"""A node that lost something it had promised counts for nothing until it has everything again."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


def damage(cluster: Any, node: Any, was: bytes, becomes: bytes) -> None:
    """Change what is stored in a dead node's log."""
    data = cluster.data_dir(node) / "log" / "data.mdb"
    raw = data.read_bytes()
    assert was in raw
    data.write_bytes(raw.replace(was, becomes))


def test_a_damaged_node_is_filled_again_and_takes_part(make_cluster: Any, until: Any) -> None:
    cluster = make_cluster()
    cluster.start()
    place = cluster.furnish()
    cluster.store(place, "marked", {"count": 4_242_424_242})
    for number in range(10):
        cluster.store(place, f"later/{number}", {"count": number})
    cluster.until_level()
    leader = cluster.leader()
    damaged, other = cluster.others(leader)
    cluster.kill(*cluster.nodes)
    damage(cluster, damaged, b"4242424242", b"4242424243")

    # it comes up, and says why it serves nothing
    damaged.start()
    told = until("it answers", lambda: cluster.ask(damaged, "GET", "/ready"))
    assert (told.status, told.json["reasons"][0]) == (503, "quarantined"), told.raw
    health = cluster.ask(damaged, "GET", "/health")
    assert (health.status, "quarantined" in health.json["reasons"]) == (503, True)
    assert cluster.view(damaged)["conditions"] == ["quarantined"]
    read = cluster.ask(damaged, "GET", place.path("marked"))
    assert (read.status, read.code) == (503, "unavailable"), read.raw
    assert "lost data" in read.json["detail"]
    assert cluster.metric(damaged, "raft_quarantined") == 1
    assert (cluster.data_dir(damaged) / "QUARANTINE").exists()

    # its vote would make a majority with one of the others, and must not
    other.start()
    until("the other is up", lambda: cluster.ask(other, "GET", "/livez").status == 200)
    body = {"content": {"count": 1}, "expected_version": 1}
    assert cluster.ask(other, "PUT", place.path("marked"), body).status == 503
    assert cluster.view(other)["leader_id"] is None

    # the two that have everything bring it back
    cluster.start()
    until("it is over", lambda: cluster.view(damaged)["conditions"] == [])
    cluster.until_level()
    seen = [cluster.everything(place, node) for node in cluster.nodes]
    assert seen[0] == seen[1] == seen[2]
    assert not (cluster.data_dir(damaged) / "QUARANTINE").exists()
    cluster.kill(other)
    cluster.store(place, "after", {"count": 1})
    cluster.kill(leader)
    cluster.start(leader, other)

    # what was damaged is kept for whoever wants to look, and a restart is a restart
    kept = list(cluster.data_dir(damaged).glob("log.damaged-*"))
    assert len(kept) == 1
    cluster.kill(damaged)
    cluster.start(damaged)
    assert cluster.view(damaged)["conditions"] == []


def test_a_damaged_leader_is_replaced_and_rejoins(make_cluster: Any) -> None:
    cluster = make_cluster()
    cluster.start()
    place = cluster.furnish()
    cluster.store(place, "marked", {"count": 4_242_424_242})
    leader = cluster.leader()
    term = cluster.view(leader)["term"]
    cluster.kill(leader)
    damage(cluster, leader, b"4242424242", b"4242424243")
    cluster.leader(after_term=term)
    cluster.store(place, "while/it/was/away", {"count": 1})
    cluster.start(leader)
    cluster.until_level()
    for node in cluster.nodes:
        answer = cluster.ask(node, "GET", place.path("marked"))
        assert answer.json["content"] == {"count": 4_242_424_242}
