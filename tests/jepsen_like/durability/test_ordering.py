"""The ordering monitor over a program that speaks raftcore's protocol and keeps raftcore's log."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jepsen_like.durability import RaftOrdering, Verdict
from raftcore.core.messages import AppendRequest, Message
from raftcore.core.types import Entry, EntryType, HardState
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log
from raftcore.transport.framing import FrameKind, encode_frame
from raftcore.transport.handshake import Introduction, encode_introduction
from raftcore.transport.wire import encode_message

#: A node without a mind: it does the steps that it is given, in that order, with the real log.
NODE = """
import json, pathlib, socket, sys
from raftcore.core import messages
from raftcore.core.types import Configuration, Entry, EntryType, HardState, Member
from raftcore.storage.base import Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log
from raftcore.transport.framing import FrameDecoder, FrameKind, encode_frame
from raftcore.transport.handshake import encode_introduction, introduce
from raftcore.transport.wire import encode_message

directory = DataDirectory.open(pathlib.Path(sys.argv[1]) / "n1", "n1", allow_unsupported_fs=True)
member = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
directory.bootstrap(Configuration("c", (member,)))
log = open_log(directory, map_size_bytes=1 << 26)
peer = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
peer.sendall(encode_frame(FrameKind.HELLO, encode_introduction(introduce(directory.identity))))
decoder = FrameDecoder()

def hear(frames):
    while frames > 0:
        frames -= len(decoder.feed(peer.recv(17)))

hear(1)
client = socket.create_connection(("127.0.0.1", int(sys.argv[2])))

held = log.load().last_index

def persist(term, vote, last):
    global held
    first, held = held + 1, last
    entries = tuple(
        Entry(i, term, EntryType.COMMAND, b"x" * 5000) for i in range(first, last + 1)
    )
    log.persist([Write(HardState(term, vote), None, entries)])

def say(kind, **fields):
    body = encode_message(getattr(messages, kind)("n1", **fields))
    peer.sendall(encode_frame(FrameKind.MESSAGE, body))

def reply(revision):
    client.sendall(
        b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n"
        b"X-Guardian-Revision: %d\\r\\n\\r\\n{}" % revision
    )

for name, arguments in json.loads(sys.argv[3]):
    globals()[name](**arguments)
"""
RULES = RaftOrdering(log="n1/log", revision_base=0)
WITHOUT_SYNC = ("-m", "jepsen_like.durability.without_sync")


class Sink:
    """Somebody who accepts connections and swallows what comes; to the first one it is node n2."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        #: What n2 says after its introduction.
        self.messages: list[Message] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.listener.close()

    def _accept(self) -> None:
        welcome = encode_introduction(Introduction("n2", bytes(16), "c"))
        said = encode_frame(FrameKind.WELCOME, welcome)
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            for message in self.messages:
                said += encode_frame(FrameKind.MESSAGE, encode_message(message))
            self.threads.append(threading.Thread(target=self._swallow, args=(connection, said)))
            self.threads[-1].start()
            said, self.messages = b"", []

    def _swallow(self, connection: socket.socket, said: bytes) -> None:
        with connection:
            connection.sendall(said)
            while connection.recv(65536):
                pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


def persist(term: int, vote: str | None, last: int) -> tuple[str, dict[str, Any]]:
    return "persist", {"term": term, "vote": vote, "last": last}


