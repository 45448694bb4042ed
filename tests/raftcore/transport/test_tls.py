"""Mutual TLS: only certificates of the cluster's CA that carry the right node id get through."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.messages import Heartbeat
from raftcore.core.types import Configuration, Member
from raftcore.errors import ExitCode, PlainTransportError, TlsError
from raftcore.formation import Founder, form_cluster
from raftcore.joining import find_cluster, join_cluster
from raftcore.startup import open_member
from raftcore.storage.base import Identity
from raftcore.storage.directory import DataDirectory
from raftcore.transport.framing import FrameKind, encode_frame
from raftcore.transport.handshake import RefusalCode, encode_introduction, introduce
from raftcore.transport.tcp import TcpTransport
from raftcore.transport.tls import (
    TlsContexts,
    TlsOptions,
    certificate_names,
    check_own_certificate,
)

Eventually = Callable[[Callable[[], object]], Awaitable[None]]


def _sibling(name: str) -> Any:
    """A helper beside this file (tests are no package)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


Ca = _sibling("certificates").Ca


@pytest.fixture
def ca(tmp_path: Path) -> Any:
    return Ca(tmp_path)


def other_ca(tmp_path: Path) -> Any:
    folder = tmp_path / "other"
    folder.mkdir()
    return Ca(folder, "other")


def replace_file(path: Any, content: bytes) -> None:
    Path(path).write_bytes(content)


async def test_members_with_certificates_talk(
    make_cluster: Any, ca: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))
    b = await cluster.start("b", tls=ca.issue("b"))
    await eventually(lambda: a.connected() == {"b"} and b.connected() == {"a"})
    sent = [Heartbeat("a", 1, 0, number) for number in range(500)]
    for message in sent:
        a.send("b", message)
    await eventually(lambda: cluster.receivers["b"].messages == sent)

    async def echo(sender: str, payload: bytes) -> bytes:
        return sender.encode() + payload

    cluster.receivers["a"].answer = echo
    assert await b.request("a", bytes(1 << 20), 20) == b"b" + bytes(1 << 20)
    secured = b._inbound["a"]._transport.get_extra_info("ssl_object")
    assert secured.version() == "TLSv1.3"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ca, other: other.issue("b", trust=ca),
        lambda ca, other: ca.issue("b", expired=True),
    ],
    ids=["of another CA", "expired"],
)
async def test_a_certificate_that_the_ca_does_not_vouch_for_gets_nowhere(
    make_cluster: Any, ca: Any, tmp_path: Path, eventually: Eventually, wrong: Any
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))
    b = await cluster.start("b", tls=wrong(ca, other_ca(tmp_path)))
    # Both dial, and both ends notice.
    await eventually(lambda: a.stats.rejected[RefusalCode.CERTIFICATE] >= 1)
    await eventually(lambda: a.stats.tls_failures >= 2 and b.stats.connect_failures >= 1)
    assert a.connected() == b.connected() == a.guests() == frozenset()
    b.send("a", Heartbeat("b", 99, 0, 0))
    assert cluster.receivers["a"].messages == []
    assert len(a._strangers) <= 1  # nothing of the failed ones stays behind


async def test_the_certificate_of_another_node_is_not_taken_for_this_one(
    make_cluster: Any, ca: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))
    b = await cluster.start("b", tls=ca.issue("c"))
    await eventually(lambda: a.stats.refused[RefusalCode.CERTIFICATE])
    await eventually(lambda: b.stats.rejected[RefusalCode.CERTIFICATE])
    # The dialler looks before it introduces itself.
    await eventually(lambda: a.stats.rejected[RefusalCode.CERTIFICATE])
    assert a.connected() == b.connected() == frozenset()
    assert cluster.receivers["a"].messages == []


@pytest.mark.parametrize(
    ("names", "welcome"),
    [
        ({"dns": ()}, True),
        ({"dns": ("host.example", "b")}, True),
        ({"dns": (), "uri": ("b",)}, True),
        ({"dns": ("host.example",)}, False),
    ],
    ids=["common name", "one of several", "uri", "common name beside other names"],
)
async def test_where_in_the_certificate_the_node_id_may_be(
    make_cluster: Any, ca: Any, eventually: Eventually, names: dict[str, Any], welcome: bool
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))
    await cluster.start("b", tls=ca.issue("b", **names))
    if welcome:
        await eventually(lambda: a.connected() == {"b"})
    else:
        await eventually(lambda: a.stats.rejected[RefusalCode.CERTIFICATE] >= 2)
        assert a.connected() == frozenset()


def test_a_certificate_without_any_name_is_for_nobody() -> None:
    assert certificate_names({}) == frozenset()
    assert certificate_names({"subjectAltName": (("IP Address", "127.0.0.1"),)}) == frozenset()


