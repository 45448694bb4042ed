"""How a node becomes a member of a running cluster, on real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from raftcore import joining
from raftcore.core.types import Configuration, Member
from raftcore.errors import (
    AlreadyBootstrappedError,
    BootstrapError,
    ExitCode,
    IncarnationError,
    NotLeaderError,
    RefusedError,
    RemovedError,
)
from raftcore.joining import find_cluster, join_cluster
from raftcore.storage.base import Identity
from raftcore.transport.framing import FrameKind, encode_frame
from raftcore.transport.handshake import (
    HandshakeRefusedError,
    Introduction,
    encode_introduction,
    encode_refusal,
    removed_subject,
)
from raftcore.transport.options import TransportOptions
from raftcore.transport.tcp import TcpTransport

PATIENCE_S = 20.0
CLUSTER_ID = "c0ffee"
ME = Member("d", "127.0.0.1:9", b"d" * 16, voter=False, attributes=(("http", "h:1"),))

Decide = Callable[[Member], Awaitable[Configuration]]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test here runs on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Town:
    """Members that decide about joiners as the test says."""

    def __init__(self) -> None:
        self.transports: dict[str, TcpTransport] = {}
        self.servers: list[asyncio.Server] = []
        self.configuration = Configuration(CLUSTER_ID, ())
        self.asked: list[tuple[str, Member]] = []
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def member(self, node_id: str, decide: Decide | None = None, **options: Any) -> str:
        """Start a member; its address."""
        transport = TcpTransport(
            Identity(CLUSTER_ID, node_id, node_id.encode() * 16),
            ("127.0.0.1", 0),
            Configuration(CLUSTER_ID, ()),
            options=TransportOptions(backoff_min_s=1000, backoff_max_s=1000, **options),
        )
        await transport.start(Asked(self, node_id, decide or self.add))
        self.transports[node_id] = transport
        address = f"127.0.0.1:{transport.port}"
        self.put(Member(node_id, address, node_id.encode() * 16))
        return address

    def put(self, member: Member, **changes: Any) -> None:
        """Make it a member, and let everybody know."""
        members = [m for m in self.configuration.members if m.node_id != member.node_id]
        members.append(member)
        self.change(members=tuple(sorted(members, key=lambda m: m.node_id)), **changes)

    def change(self, **changes: Any) -> None:
        self.configuration = replace(self.configuration, **changes)
        for transport in self.transports.values():
            transport.configure(self.configuration, self.configuration.members)

    async def add(self, joiner: Member) -> Configuration:
        self.put(joiner)
        return self.configuration

    async def refuse(self, joiner: Member) -> Configuration:
        raise RefusedError("not today")

    async def only_a_leads(self, joiner: Member) -> Configuration:
        raise NotLeaderError("a")

    async def answer(self, answer: bytes) -> str:
        """Somebody who always says the same; the address."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1 << 16)
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def find(self, *targets: str, me: Member = ME) -> Awaitable[str]:
        return find_cluster(me, targets, on_progress=self.told.put_nowait, rng=random.Random(1))

    def join(
        self, *targets: str, me: Member = ME, cluster_id: str = CLUSTER_ID
    ) -> asyncio.Task[Configuration]:
        return asyncio.ensure_future(
            join_cluster(
                me, cluster_id, targets, on_progress=self.told.put_nowait, rng=random.Random(1)
            )
        )

    async def close(self) -> None:
        for transport in self.transports.values():
            await transport.close()
        for server in self.servers:
            server.close()
            await server.wait_closed()


class Asked:
    """A receiver that notes who asks."""

    def __init__(self, town: Town, node_id: str, decide: Decide) -> None:
        self._town = town
        self._node_id = node_id
        self._decide = decide

    def on_message(self, message: object) -> None:
        raise AssertionError("no message was expected")

    def on_peer_lost(self, peer: str) -> None: ...

    def on_removed(self, detail: str) -> None:
        raise AssertionError("nobody was removed")

    async def on_request(self, sender: str, payload: bytes) -> bytes:
        raise AssertionError("no request was expected")

    async def on_join(self, joiner: Member) -> Configuration:
        self._town.asked.append((self._node_id, joiner))
        return await self._decide(joiner)


