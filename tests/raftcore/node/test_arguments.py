"""What a node does not take is refused before anything happens, and the node goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from raftcore import InvalidArgumentError, InvalidChangeError, Lease, Member
from raftcore.transport.checks import MAX_ADDRESS_BYTES, MAX_ATTRIBUTES

D = Member("d", "d:1", b"d" * 16)


async def serves(node: Any) -> bool:
    """Whether that node still does its work, and its log holds no more than it should."""
    before = node.status().core.last_index
    proposed = await node.propose(b"x")
    return bool(proposed.index == before + 1 == await node.read_barrier())


@pytest.mark.parametrize(
    ("name", "arguments", "settings"),
    [
        ("propose", ["text"], {}),
        ("propose", [bytearray(b"x")], {}),
        ("propose", [memoryview(b"x")], {}),
        ("propose", [None], {}),
        ("propose", [b"x"], {"client_id": "text"}),
        ("propose", [b"x"], {"client_id": b"c" * 256}),
        ("propose", [b"x"], {"sequence": -1}),
        ("propose", [b"x"], {"sequence": 2**64}),
        ("propose", [b"x"], {"sequence": "1"}),
        ("propose", [b"x"], {"sequence": True}),
        ("propose", [b"x"], {"timeout_s": "soon"}),
        ("propose", [b"x"], {"timeout_s": None}),
        ("propose", [b"x"], {"timeout_s": float("nan")}),
        ("read_barrier", [], {"timeout_s": None}),
        ("wait_applied", ["x"], {}),
        ("wait_applied", [1.5], {}),
        ("wait_applied", [2**70], {"timeout_s": "soon"}),
        ("transfer_leadership", [], {"timeout_s": "soon"}),
        ("request", ["b", "text"], {"timeout_s": 1}),
        ("request", ["b", b"x"], {"timeout_s": "soon"}),
        ("request", ["a", b"x"], {"timeout_s": 1}),
        ("change_members", [[D]], {"version": "1"}),
        ("change_members", [[D]], {"version": 1, "timeout_s": "soon"}),
    ],
)
async def test_an_argument_that_makes_no_sense_is_refused_and_the_node_goes_on(
    one: Any, name: str, arguments: Sequence[Any], settings: dict[str, Any]
) -> None:
    node = await one.lone()
    with pytest.raises(InvalidArgumentError) as refused:
        await getattr(node, name)(*arguments, **settings)
    assert refused.value.code == "invalid_argument"
    assert await serves(node)


async def test_the_longest_client_id_and_the_highest_sequence_are_taken(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"x", client_id=b"c" * 255, sequence=2**64 - 1)
    assert await serves(node)


async def test_a_lease_read_may_be_wished_for_by_anything_that_is_true(one: Any) -> None:
    node = await one.lone()
    assert await node.read_barrier(lease=1)
    assert await node.read_barrier(lease="")


MANY = tuple((str(i), "") for i in range(MAX_ATTRIBUTES + 1))
LARGE = tuple((str(i), "x" * 4096) for i in range(MAX_ATTRIBUTES))


@pytest.mark.parametrize(
    "members",
    [
        None,
        5,
        "abc",
        ["a"],
        [None],
        *(
            [replace(D, **wrong)]
            for wrong in (
                {"node_id": ""},
                {"node_id": 5},
                {"node_id": "d d"},
                {"node_id": "d\n"},
                {"node_id": "d\x00"},
                {"node_id": "\udc00"},
                {"node_id": "d" * 256},
                {"address": 5},
                {"address": ""},
                {"address": "d"},
                {"address": "d:"},
                {"address": ":1"},
                {"address": "d:0"},
                {"address": "d:65536"},
                {"address": "d d:1"},
                {"address": "::1:80"},
                {"address": "d" * MAX_ADDRESS_BYTES + ":1"},
                {"incarnation": "text"},
                {"incarnation": b"short"},
                {"voter": 1},
                {"attributes": None},
                {"attributes": "ab"},
                {"attributes": (("k",),)},
                {"attributes": (("k", 5),)},
                {"attributes": (("k", "\udc00"),)},
                {"attributes": (("k", "x" * 4097),)},
                {"attributes": MANY},
            )
        ),
        [Member(f"d{i}", f"d{i}:1", bytes([i]) * 16, attributes=LARGE) for i in range(1, 4)],
    ],
)
async def test_members_that_can_not_be_are_refused_and_the_node_goes_on(
    one: Any, members: Any
) -> None:
    node = await one.lone()
    if isinstance(members, list):
        members = [one.member("a"), *members]
    with pytest.raises(InvalidChangeError):
        await node.change_members(members, version=node.configuration_version)
    assert node.configuration == one.configuration
    assert await serves(node)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add_voter", ["d"]),
        ("add_learner", [None]),
        ("add_voter", [replace(D, address="nowhere")]),
        ("add_learner", [replace(D, node_id="d d")]),
        ("replace_member", ["a", "d"]),
        ("replace_member", ["a", replace(D, address="d:x")]),
        ("update_address", ["a", 5]),
        ("update_address", ["a", "nowhere"]),
        ("remove", [5]),
        ("promote", [["a"]]),
        ("demote", [None]),
    ],
)
async def test_short_forms_refuse_the_same(one: Any, name: str, arguments: list[Any]) -> None:
    node = await one.lone()
    with pytest.raises(InvalidChangeError):
        await getattr(node, name)(*arguments)
    assert await serves(node)


@pytest.mark.parametrize(
    "lease",
    [
        "long",
        Lease(39, 0),  # heartbeats come every 20 ms
        Lease(0, 0),
        Lease(-5, 0),
        Lease(2**31 + 1, 0),
        Lease(300, -1),
        Lease(300, 1_000_000),
        Lease(300.5, 0),  # type: ignore[arg-type]
        Lease("300", 0),  # type: ignore[arg-type]
        Lease(True, 0),
        Lease(300, None),  # type: ignore[arg-type]
    ],
)
async def test_a_lease_that_can_not_be_kept_is_refused(one: Any, lease: Any) -> None:
    node = await one.lone()
    with pytest.raises(InvalidChangeError):
        await node.set_lease(lease)
    assert node.configuration.lease is None
    assert await serves(node)


async def test_the_shortest_lease_that_can_be_kept_is_taken(one: Any) -> None:
    node = await one.lone()
    configuration, _ = await node.set_lease(Lease(40, 100_000))
    assert configuration.lease == Lease(40, 100_000)