def say(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "say", {"kind": kind, **fields}


def reply(revision: int) -> tuple[str, dict[str, Any]]:
    return "reply", {"revision": revision}


def hear(frames: int) -> tuple[str, dict[str, Any]]:
    return "hear", {"frames": frames}


def ack(term: int, match_index: int) -> tuple[str, dict[str, Any]]:
    return say(
        "AppendReply",
        term=term,
        success=True,
        match_index=match_index,
        conflict_index=0,
        conflict_term=0,
        sequence=1,
        read_counter=0,
    )


def vote(term: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return say("VoteReply", term=term, granted=True, **more)


def campaign(term: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return say("VoteRequest", term=term, last_index=1, last_term=1, **more)


RIGHT = [
    campaign(2, pre_vote=True),
    vote(2, pre_vote=True),
    persist(2, "n1", 1),
    campaign(2),
    persist(2, "n1", 5),
    reply(5),
    persist(3, "n2", 5),
    vote(3),
    *(step for last in range(6, 40) for step in (persist(3, "n2", last), ack(3, last))),
    reply(39),
    say("HeartbeatReply", term=3, read_counter=4),
]


def run(start_script: Any, sink: Sink, steps: list[Any], prefix: tuple[str, ...] = ()) -> Verdict:
    process = start_script(NODE, str(sink.port), json.dumps(steps), prefix=prefix, ordering=RULES)
    verdict: Verdict = process.wait()
    assert verdict.exit_code == 0
    return verdict


def test_the_right_order_passes_and_everything_was_judged(start_script: Any, sink: Sink) -> None:
    verdict = run(start_script, sink, RIGHT)
    assert verdict.ok, verdict
    assert verdict.checked == {
        "unjudged": 2,
        "vote_request": 1,
        "vote": 1,
        "append_ack": 34,
        "client_reply": 2,
        "term": 1,
    }
    assert verdict.commits >= 36


def test_the_right_order_without_lmdb_s_sync_is_caught(start_script: Any, sink: Sink) -> None:
    verdict = run(start_script, sink, RIGHT, WITHOUT_SYNC)
    kinds = {violation.split()[1] for violation in verdict.violations}
    assert kinds == {"vote_request:", "vote:", "append_ack:", "client_reply:", "term:"}


WRONG = {
    "an acknowledgement before its write": ([ack(1, 2), persist(1, None, 2)], "append_ack"),
    "a vote before its write": ([persist(2, None, 1), vote(2)], "vote"),
    "a vote of a term that is not durable": ([vote(2), persist(2, "n2", 1)], "vote"),
    "a campaign before the vote for itself": ([campaign(2), persist(2, "n1", 1)], "vote_request"),
    "a campaign after a vote for another": ([persist(2, "n2", 1), campaign(2)], "vote_request"),
    "a client's answer before its write": ([reply(2), persist(1, None, 2)], "client_reply"),
    "a vote for somebody else": ([persist(2, "n3", 1), vote(2)], "vote"),
    "a refusal in a term that is not durable": (
        [reply(1), say("VoteReply", term=9, granted=False)],
        "term",
    ),
    "a snapshot that is not there": (
        [
            say(
                "SnapshotReply",
                term=1,
                index=7,
                next_offset=0,
                installed=True,
                sequence=1,
                read_counter=0,
            )
        ],
        "snapshot_ack",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_promise_that_runs_ahead_is_caught(start_script: Any, sink: Sink, case: str) -> None:
    steps, kind = WRONG[case]
    verdict = run(start_script, sink, steps)
    assert not verdict.ok
    assert len(verdict.violations) == 1
    assert f" {kind}: " in verdict.violations[0]


def append(prev_index: int, prev_term: int, entry_terms: list[int]) -> AppendRequest:
    entries = tuple(
        Entry(prev_index + 1 + k, term, EntryType.COMMAND) for k, term in enumerate(entry_terms)
    )
    return AppendRequest("n2", 3, prev_index, prev_term, 0, 1, 0, entries)


def test_an_acknowledgement_of_what_was_sent_passes(start_script: Any, sink: Sink) -> None:
    sink.messages = [append(1, 1, [3, 3])]
    verdict = run(start_script, sink, [hear(1), persist(3, None, 3), ack(3, 3)])
    assert verdict.ok, verdict


def test_an_older_entry_at_that_place_does_not_cover_an_acknowledgement(
    start_script: Any, sink: Sink
) -> None:
    sink.messages = [append(1, 1, [3, 3])]
    steps = [persist(2, None, 3), persist(3, None, 3), hear(1), ack(3, 3)]
    verdict = run(start_script, sink, steps)
    (violation,) = verdict.violations
    assert "index 3 of term 3 is acknowledged, durable is one of 2" in violation


def test_more_than_the_request_verified_must_not_be_acknowledged(
    start_script: Any, sink: Sink
) -> None:
    sink.messages = [append(1, 1, [])]
    verdict = run(start_script, sink, [persist(3, None, 4), hear(1), ack(3, 4)])
    (violation,) = verdict.violations
    assert "index 4 is acknowledged, the request ended at 1" in violation


def test_a_run_in_which_nothing_was_said_proves_nothing(start_script: Any, sink: Sink) -> None:
    verdict = run(start_script, sink, [persist(2, "n1", 1)])
    assert verdict.violations == []
    assert not verdict.ok
    assert "proves nothing" in verdict.missing[0]


def test_what_was_required_and_not_seen_is_missed(start_script: Any, sink: Sink) -> None:
    rules = RaftOrdering(log="n1/log", revision_base=0, require=["append_ack"])
    process = start_script(NODE, str(sink.port), json.dumps([reply(1)]), ordering=rules)
    assert process.wait().missing == ["no append_ack was seen"]


def test_what_was_acknowledged_is_recovered_after_a_power_loss(
    start_script: Any, sink: Sink, data: Path, tmp_path: Path
) -> None:
    process = start_script(
        NODE + "\nprint('ready', flush=True)\nimport signal\nsignal.pause()",
        str(sink.port),
        json.dumps(RIGHT),
        ordering=RULES,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    assert process.kill_with_power_loss().ok
    directory = DataDirectory.open(data / "n1", "n1", allow_unsupported_fs=True)
    log = open_log(directory, map_size_bytes=1 << 26)
    recovered = log.load()
    log.close()
    directory.close()
    assert recovered.last_index == 39
    assert recovered.hard_state == HardState(3, "n2")


def test_the_events_name_each_promise_and_commit(
    start_script: Any, sink: Sink, tmp_path: Path
) -> None:
    events = tmp_path / "events.jsonl"
    steps = [persist(1, None, 2), ack(1, 2), ack(1, 3)]
    process = start_script(NODE, str(sink.port), json.dumps(steps), ordering=RULES, events=events)
    assert not process.wait().ok
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    acks = [event["wrong"] for event in seen if event["event"] == "append_ack"]
    assert acks == ["", "index 3 is acknowledged, 2 is durable"]
    assert "n1/log/data.mdb" in {event.get("file") for event in seen}
    assert [event["t"] for event in seen] == sorted(event["t"] for event in seen)


def test_rules_refuse_unknown_kinds() -> None:
    with pytest.raises(ValueError, match="no_such_kind"):
        RaftOrdering(require=["no_such_kind"])
