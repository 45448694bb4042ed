"""What HTTP clients never send, over raw sockets; and what is relied upon in aiohttp's insides."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import http_parser

from guardian.http import server
from guardian.http.server import require_c_parser

LOGIN = b'{"email":"root@example.org","password":"correct horse battery"}'


@asynccontextmanager
async def connection(
    world: Any,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = world.server.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def raw(world: Any, *parts: bytes) -> bytes:
    """Everything the server sends until it closes, after ``parts`` were sent."""
    async with connection(world) as (reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server ends the connection without a byte."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


def head_and_body(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), headers, body


def assert_malformed(answer: bytes) -> None:
    status, headers, body = head_and_body(answer)
    assert status == 400
    assert headers["Content-Type"] == "application/problem+json"
    assert "Server" not in headers
    document = json.loads(body)
    assert document["code"] == "malformed_request"
    assert document["request_id"] == headers["X-Request-ID"]


def post(path: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


SMUGGLED = b"GET /api/v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
JSON = b"Content-Type: application/json"

MALFORMED = {
    "length and chunked": post(b"/", b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "unknown coding": post(b"/", b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked is not last": post(
        b"/", b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "space before colon": post(b"/", b"Content-Length : 5", body=b"hello" + SMUGGLED),
    "two lengths": post(b"/", b"Content-Length: 5", b"Content-Length: 0", body=b"hello"),
    "negative length": post(b"/", b"Content-Length: -1", body=SMUGGLED),
    "hexadecimal length": post(b"/", b"Content-Length: 0x5", body=b"hello"),
    "signed length": post(b"/", b"Content-Length: +5", body=b"hello"),
    "folded header": post(b"/", b"X: a\r\n b", body=SMUGGLED),
    "bare line feed": b"GET / HTTP/1.1\nHost: x\n\n" + SMUGGLED,
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "200 headers": b"GET / HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"X%d: 1\r\n" % i for i in range(200))
    + b"\r\n",
    "9 KB header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
    "9 KB target": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "control in the target": b"GET /a\x01b HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=list(MALFORMED))
async def test_malformed_requests_are_400_and_end_the_connection(
    world: Any, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = await raw(world, sent)
    assert_malformed(answer)
    assert answer.count(b"HTTP/1.") == 1  # nothing behind it was taken for a request
    assert "unmatched" not in world.metrics.render().decode()
    assert caplog.records == []  # a flood of these is no flood of log lines


async def test_a_malformed_chunk_is_400_and_ends_the_connection(world: Any) -> None:
    for body in (b"zz\r\n", b"5\r\nhelloXX\r\n", b"1;\nx\r\na\r\n", b"-1\r\n\r\n"):
        answer = await raw(world, post(b"/api/v1/auth/login", JSON, CHUNKED, body=body + SMUGGLED))
        status, headers, document = head_and_body(answer)
        assert (status, json.loads(document)["code"]) == (400, "malformed_request"), body
        assert headers["X-Request-ID"]
        assert answer.count(b"HTTP/1.") == 1


async def test_what_follows_a_body_longer_than_its_length_is_malformed(world: Any) -> None:
    sent = post(b"/api/v1/auth/login", JSON, b"Content-Length: 2", body=b"{}")
    async with connection(world) as (reader, writer):
        writer.write(sent)
        assert (await reader.readline()).startswith(b"HTTP/1.1 422")
        writer.write(b"garbage\r\n\r\n")
        rest = await reader.read()
    assert_malformed(rest[rest.index(b"HTTP/1.0 400") :])
    assert_malformed(await raw(world, sent + b"garbage\r\n\r\n"))


@pytest.mark.parametrize("world", [{"body_timeout_s": 0.1}], indirect=True)
async def test_a_body_that_does_not_come_is_408(world: Any) -> None:
    sent = post(b"/api/v1/auth/login", JSON, b"Content-Length: 100", body=b'{"email":')
    status, headers, body = head_and_body(await raw(world, sent))
    assert (status, json.loads(body)["code"]) == (408, "request_timeout")
    assert headers["Connection"] == "close"


@pytest.mark.parametrize("world", [{"head_timeout_s": 0.1}], indirect=True)
async def test_a_head_that_does_not_come_ends_the_connection(world: Any) -> None:
    assert await raw(world) == b""
    assert await raw(world, b"GET / HTTP/1.1\r\nHost:") == b""
    async with connection(world) as (reader, writer):  # also behind a request that was answered
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"}")
        writer.write(b"GET /livez HT")
        assert await reader.read() == b""


@pytest.mark.parametrize("world", [{"keep_alive_s": 0.1}], indirect=True)
async def test_an_idle_connection_is_closed(world: Any) -> None:
    answer = await raw(world, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("world", [{"connections_per_address": 2}], indirect=True)
async def test_an_address_has_a_limit_of_connections(world: Any) -> None:
    await world.session.close()
    probe = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connection(world) as (reader1, writer1), connection(world) as (reader2, writer2):
        for reader, writer in ((reader1, writer1), (reader2, writer2)):
            writer.write(probe)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with connection(world) as (reader3, _):
            assert await is_closed(reader3)
    text = world.metrics.render().decode()
    assert 'guardian_http_refused_connections_total{limit="address"} 1.0' in text


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413(world: Any, chunked: bool) -> None:
    size = 1024 * 1024 + 1
    if chunked:
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sent = post(b"/api/v1/auth/login", JSON, CHUNKED, body=chunk * 17 + b"0\r\n\r\n")
    else:
        sent = post(b"/api/v1/auth/login", JSON, b"Content-Length: %d" % size)
    status, headers, body = head_and_body(await raw(world, sent))
    assert (status, json.loads(body)["code"]) == (413, "payload_too_large")
    assert headers["Connection"] == "close"


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip"])
async def test_encoded_bodies_are_415_and_never_unpacked(world: Any, coding: bytes) -> None:
    sent = post(
        b"/api/v1/auth/login",
        JSON,
        b"Content-Encoding: " + coding,
        b"Content-Length: 4",
        b"Connection: close",
        body=b"\x1f\x8b\x08\x00",
    )
    status, _, body = head_and_body(await raw(world, sent))
    assert (status, json.loads(body)["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/json; charset=utf-16",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/yaml",
        "application/json; x=y",
        "",
    ],
)
async def test_other_media_types_are_415(world: Any, media_type: str) -> None:
    answer = await world.ask(
        "POST", "/auth/login", data=LOGIN, headers={"Content-Type": media_type}
    )
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "Application/JSON;charset=UTF-8", 'application/json; charset="utf-8"'],
)
async def test_json_may_say_that_it_is_utf_8(world: Any, media_type: str) -> None:
    answer = await world.ask(
        "POST", "/auth/login", data=LOGIN, headers={"Content-Type": media_type}
    )
    assert answer.status == 200


async def test_credentials_are_asked_for_before_the_body_is_read(world: Any) -> None:
    # the body never comes; if it were waited for, the answer would be 408
    sent = post(b"/api/v1/projects", JSON, b"Content-Length: 100", b"Expect: 100-continue")
    async with connection(world) as (reader, writer):
        writer.write(sent)
        line = await reader.readline()
    assert line.startswith(b"HTTP/1.1 401")


async def test_a_wanted_body_is_asked_for(world: Any) -> None:
    length = b"Content-Length: %d" % len(LOGIN)
    async with connection(world) as (reader, writer):
        writer.write(post(b"/api/v1/auth/login", JSON, length, b"Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(LOGIN)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_other_expectations_are_refused_in_the_usual_shape(world: Any) -> None:
    for path in ("/auth/login", "//nothing"):
        answer = await world.ask("POST", path, data=LOGIN, headers={"Expect": "a miracle"})
        assert (answer.status, answer.code) == (400, "malformed_request")


async def test_an_upgrade_is_answered_as_a_plain_request(world: Any) -> None:
    sent = post(
        b"/api/v1/auth/logout",
        JSON,
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Content-Length: %d" % len(SMUGGLED),
        body=SMUGGLED,
    )
    async with connection(world) as (reader, writer):
        writer.write(sent + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
    assert head_and_body(answer)[0] == 400
    assert "unmatched" not in world.metrics.render().decode()


async def test_the_absolute_form_names_the_same_resource(world: Any) -> None:
    answer = await raw(
        world, b"GET http://elsewhere/livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert head_and_body(answer)[0] == 200


async def test_http_1_0_is_answered_and_closed(world: Any) -> None:
    answer = await raw(world, b"GET /livez HTTP/1.0\r\nHost: x\r\n\r\n")
    assert head_and_body(answer)[0] == 200


async def test_connect_is_refused(world: Any) -> None:
    sent = b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    status, headers, _ = head_and_body(await raw(world, sent))
    assert status in {400, 404, 405}
    assert headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", [b"/%00", b"/%ff", b"/%0d%0aX:%201", b"/%", b"/%zz", b"/\xff"])
async def test_odd_bytes_in_a_path_are_refused_and_not_reflected(world: Any, path: bytes) -> None:
    sent = b"GET /api/v1/read" + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    status, headers, body = head_and_body(await raw(world, sent))
    assert status in {400, 401, 404}
    assert headers["Content-Type"] == "application/problem+json"
    assert "X" not in headers
    assert path not in body


async def test_every_answer_has_its_security_headers_and_no_server(world: Any) -> None:
    for method, path in (("GET", "//"), ("GET", "//nothing"), ("PATCH", "//"), ("GET", "/users")):
        answer = await world.ask(method, path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Server" not in answer.headers
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 200),
        ("application/json", 200),
        ("text/html, application/*;q=0.1", 200),
        ("application/vnd.guardian.v9+json", 406),
        ("text/html", 406),
        ("application/json;q=0", 406),
    ],
)
async def test_only_json_is_offered(world: Any, accept: str, status: int) -> None:
    answer = await world.ask("GET", "/users", as_user="root", headers={"Accept": accept})
    assert answer.status == status


async def test_pipelined_requests_are_answered_in_order(world: Any) -> None:
    probe = b"GET /livez HTTP/1.1\r\nHost: x\r\n%s\r\n"
    answer = await raw(world, probe % b"" * 3 + probe % b"Connection: close\r\n")
    assert answer.count(b"HTTP/1.1 200") == 4


async def test_a_client_that_leaves_amid_its_body_is_no_defect(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with connection(world) as (_, writer):
        writer.write(post(b"/api/v1/auth/login", JSON, b"Content-Length: 100", body=b"{"))
        await until(world, b"guardian_http_requests_in_flight 1.0")
    await until(world, b"guardian_http_requests_in_flight 0.0")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert b'status="499"' in world.metrics.render()


async def test_a_client_that_never_reads_is_dropped(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, api_key, schema = await world.furnish()
    large = {"key": "a", "schema_id": schema, "content": "x" * 1_000_000}
    created = await world.ask("POST", f"/projects/{project}/configs", large, as_user="owner")
    assert created.status == 201
    monkeypatch.setattr(server, "WRITE_TIMEOUT_S", 0.1)
    get = f"GET /api/v1/read/{api_key}/a HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    await world.session.close()
    async with connection(world) as (_, writer):
        transport: Any = writer.transport
        transport.pause_reading()
        writer.write(get * 20)  # far more than the socket buffers hold
        await until(world, b"guardian_http_connections 1.0")
        await until(world, b"guardian_http_connections 0.0")


async def until(world: Any, line: bytes) -> None:
    """Let the loop turn until the metrics say ``line``; the test's own timeout is the bound."""
    while line not in world.metrics.render():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_the_lax_parser_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    require_c_parser()
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(RuntimeError, match="C parser"):
        require_c_parser()
