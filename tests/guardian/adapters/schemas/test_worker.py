"""What a worker does with one job, without the process around it."""

from __future__ import annotations

import hashlib
import json
import signal

import pytest

from guardian.adapters.schemas.protocol import REPLY, REQUEST, Operation, Reply, Request, Verdict
from guardian.adapters.schemas.worker import Worker


def request(body: bytes, document: bytes = b"", *, send_body: bool = True) -> Request:
    what = Operation.VALIDATE if document else Operation.CHECK
    digest = hashlib.sha256(body).digest()
    return Request(what, 60_000, 60_000, digest, body if send_body else b"", document)


def test_a_schema_is_compiled_once_and_then_known_by_its_digest() -> None:
    worker = Worker()
    body = b'{"properties":{"rate":{"type":"integer"}}}'
    assert worker.do(request(body, b'{"rate":1}', send_body=False)) == Reply(Verdict.UNKNOWN)
    assert worker.do(request(body, b'{"rate":1}')) == Reply(Verdict.FITS)
    faulty = worker.do(request(body, b'{"rate":"x"}', send_body=False))
    assert faulty == Reply(Verdict.FAULTY, (("/rate", "must be integer"),))


def test_checking_a_schema_makes_it_known() -> None:
    worker = Worker()
    assert worker.do(request(b"{}")) == Reply(Verdict.FITS)
    assert worker.do(request(b"{}", b"1", send_body=False)) == Reply(Verdict.FITS)


def test_the_schema_used_longest_ago_is_forgotten_first() -> None:
    worker = Worker(cache_size=2)
    one, two, three = (json.dumps({"const": n}).encode() for n in range(3))
    worker.do(request(one))
    worker.do(request(two))
    worker.do(request(one, b"0", send_body=False))
    worker.do(request(three))
    assert worker.do(request(one, b"0", send_body=False)).verdict is Verdict.FITS
    assert worker.do(request(two, b"1", send_body=False)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", "invalid_schema"),
        (b"{", "invalid_json"),
        (b'{"a":1,"a":2}', "invalid_json"),
        (b'{"$schema":"x"}', "unsupported_draft"),
        (b'{"$ref":"x"}', "remote_ref_forbidden"),
        (b'{"pattern":"^(?=(a+)+$)"}', "schema_too_complex"),
        (b'{"properties":{"a":' * 40 + b"{}" + b"}" * 80, "schema_too_complex"),
        (b'{"required":["a"],"properties":{},"additionalProperties":false}', "invalid_schema"),
    ],
)
def test_a_refusal_names_its_code_and_leaves_no_timer_running(body: bytes, code: str) -> None:
    worker = Worker()
    reply = worker.do(request(body))
    assert (reply.verdict, reply.code) == (Verdict.PROBLEM, code)
    assert worker.do(request(body, b"1")).code == code
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("schema", "document", "code"),
    [
        ({"$ref": "#"}, b"1", "invalid_schema"),
        ({}, b"[1,", "invalid_json"),
    ],
)
def test_a_document_that_can_not_be_decided_is_a_problem(
    schema: object, document: bytes, code: str
) -> None:
    body = json.dumps(schema).encode()
    reply = Worker().do(request(body, document))
    assert (reply.verdict, reply.code) == (Verdict.PROBLEM, code)


def test_frames_read_back_as_they_were_written() -> None:
    reply = Reply(Verdict.FAULTY, (("/a~1b", "é"), ("", "x")), "", "")
    raw = reply.encode()
    assert REPLY.unpack(raw[:4]) == (len(raw) - 4,)
    assert Reply.decode(raw[4:]) == reply
    asked = request(b"{}", b"[1]")
    head = REQUEST.unpack(asked.encode()[: REQUEST.size])
    assert head == (Operation.VALIDATE, 60_000, 60_000, asked.digest, 2, 3)
    assert asked.encode()[REQUEST.size :] == b"{}[1]"
