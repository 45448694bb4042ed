"""Members come, go, move and come back, asked for by HTTP and by ``--join``."""

from __future__ import annotations

import contextlib
import shutil
import threading
from typing import Any

import pytest

from tests.cluster.conftest import PATIENCE_S, free_ports, option_of, set_option

pytestmark = pytest.mark.slow


class Writers:
    """Write through all nodes that are there, until told to stop."""

    def __init__(self, cluster: Any, place: Any, count: int = 2) -> None:
        self.cluster = cluster
        self.place = place
        self.acknowledged: dict[str, int] = {}
        self.failures: list[bytes] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(i,)) for i in range(count)]

    def _write(self, number: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            nodes = [node for node in self.cluster.nodes if self.cluster.answers(node)]
            node = nodes[turn % len(nodes)]
            key, count = f"w{number}/{turn}", turn
            body = {"key": key, "schema_id": self.place.schema, "content": {"count": count}}
            with contextlib.suppress(OSError):
                answer = self.cluster.ask(node, "POST", self.place.path(), body)
                if answer.status == 201:
                    self.acknowledged[key] = count
                elif answer.status not in (503, 504):
                    self.failures.append(answer.raw)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def until_more(self, until: Any, count: int = 10) -> None:
        """Writes go on: that many more are acknowledged."""
        enough = len(self.acknowledged) + count
        until(f"{enough} writes are acknowledged", lambda: len(self.acknowledged) >= enough)

    def check(self) -> None:
        """Every acknowledged write is there, and every node has the same."""
        assert not self.failures, self.failures[:3]
        running = [node for node in self.cluster.nodes if node.running]
        self.cluster.until_level(*running)
        seen = [self.cluster.everything(self.place, node) for node in running]
        assert all(other == seen[0] for other in seen)
        there = {item["key"]: item["content"]["count"] for item in seen[0][0]}
        lost = {key for key, count in self.acknowledged.items() if there.get(key) != count}
        assert not lost


@pytest.fixture
def one(make_cluster: Any) -> Any:
    """A cluster of one, up."""
    cluster = make_cluster(size=1)
    cluster.start()
    return cluster


@pytest.fixture
def three(make_cluster: Any) -> Any:
    """A cluster of three of the test's own, up."""
    cluster = make_cluster()
    cluster.start()
    return cluster


def names(*nodes: Any) -> list[str]:
    return [node.name for node in nodes]


def wipe(cluster: Any, node: Any) -> None:
    shutil.rmtree(cluster.data_dir(node))


# -- coming -------------------------------------------------------------------------------------


def test_one_node_grows_to_three_under_load_and_loses_nothing(one: Any, until: Any) -> None:
    (first,) = one.nodes
    place = one.furnish()
    with Writers(one, place) as writers:
        writers.until_more(until)
        second = one.newcomer("node2")
        one.start(second)
        one.until_members(first, "node1", "node2")
        writers.until_more(until)
        third = one.newcomer("node3", via=second)  # of a member that need not lead
        one.start(third)
        view = one.until_members(first, "node1", "node2", "node3")
        writers.until_more(until)
    writers.check()
    assert {m["id"]: m["http_address"] for m in view["members"]} == {
        node.name: option_of(node, "--http") for node in one.nodes
    }
    # three can do without any of them
    one.kill(first)
    one.leader(after_term=view["term"])
    one.store(place, "after", {"count": 1})
    # and a member's own command starts it again, --join and all
    one.kill(second)
    one.start(first, second)
    one.until_level()


def test_a_node_may_join_to_learn_only_and_be_promoted_later(one: Any, until: Any) -> None:
    (first,) = one.nodes
    learner = one.newcomer("node2", "--join-as", "learner")
    one.start(learner)
    one.until_members(first, "node1", learners=("node2",))
    until("it knows", lambda: (one.view(learner) or {}).get("role") == "learner")
    place = one.furnish()
    one.store(place, "a", {"count": 1})
    assert one.ask(learner, "GET", place.path("a")).json["content"] == {"count": 1}

    answer = one.change_members(learner, ["node1", "node2"])  # by way of the leader
    assert (answer.status, answer.json["caught_up"]) == (200, True), answer.raw
    one.until_members(learner, "node1", "node2")
    # its vote counts: without it nothing commits
    one.kill(learner)
    body = {"content": {"count": 2}, "expected_version": 1}
    assert one.ask(first, "PUT", place.path("a"), body).status in (503, 504)


def test_where_none_are_admitted_an_administrator_lets_the_joiner_in(
    make_cluster: Any, until: Any
) -> None:
    cluster = make_cluster(GUARDIAN_ADMIT="none")
    cluster.start()
    leader = cluster.leader()
    joiner = cluster.newcomer("node4", "--join-as", "learner", via=cluster.others(leader)[0])
    joiner.start()
    (seen,) = until("it asks", lambda: (cluster.view(leader) or {}).get("joiners"))
    assert seen == {
        "id": "node4",
        "raft_address": option_of(joiner, "--raft"),
        "http_address": option_of(joiner, "--http"),
        "wants_vote": False,
    }
    # it answers meanwhile, as nobody's member
    status = until("it answers", lambda: cluster.ask(joiner, "GET", "/ready").status)
    assert status == 503
    assert cluster.ask(joiner, "GET", "/livez").status == 200
    view = until("it shows its view", lambda: cluster.view(joiner))
    assert (view["role"], view["members"], view["leader_id"]) == ("outside", [], None)

    cluster.until_changed(leader, ["node1", "node2", "node3"], ["node4"])
    cluster.until_ready(joiner)
    cluster.until_members(joiner, "node1", "node2", "node3", learners=("node4",))
    assert cluster.view(leader)["joiners"] == []


# -- going --------------------------------------------------------------------------------------


def test_a_member_removed_by_way_of_a_follower_ends_and_says_so(three: Any, until: Any) -> None:
    leader = three.leader()
    removed, stays = three.others(leader)
    place = three.furnish()
    with Writers(three, place) as writers:
        writers.until_more(until)
        answer = three.change_members(stays, names(leader, stays))
        assert answer.status == 200, answer.raw
        assert [m["id"] for m in answer.json["cluster"]["members"]] == sorted(names(leader, stays))
        assert three.wait_exit(removed) == 78
        assert "removed: " in removed.last_log_line()
        writers.until_more(until)
    writers.check()
    # its directory is of no more use, with or without --join
    for more in ([], ["--join", option_of(leader, "--raft")]):
        removed.arguments += more
        assert three.run(removed) == 78
        assert "removed: " in removed.last_log_line()


def test_a_member_removed_while_it_was_down_is_told_when_it_comes_back(three: Any) -> None:
    leader = three.leader()
    removed, stays = three.others(leader)
    three.kill(removed)
    three.until_changed(stays, names(leader, stays))
    assert three.run(removed) == 78
    assert "removed: " in removed.last_log_line()
    assert set(three.members(stays)) == set(names(leader, stays))


@pytest.mark.parametrize("asked", ["the leader", "a follower"])
def test_a_leader_that_is_removed_hands_over_and_ends(three: Any, until: Any, asked: str) -> None:
    leader = three.leader()
    rest = three.others(leader)
    term = three.view(leader)["term"]
    place = three.furnish()
    with Writers(three, place) as writers:
        writers.until_more(until)
        node = leader if asked == "the leader" else rest[0]
        answer = three.change_members(node, names(*rest))
        assert answer.status == 200, answer.raw
        assert three.wait_exit(leader) == 78
        assert "removed: " in leader.last_log_line()
        writers.until_more(until)
    assert three.leader(after_term=term) in rest
    writers.check()


# -- coming back --------------------------------------------------------------------------------


def test_a_wiped_member_comes_back_under_its_name_once_it_was_removed(three: Any) -> None:
    leader = three.leader()
    wiped, other = three.others(leader)
    place = three.furnish()
    three.store(place, "a", {"count": 1})
    three.kill(wiped)
    wipe(three, wiped)
    assert three.run(wiped) == 78  # the founders' list: it is no founder any more
    assert "already_bootstrapped" in wiped.last_log_line()
    three.nodes.remove(wiped)
    again = three.newcomer(wiped.name, via=leader)
    assert three.run(again) == 78  # to join does not help as long as its old self is a member
    assert "already_bootstrapped" in again.last_log_line()
    assert "remove it first" in again.last_log_line()

    three.until_changed(other, names(leader, other))
    three.start(again)
    three.until_members(again, "node1", "node2", "node3")
    three.until_level()
    answer = three.ask(again, "GET", place.path("a"))
    assert (answer.status, answer.json["content"]) == (200, {"count": 1})
    # and it counts: with it alone the leader, or itself, goes on
    three.kill(other)
    three.store(place, "b", {"count": 2})


def test_a_node_that_was_moved_tells_the_others_where_it_is(three: Any, until: Any) -> None:
    moved = three.leader()
    others = three.others(moved)
    place = three.furnish()
    moved.stop()
    http, raft = (f"127.0.0.1:{port}" for port in free_ports(2))
    set_option(moved, "--http", http)
    set_option(moved, "--raft", raft)
    moved.url = f"http://{http}"
    three.start(moved)
    for node in three.nodes:
        until(
            f"{node.name} knows",
            lambda node=node: (
                three.members(node)[moved.name]["http_address"] == http
                and three.members(node)[moved.name]["raft_address"] == raft
            ),
        )
    three.until_level()

    # where it leads, clients are sent to its new address
    body = {"target": moved.name}
    until(
        "it leads",
        lambda: (
            three.ask(others[0], "POST", "/api/v1/cluster/transfer", body).status == 200
            or three.leader() is moved
        ),
    )
    body = {"key": "a", "schema_id": place.schema, "content": {"count": 1}}
    until(
        "clients are redirected",
        lambda: (
            three.ask(others[0], "POST", f"{place.path()}?redirect=true", body)
            .headers.get("Location", "")
            .startswith(moved.url)
        ),
    )
    # the others find it after a restart, too, whatever the founders' list says
    three.kill(*three.nodes)
    three.start()
    three.until_level()


# -- at the same time ---------------------------------------------------------------------------


def test_of_changes_thought_out_on_one_version_one_wins(three: Any) -> None:
    version = three.view(three.nodes[0])["members_version"]
    answers: dict[str, Any] = {}
    start = threading.Barrier(3)

    def demote(node: Any) -> None:
        start.wait()
        answers[node.name] = three.change_members(
            node,
            names(*three.others(node)),
            [node.name],
            version=version,
            timeout_s=PATIENCE_S,
        )

    threads = [threading.Thread(target=demote, args=(node,)) for node in three.nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # a leader that loses its own vote hands over, so its answer may come from its successor
    won = [name for name, answer in answers.items() if answer.status == 200]
    assert len(won) == 1, {name: answer.raw for name, answer in answers.items()}
    for name, answer in answers.items():
        if name != won[0]:
            assert answer.status in (409, 503), answer.raw
    voters = sorted(name for name in answers if name != won[0])
    for node in three.nodes:
        three.until_members(node, *voters, learners=(won[0],))

    late = three.change_members(three.nodes[0], ["node1", "node2", "node3"], version=version)
    assert (late.status, late.code) == (409, "version_conflict"), late.raw
    assert late.json["current_version"] == three.view(three.nodes[0])["members_version"]


def test_who_is_no_member_and_did_not_ask_can_not_be_added(three: Any) -> None:
    answer = three.change_members(three.nodes[0], ["node1", "node2", "node3", "node9"])
    assert (answer.status, answer.code) == (422, "invalid_members")
    assert answer.json["errors"][0]["pointer"] == "/members/3/id"