@pytest.fixture
async def town(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr(joining, "_BACKOFF_MIN_S", 0.01)
    monkeypatch.setattr(joining, "_BACKOFF_MAX_S", 0.02)
    town = Town()
    async with asyncio.timeout(PATIENCE_S):
        yield town
    await town.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- the good ways ----------------------------------------------------------------------------


async def test_any_member_tells_which_cluster_it_is_and_nobody_is_asked_to_decide(
    town: Town,
) -> None:
    address = await town.member("a")
    assert await town.find(address) == CLUSTER_ID
    assert town.asked == []


async def test_a_joiner_becomes_a_member_as_what_it_wished_to_be(town: Town) -> None:
    address = await town.member("a")
    configuration = await town.join(address)
    assert configuration == town.configuration
    assert configuration.member("d") == ME
    assert town.asked == [("a", ME)]


async def test_whoever_is_a_member_already_is_told_so_and_nobody_decides_again(
    town: Town,
) -> None:
    address = await town.member("a", town.refuse)
    town.put(ME)
    assert (await town.join(address)).member("d") == ME
    assert await town.find(address) == CLUSTER_ID
    assert town.asked == []


async def test_a_follower_sends_the_joiner_to_the_leader(town: Town) -> None:
    await town.member("a")
    follower = await town.member("b", town.only_a_leads)
    configuration = await town.join(follower)
    assert configuration.member("d") == ME
    assert [node_id for node_id, _ in town.asked] == ["b", "a"]


async def test_a_wish_that_was_taken_is_asked_about_until_the_configuration_has_it(
    town: Town,
) -> None:
    async def later(joiner: Member) -> Configuration:
        if len(town.asked) == 3:
            town.put(joiner)
        return town.configuration

    address = await town.member("a", later)
    assert (await town.join(address)).member("d") == ME
    assert len(town.asked) == 3
    assert "no member yet" in await town.told.get()


async def test_members_that_were_not_named_are_asked_once_they_are_known(town: Town) -> None:
    async def taken(joiner: Member) -> Configuration:
        await town.member("b")  # a newcomer that leads from now on
        return town.configuration

    named = await town.member("a", taken)
    task = town.join(named)
    assert "no member yet" in await town.told.get()
    assert (await task).member("d") == ME
    assert ("b", ME) in town.asked


async def test_a_member_that_lags_behind_does_not_end_a_search_that_others_would_answer(
    town: Town,
) -> None:
    current = await town.member("a")
    lagging = await town.member("b")
    town.transports["b"].configure(
        replace(
            town.configuration,
            members=(*town.configuration.members, replace(ME, incarnation=b"w" * 16)),
        ),
        (),
    )
    for seed in range(8):  # whoever is asked first
        rng = random.Random(seed)
        assert await find_cluster(ME, (lagging, current), rng=rng) == CLUSTER_ID
    with pytest.raises(AlreadyBootstrappedError):
        await town.find(lagging)  # nobody says otherwise


async def test_a_refusal_for_good_ends_the_search_only_when_no_member_sees_a_way_still(
    town: Town,
) -> None:
    undecided = await town.member("a", town.refuse)
    final = HandshakeRefusedError("already_bootstrapped", "remove it first")
    lagging = await town.answer(encode_frame(FrameKind.REFUSE, encode_refusal(final)))
    task = town.join(undecided, lagging)
    told = await town.told.get()
    assert "not today" in told
    assert "remove it first" in told
    assert not task.done()
    town.put(ME)
    await task


async def test_what_the_leader_says_for_good_counts_although_a_follower_only_named_it(
    town: Town,
) -> None:
    async def decide(joiner: Member) -> Configuration:
        raise IncarnationError("remove it first")

    leader = await town.member("a", decide)
    follower = await town.member("b", town.only_a_leads)
    with pytest.raises(AlreadyBootstrappedError):
        await town.join(follower)
    with pytest.raises(AlreadyBootstrappedError):
        await town.join(leader, follower)


@pytest.mark.parametrize("cluster_id", ["", CLUSTER_ID])
@pytest.mark.parametrize(
    "subject", ["", removed_subject(CLUSTER_ID, b"z" * 16), ME.incarnation.hex() + "/"]
)
async def test_the_removal_of_somebody_else_is_not_taken_for_ours(
    town: Town, cluster_id: str, subject: str
) -> None:
    error = HandshakeRefusedError("removed", "somebody was removed", subject)
    confused = await town.answer(encode_frame(FrameKind.REFUSE, encode_refusal(error)))
    task: asyncio.Future[Any] = asyncio.ensure_future(
        town.join(confused) if cluster_id else town.find(confused)
    )
    assert "somebody was removed" in await town.told.get()
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_removal_from_another_cluster_is_not_taken_for_one_from_ours(town: Town) -> None:
    subject = removed_subject("another", ME.incarnation)
    error = HandshakeRefusedError("removed", "it was removed", subject)
    confused = await town.answer(encode_frame(FrameKind.REFUSE, encode_refusal(error)))
    task = town.join(confused)
    assert "it was removed" in await town.told.get()
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_target_that_always_names_another_leader_does_not_keep_us_from_the_rest(
    town: Town,
) -> None:
    asked: list[int] = []

    async def evil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        asked.append(1)
        elsewhere = f"127.0.1.{len(asked) % 250 + 1}:{port}"
        error = HandshakeRefusedError("not_leader", "", elsewhere)
        writer.write(encode_frame(FrameKind.REFUSE, encode_refusal(error)))
        writer.close()

    server = await asyncio.start_server(evil, "0.0.0.0", 0)
    town.servers.append(server)
    port = server.sockets[0].getsockname()[1]
    good = await town.member("a")

    class InOrder(random.Random):
        def shuffle(self, x: Any) -> None: ...

    assert await find_cluster(ME, (f"127.0.0.1:{port}", good), rng=InOrder(1)) == CLUSTER_ID
    assert len(asked) == 3


# -- what is in the way -----------------------------------------------------------------------


async def test_the_operator_is_told_who_waits_for_what(town: Town) -> None:
    address = await town.member("a", town.refuse)
    task = town.join(address, "127.0.0.1:1")
    told = await town.told.get()
    assert f"d (incarnation {ME.incarnation.hex()}) waits to join {CLUSTER_ID}" in told
    assert "refused: not today" in told
    assert "127.0.0.1:1: " in told
    assert not task.done()
    town.put(ME)  # the operator says yes
    assert (await task).member("d") == ME


async def test_a_leader_that_moves_in_circles_ends_the_round(town: Town) -> None:
    async def b_leads(joiner: Member) -> Configuration:
        raise NotLeaderError("b")

    a = await town.member("a", b_leads)
    await town.member("b", town.only_a_leads)
    task = town.join(a)
    assert "not_leader" in await town.told.get()
    assert not task.done()
    town.put(ME)
    await task


@pytest.mark.parametrize("cluster_id", ["", CLUSTER_ID])
async def test_a_node_id_that_another_incarnation_holds_has_to_be_removed_first(
    town: Town, cluster_id: str
) -> None:
    address = await town.member("a")
    town.put(replace(ME, incarnation=b"w" * 16))
    with pytest.raises(AlreadyBootstrappedError, match="remove it first") as caught:
        await (town.join(address) if cluster_id else town.find(address))
    assert caught.value.exit_code == ExitCode.CONFIG
    assert town.asked == []


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (IncarnationError("remove it first"), AlreadyBootstrappedError),
        (RemovedError("it was removed"), RemovedError),
    ],
)
async def test_what_the_leader_will_never_take_back_ends_the_search(
    town: Town, refusal: RefusedError, expected: type[Exception]
) -> None:
    async def decide(joiner: Member) -> Configuration:
        raise refusal

    address = await town.member("a", decide)
    with pytest.raises(expected, match=str(refusal)):
        await town.join(address)


