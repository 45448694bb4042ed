"""What the release before left is taken over.

``fixtures/guardian-0.1.tar.xz`` was made by release 0.1: a single node, killed after forty configs
of one project with snapshots every 20 entries. Its PostgreSQL is gone, which reads by API key do
not need.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import ask

pytestmark = pytest.mark.slow

FIXTURE = Path(__file__).parent / "fixtures" / "guardian-0.1.tar.xz"
API_KEY = "cfg_1PRja39gdXtaUbkXpDbcT6N3HzFy7a2Fe7MS"


def check_content(node: Any) -> None:
    for number in range(40):
        path = f"/api/v1/read/k{number % 10}%2F{number}"
        answer = ask(node.url, "GET", path, X_API_Key=API_KEY)
        assert (answer.status, answer.json["content"]) == (200, {"count": number}), answer.raw


def test_a_node_of_release_0_1_goes_on_moves_and_grows(make_cluster: Any, until: Any) -> None:
    cluster = make_cluster(size=1)
    (node,) = cluster.nodes
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(cluster.root, filter="data")
    cluster.start()  # on other ports than it had
    check_content(node)
    # once all members run this release their number may change
    until(
        "the cluster has this release's level",
        lambda: cluster.metric(node, "raft_feature_level") == 2,
    )
    joiner = cluster.newcomer("node2")
    cluster.start(joiner)
    cluster.until_members(node, "node1", "node2")
    cluster.until_level()
    check_content(joiner)
    place = cluster.furnish()
    cluster.store(place, "new", {"count": 1})
