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

from raftcore.core.types import HardState
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log

#: A node without a mind: it does the steps that it is given, in that order, with the real log.
NODE = """
import json, pathlib, socket, sys
from raftcore.core import messages
from raftcore.core.types import Configuration, Entry, EntryType, HardState, Member
from raftcore.storage.base import Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log
from raftcore.transport.framing import FrameKind, encode_frame
from raftcore.transport.handshake import encode_introduction, introduce
from raftcore.transport.wire import encode_message

directory = DataDirectory.open(pathlib.Path(sys.argv[1]) / "n1", "n1", allow_unsupported_fs=True)
member = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
directory.bootstrap(Configuration("c", (member,)))
log = open_log(directory, map_size_bytes=1 << 26)
peer = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
peer.sendall(encode_frame(FrameKind.HELLO, encode_introduction(introduce(directory.identity))))
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
        b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nX-Guardian-Revision: %d\\r\\n\\r\\n{}" % revision
    )

for name, arguments in json.loads(sys.argv[3]):
    globals()[name](**arguments)
"""
RULES = RaftOrdering(log="n1/log", revision_base=0)
WITHOUT_SYNC = ("-m", "jepsen_like.durability.without_sync")


@pytest.fixture
def sink() -> Iterator[int]:
    """The port of somebody who accepts connections and swallows what comes."""

    def swallow(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=swallow, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def persist(term: int, vote: str | None, last: int) -> tuple[str, dict[str, Any]]:
    return "persist", {"term": term, "vote": vote, "last": last}


def say(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "say", {"kind": kind, **fields}


def reply(revision: int) -> tuple[str, dict[str, Any]]:
    return "reply", {"revision": revision}


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


def run(start_script: Any, sink: int, steps: list[Any], prefix: tuple[str, ...] = ()) -> Verdict:
    process = start_script(NODE, str(sink), json.dumps(steps), prefix=prefix, ordering=RULES)
    verdict: Verdict = process.wait()
    assert verdict.exit_code == 0
    return verdict


def test_the_right_order_passes_and_everything_was_judged(start_script: Any, sink: int) -> None:
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


def test_the_right_order_without_lmdb_s_sync_is_caught(start_script: Any, sink: int) -> None:
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
def test_a_promise_that_runs_ahead_is_caught(start_script: Any, sink: int, case: str) -> None:
    steps, kind = WRONG[case]
    verdict = run(start_script, sink, steps)
    assert not verdict.ok
    assert len(verdict.violations) == 1
    assert f" {kind}: " in verdict.violations[0]


def test_a_run_in_which_nothing_was_said_proves_nothing(start_script: Any, sink: int) -> None:
    verdict = run(start_script, sink, [persist(2, "n1", 1)])
    assert verdict.violations == []
    assert not verdict.ok
    assert "proves nothing" in verdict.missing[0]


def test_what_was_required_and_not_seen_is_missed(start_script: Any, sink: int) -> None:
    rules = RaftOrdering(log="n1/log", revision_base=0, require=["append_ack"])
    process = start_script(NODE, str(sink), json.dumps([reply(1)]), ordering=rules)
    assert process.wait().missing == ["no append_ack was seen"]


def test_what_was_acknowledged_is_recovered_after_a_power_loss(
    start_script: Any, sink: int, data: Path, tmp_path: Path
) -> None:
    process = start_script(
        NODE + "\nprint('ready', flush=True)\nimport signal\nsignal.pause()",
        str(sink),
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
    start_script: Any, sink: int, tmp_path: Path
) -> None:
    events = tmp_path / "events.jsonl"
    steps = [persist(1, None, 2), ack(1, 2), ack(1, 3)]
    process = start_script(NODE, str(sink), json.dumps(steps), ordering=RULES, events=events)
    assert not process.wait().ok
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    acks = [event["wrong"] for event in seen if event["event"] == "append_ack"]
    assert acks == ["", "index 3 is acknowledged, 2 is durable"]
    assert "n1/log/data.mdb" in {event.get("file") for event in seen}
    assert [event["t"] for event in seen] == sorted(event["t"] for event in seen)


def test_rules_refuse_unknown_kinds() -> None:
    with pytest.raises(ValueError, match="no_such_kind"):
        RaftOrdering(require=["no_such_kind"])
