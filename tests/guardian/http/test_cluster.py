"""The members and the leader over HTTP."""

from __future__ import annotations

from typing import Any

from guardian.domain.problems import Problem
from guardian.usecases.ports import WantedMember

WANTED = {"members": [{"id": "node1"}, {"id": "node2", "voter": False}], "expected_version": 1}


async def test_the_members_are_stated_under_the_version_that_was_seen(world: Any) -> None:
    answer = await world.ask("PUT", "/cluster/members", WANTED, as_user="root")
    assert (answer.status, answer.json["caught_up"]) == (200, True)
    assert answer.json["cluster"]["node_id"] == "node1"
    assert world.members.members == (WantedMember("node1", True), WantedMember("node2", False))
    stale = await world.ask("PUT", "/cluster/members", WANTED, as_user="root")
    assert (stale.status, stale.code, stale.json["current_version"]) == (409, "version_conflict", 2)


async def test_a_voter_that_did_not_catch_up_is_said_to_be_a_learner(world: Any) -> None:
    world.members.caught_up = False
    answer = await world.ask("PUT", "/cluster/members", WANTED, as_user="root")
    assert (answer.status, answer.json["caught_up"]) == (200, False)


async def test_leadership_is_handed_to_whom_one_names_or_to_the_best(world: Any) -> None:
    for body, leader in (({"target": "node3"}, "node3"), ({}, "node2")):
        answer = await world.ask("POST", "/cluster/transfer", body, as_user="root")
        assert (answer.status, world.members.leader) == (200, leader)


async def test_what_the_cluster_refuses_is_told_as_it_is(world: Any) -> None:
    for code, status in (
        ("change_in_progress", 409),
        ("invalid_members", 422),
        ("no_leader", 503),
        ("outcome_unknown", 504),
    ):
        world.members.trouble = Problem(code, retry_after_s=1.0)
        answer = await world.ask("PUT", "/cluster/members", WANTED, as_user="root")
        assert (answer.status, answer.code) == (status, code)
    world.members.trouble = Problem("transfer_failed", retry_after_s=1.0)
    answer = await world.ask("POST", "/cluster/transfer", {}, as_user="root")
    assert (answer.status, answer.code) == (409, "transfer_failed")


async def test_bodies_about_members_are_strict(world: Any) -> None:
    for body in (
        {},
        {"members": [], "expected_version": 1},
        {"members": [{"id": ""}], "expected_version": 1},
        {"members": [{"id": "a", "voter": "yes"}], "expected_version": 1},
        {"members": [{"id": "a"}], "expected_version": 0},
        {"members": [{"id": f"n{i}"} for i in range(65)], "expected_version": 1},
    ):
        answer = await world.ask("PUT", "/cluster/members", body, as_user="root")
        assert (answer.status, answer.code) == (422, "validation_failed")
    assert world.members.version == 1
