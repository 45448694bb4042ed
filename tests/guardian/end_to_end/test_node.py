"""The node itself: health, cluster, metrics, its own description, and its life."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from guardian.http.endpoints import ENDPOINTS
from raftcore.errors import LockedError


def test_probes_say_that_it_is_well(node: Any) -> None:
    for path in ("/livez", "/ready", "/readyz", "/health", "/healthz", "/ready?for=local"):
        answer = node.must(200, "GET", f"!{path}", as_user=None)
        assert "degraded" not in answer.json or answer.json["degraded"] == []


def test_the_cluster_of_one_leads_itself(node: Any) -> None:
    view = node.must(200, "GET", "/cluster").json
    assert (view["node_id"], view["role"], view["leader_id"]) == ("node1", "leader", "node1")
    assert view["applied_index"] <= view["commit_index"]
    (member,) = view["members"]
    assert (member["id"], member["voter"], member["healthy"]) == ("node1", True, True)
    node.refused(401, "unauthenticated", "GET", "/cluster", as_user=None)


def test_metrics_tell_of_log_state_and_requests(node: Any) -> None:
    before = metrics(node)
    node.config({"rate": 1})
    after = metrics(node)
    assert after["guardian_raft_is_leader"] == 1
    for name in ("guardian_raft_commit_index", "guardian_revision", "guardian_raft_writes_total"):
        assert after[name] > before[name], name


def metrics(node: Any) -> dict[str, float]:
    text = node.must(200, "GET", "!/metrics", as_user=None).raw.decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def test_it_describes_every_route_it_has(node: Any) -> None:
    document = node.must(200, "GET", "!/openapi.json", as_user=None).json
    validate(document)
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert {(e.method, e.path) for e in ENDPOINTS} <= described
    assert b"/api/v1/projects" in node.must(200, "GET", "!/docs", as_user=None).raw
    welcome = node.must(200, "GET", "!/", as_user=None).json
    assert welcome["name"]


def test_every_answer_has_a_request_id(node: Any) -> None:
    answer = node.must(404, "GET", "!/nowhere", as_user=None, X_Request_ID="mine-1")
    assert answer.headers["X-Request-ID"] == answer.json["request_id"] == "mine-1"
    assert node.must(200, "GET", "!/livez", as_user=None).headers["X-Request-ID"]


def test_what_was_stored_is_there_after_a_restart(make_server: Any) -> None:
    server = make_server()
    server.start()
    path, api_key = server.config({"rate": 1})
    before = server.must(200, "GET", path)
    with pytest.raises(LockedError):
        type(server)(server.root, server.database_url).start()
    server.stop()
    server.start()
    after = server.must(200, "GET", path)
    assert after.json == before.json
    assert after.revision > before.revision
    read = server.must(200, "GET", f"/read/{api_key}/app%2Fweb", as_user=None)
    assert read.json["content"] == {"rate": 1}
    assert len(server.created) == 1, "the first administrator is created once"
    server.stop()