@pytest.mark.parametrize(
    ("issue", "said"),
    [
        (lambda ca, other: ca.issue("b"), "is for b, and this node is a"),
        (lambda ca, other: ca.issue("a", dns=("b", "c")), "is for b, c, and"),
        (lambda ca, other: ca.issue("a", trust=other), "refuse .*CERTIFICATE_VERIFY_FAILED"),
        (lambda ca, other: ca.issue("a", expired=True), "refuse .*CERTIFICATE_VERIFY_FAILED"),
    ],
    ids=["other common name", "other names", "of another CA", "expired"],
)
def test_a_certificate_that_peers_would_refuse_is_found_at_home(
    ca: Any, tmp_path: Path, issue: Callable[[Any, Any], TlsOptions], said: str
) -> None:
    with pytest.raises(TlsError, match=said):
        check_own_certificate(issue(ca, other_ca(tmp_path)), "a")


@pytest.mark.parametrize(("dns", "uri"), [(None, ()), ((), ()), (("x", "a"), ()), (("x",), ("a",))])
def test_a_certificate_that_peers_would_take_is_fine_at_home(
    ca: Any, dns: tuple[str, ...] | None, uri: tuple[str, ...]
) -> None:
    check_own_certificate(ca.issue("a", dns=dns, uri=uri), "a")


async def test_a_member_is_not_opened_with_the_certificate_of_another(
    ca: Any, tmp_path: Path
) -> None:
    directory = DataDirectory.open(tmp_path / "a", "a", allow_unsupported_fs=True)
    founders = [Founder("a", "127.0.0.1:9")]
    with pytest.raises(TlsError, match="this node is a") as refused:
        await open_member(directory, founders=founders, listen=("127.0.0.1", 0), tls=ca.issue("b"))
    assert refused.value.exit_code is ExitCode.CONFIG
    assert directory.identity is None, "nothing was made"
    directory.close()


async def test_a_failed_handshake_says_why_even_if_the_error_does_not(
    make_cluster: Any, ca: Any, dial: Any, eventually: Eventually,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))

    async def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(a._server._context, "loop", _Failing(a._server._context.loop, fail))
    peer = await dial(a.port)
    await eventually(lambda: a.stats.tls_failures == 1)
    await peer.close()
    (line,) = [r.getMessage() for r in caplog.records if "TLS handshake" in r.getMessage()]
    assert line.endswith("failed: ConnectionResetError")


class _Failing:
    """A loop whose TLS handshakes fail."""

    def __init__(self, loop: Any, fail: Callable[..., Awaitable[None]]) -> None:
        self._loop = loop
        self.connect_accepted_socket = fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_plain_and_tls_do_not_mix(make_cluster: Any, ca: Any, eventually: Eventually) -> None:
    cluster = make_cluster("a", "b", connect_timeout_s=0.5, hello_timeout_s=0.5)
    a = await cluster.start("a", tls=ca.issue("a"))
    b = await cluster.start("b")
    await eventually(lambda: a.stats.tls_failures >= 2)  # its server and its client
    await eventually(lambda: b.stats.refused[RefusalCode.BAD_HELLO])
    assert a.connected() == b.connected() == frozenset()
    await eventually(lambda: b.stats.connect_failures >= 1)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), b""],
    ids=["http", "broken hello", "silence"],
)
async def test_garbage_instead_of_a_tls_handshake_is_hung_up_on(
    make_cluster: Any, ca: Any, dial: Any, eventually: Eventually, garbage: bytes
) -> None:
    cluster = make_cluster("a", "b", hello_timeout_s=0.2)
    a = await cluster.start("a", tls=ca.issue("a"))
    peer = await dial(a.port)
    peer.say(garbage)
    await peer.hear_all()
    await eventually(lambda: a.stats.tls_failures == 1)
    await eventually(lambda: not a._strangers)
    assert cluster.receivers["a"].messages == []


async def test_tls_handshakes_are_bounded_in_number(
    make_cluster: Any, ca: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_handshakes=2)
    a = await cluster.start("a", tls=ca.issue("a"))
    waiting = [await dial(a.port) for _ in range(2)]
    await eventually(lambda: len(a._strangers) == 2)
    await dial(a.port)  # takes the place of the oldest
    assert await waiting[0].hear_all() == b""
    assert a.stats.refused == {RefusalCode.TOO_MANY: 1}
    assert len(a._strangers) == 2
    await waiting[1].close()
    await eventually(lambda: len(a._strangers) == 1)
    b = await cluster.start("b", tls=ca.issue("b"))
    await eventually(lambda: b.connected() == {"a"})