@pytest.mark.parametrize("cluster_id", ["", CLUSTER_ID])
async def test_an_incarnation_that_was_removed_never_comes_back(
    town: Town, cluster_id: str
) -> None:
    address = await town.member("a")
    town.change(retired=(ME.incarnation,))
    with pytest.raises(RemovedError, match="was removed") as caught:
        await (town.join(address) if cluster_id else town.find(address))
    assert (caught.value.code, caught.value.exit_code) == ("removed", ExitCode.CONFIG)
    assert town.asked == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Introduction("z", bytes(16), forming=True), "no cluster yet"),
        (Introduction("z", bytes(16), "another"), "belongs to cluster another"),
        (Introduction("z", bytes(16), CLUSTER_ID, configuration=b"{}"), "not a configuration"),
        (HandshakeRefusedError("of_the_future", "who knows"), "of_the_future: who knows"),
        (HandshakeRefusedError("not_leader", "gone", "nonsense"), "not_leader: gone"),
        (encode_frame(FrameKind.MESSAGE, b""), "MESSAGE frame"),
        (encode_frame(FrameKind.REFUSE, b"\x90"), "not a refusal"),
        (b"", "closed during the handshake"),
        (b"SSH-2.0-OpenSSH\r\n", "a frame of"),
    ],
)
async def test_whoever_answers_with_nonsense_is_a_problem_to_report_not_an_end(
    town: Town, answer: Any, problem: str
) -> None:
    if isinstance(answer, Introduction):
        answer = encode_frame(FrameKind.WELCOME, encode_introduction(answer))
    elif isinstance(answer, HandshakeRefusedError):
        answer = encode_frame(FrameKind.REFUSE, encode_refusal(answer))
    task = town.join(await town.answer(answer))
    assert problem in await town.told.get()
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_release_0_1_knows_no_joining(town: Town) -> None:
    old = await town.member("a", max_protocol_version=1)
    task = asyncio.ensure_future(town.find(old))
    assert "cluster_id: " in await town.told.get()
    new = await town.member("b")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await town.find(old, new) == CLUSTER_ID


async def test_a_host_that_only_the_dialling_finds_unusable_is_a_problem_to_report(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftcore.transport.exchange.parse_address", lambda _: ("a..b", 7000))
    task = asyncio.ensure_future(town.find("h:1"))
    assert "can not be dialled" in await town.told.get()
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_its_own_address_is_not_asked(town: Town) -> None:
    address = await town.member("a")
    task = asyncio.ensure_future(town.find(address, me=replace(ME, address=address)))
    assert "nobody to ask" in await town.told.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("targets", "me"),
    [
        ((), ME),
        (("nonsense",), ME),
        (("a..b:1",), ME),
        (("h:1",), replace(ME, address="nonsense")),
    ],
)
async def test_unusable_addresses_are_refused(targets: tuple[str, ...], me: Member) -> None:
    with pytest.raises(BootstrapError):
        await find_cluster(me, targets)


async def test_what_is_learnt_is_bounded(town: Town) -> None:
    search = joining._Search(ME, "", ("h:1",), None, None, None)
    for port in range(1, 100):
        assert search._learn(f"h:{port}")
    assert search._learn("h:99")
    assert len(search._learnt) == len(set(search._learnt)) == 16