async def test_probes_that_end_with_a_reset_leave_no_place_taken(
    make_cluster: Any, ca: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_handshakes=4)
    a = await cluster.start("a", tls=ca.issue("a"))
    for _ in range(8):
        # Synchronously: the loop accepts a socket that has been reset by then.
        with socket.create_connection(("127.0.0.1", a.port)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.sleep(0)
    await eventually(lambda: a.stats.tls_failures == 8)
    await eventually(lambda: not a._strangers)
    b = await cluster.start("b", tls=ca.issue("b"))
    await eventually(lambda: b.connected() == {"a"})


async def test_a_tls_handshake_that_ends_in_an_unforeseen_way_leaves_no_place_taken(
    make_cluster: Any, ca: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))

    class Broken:
        @property
        def server(self) -> ssl.SSLContext:
            raise RuntimeError("nobody thought of this")

    working, a._context.tls = a._context.tls, Broken()
    stranger = await dial(a.port)
    assert await stranger.hear_all() == b""
    await eventually(lambda: a.stats.tls_failures == 1 and not a._strangers)
    a._context.tls = working


async def test_a_peer_that_speaks_at_once_after_the_handshake_is_heard(
    make_cluster: Any, ca: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a"))
    client = TlsContexts(ca.issue("b")).client
    hello = introduce(Identity("c0ffee", "b", b"b".ljust(16, b"-")))
    for count in range(1, 6):
        reader, writer = await asyncio.open_connection("127.0.0.1", a.port, ssl=client)
        writer.write(encode_frame(FrameKind.HELLO, encode_introduction(hello)))
        assert await reader.read(1)
        writer.close()
        assert not a.stats.refused, count


# -- certificates that change -----------------------------------------------------------------


async def test_new_connections_use_a_renewed_certificate_and_old_ones_stand(
    make_cluster: Any, ca: Any, tmp_path: Path, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", tls=ca.issue("a", reload_interval_s=0.02))
    b = await cluster.start("b", tls=ca.issue("b"))
    await eventually(lambda: a.connected() == {"b"} and b.connected() == {"a"})
    ca.issue("a", dns=("z",))  # as if it were another node's now
    await eventually(lambda: a.stats.tls_reloads >= 1)
    assert b.connected() == {"a"}
    b.send("a", Heartbeat("b", 1, 0, 0))
    await eventually(lambda: cluster.receivers["a"].messages)
    b._links["a"]._connection.abort()
    await eventually(lambda: b.stats.rejected[RefusalCode.CERTIFICATE] >= 1)
    ca.issue("a")
    await eventually(lambda: b.connected() == {"a"})


async def test_another_ca_is_trusted_after_a_reload_and_the_old_one_no_more(
    make_cluster: Any, ca: Any, tmp_path: Path, eventually: Eventually
) -> None:
    other = other_ca(tmp_path)
    cluster = make_cluster("a", "b")
    options = ca.issue("a")
    a = await cluster.start("a", tls=options)
    b = await cluster.start("b", tls=other.issue("b", trust=ca))
    await eventually(lambda: a.stats.tls_failures >= 2)
    trusted, new = ca.file.read_bytes(), other.file.read_bytes()
    replace_file(options.ca, new + trusted)
    await a.reload_certificates()
    await b.reload_certificates()
    await eventually(lambda: a.connected() == {"b"} and b.connected() == {"a"})
    replace_file(options.ca, trusted)
    await a.reload_certificates()
    assert b.connected() == {"a"}
    b._links["a"]._connection.abort()
    before = a.stats.tls_failures
    await eventually(lambda: a.stats.tls_failures > before)
    assert b.connected() == frozenset()


async def test_a_broken_renewal_keeps_the_old_certificate_and_is_tried_once(
    make_cluster: Any, ca: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    options = ca.issue("a", reload_interval_s=0.02)
    a = await cluster.start("a", tls=options)
    replace_file(options.certificate, b"half a certifi")
    await eventually(lambda: a.stats.tls_reload_failures == 1)
    with pytest.raises(TlsError):
        await a.reload_certificates()
    b = await cluster.start("b", tls=ca.issue("b"))
    await eventually(lambda: b.connected() == {"a"})
    assert a.stats.tls_reloads == 0
    ca.issue("a")
    await eventually(lambda: a.stats.tls_reloads == 1)
    assert a.stats.tls_reload_failures == 1


async def test_without_tls_there_is_nothing_to_reload(make_cluster: Any) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    with pytest.raises(TlsError, match="no TLS"):
        await a.reload_certificates()


def test_a_file_that_vanished_is_an_error_and_nothing_changes(ca: Any) -> None:
    options = ca.issue("a")
    contexts = TlsContexts(options)
    before = contexts.server
    Path(options.key).unlink()
    with pytest.raises(TlsError, match="looking for"):
        contexts.reload_if_changed()
    assert contexts.server is before


@pytest.mark.parametrize("missing", ["certificate", "key", "ca"])
def test_unusable_files_are_a_typed_error_with_an_exit_code(ca: Any, missing: str) -> None:
    options = ca.issue("a")
    Path(getattr(options, missing)).write_text("nonsense")
    with pytest.raises(TlsError, match="can not use") as caught:
        TlsContexts(options)
    assert (caught.value.code, caught.value.exit_code) == ("E_TLS", ExitCode.CONFIG)


def test_the_key_of_another_certificate_is_refused(ca: Any) -> None:
    a, b = ca.issue("a"), ca.issue("b")
    with pytest.raises(TlsError):
        TlsContexts(TlsOptions(a.certificate, b.key, a.ca))


def test_contexts_want_tls_1_3_and_certificates_of_both_sides(ca: Any) -> None:
    contexts = TlsContexts(ca.issue("a"))
    for context in (contexts.server, contexts.client):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(ValueError, match="reload_interval_s"):
        ca.issue("a", reload_interval_s=0)


# -- without TLS ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("node.example", False),
        ("localhost.example", False),
    ],
)
def test_without_tls_only_this_machine_may_connect(host: str, allowed: bool) -> None:
    identity = Identity("c", "a", bytes(16))
    configuration = Configuration("c", (Member("a", "a:1", bytes(16)),))
    TcpTransport(identity, (host, 1), configuration, allow_plain=True)
    if allowed:
        TcpTransport(identity, (host, 1), configuration)
        return
    with pytest.raises(PlainTransportError) as caught:
        TcpTransport(identity, (host, 1), configuration)
    assert (caught.value.code, caught.value.exit_code) == ("E_PLAIN_TRANSPORT", 78)


# -- forming and joining ----------------------------------------------------------------------


def founders_of(cluster: Any) -> list[Founder]:
    return [Founder(m.node_id, m.address) for m in cluster.configuration.members]


# asyncio may leave the socket of a cancelled TLS handshake to the collector: these tests stop
# founders in the middle, and the warning says nothing about them.
cut_off = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@cut_off
async def test_a_cluster_is_formed_over_tls(make_cluster: Any, ca: Any) -> None:
    cluster = make_cluster("a", "b", "c")
    tasks = {
        asyncio.create_task(
            form_cluster(
                node_id=m.node_id, incarnation=m.incarnation, founders=founders_of(cluster),
                listen=("127.0.0.1", cluster.ports[m.node_id]), tls=ca.issue(m.node_id),
                rng=random.Random(m.node_id),
            )
        )
        for m in cluster.configuration.members
    }  # fmt: skip
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    formed = done.pop().result()
    assert formed.voters == ("a", "b", "c")
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


@cut_off
async def test_a_founder_with_the_certificate_of_another_is_not_believed(
    make_cluster: Any, ca: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftcore.formation._PROGRESS_INTERVAL_S", 0.02)
    cluster = make_cluster("a", "b")
    told: asyncio.Queue[Any] = asyncio.Queue()
    tasks = [
        asyncio.create_task(
            form_cluster(
                node_id=m.node_id, incarnation=m.incarnation, founders=founders_of(cluster),
                listen=("127.0.0.1", cluster.ports[m.node_id]),
                tls=ca.issue("a" if m.node_id == "a" else "z"),
                on_progress=told.put_nowait if m.node_id == "a" else None,
            )
        )
        for m in cluster.configuration.members
    ]  # fmt: skip
    while "certificate" not in dict((await told.get()).problems).get("b", ""):
        assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@cut_off
async def test_plain_formation_needs_a_loopback_address(make_cluster: Any) -> None:
    cluster = make_cluster("a", "b")
    with pytest.raises(PlainTransportError):
        await form_cluster(
            node_id="a", incarnation=bytes(16), founders=founders_of(cluster),
            listen=("0.0.0.0", 0),
        )  # fmt: skip


@cut_off
async def test_a_node_joins_over_tls(make_cluster: Any, ca: Any) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start("a", tls=ca.issue("a"))
    me = Member("d", "127.0.0.1:4", b"d" * 16)

    async def decide(joiner: Member) -> Configuration:
        assert joiner == me
        members = (*cluster.configuration.members, joiner)
        return Configuration("c0ffee", members)

    cluster.receivers["a"].decide = decide
    targets = [cluster.configuration.members[0].address]
    tls = ca.issue("d")
    assert await find_cluster(me, targets, tls=tls) == "c0ffee"
    configuration = await join_cluster(me, "c0ffee", targets, tls=tls)
    assert configuration.member("d") == me
