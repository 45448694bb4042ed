"""The schema of the trace, and what writes it."""

from __future__ import annotations

import io
import json
import threading

import pytest

from raftcore.trace import (
    EVENTS,
    TRACE_VERSION,
    JsonLinesTracer,
    Kind,
    MemoryTracer,
    TraceEvent,
    Value,
    check,
)

#: The schema of version 1. Appending kinds or fields changes this text in that place; any other
#: change of it needs a new version.
GOLDEN = """\
commit_advanced index:int term:int
configuration_changed index:int stage:str voters:list[str] learners:list[str]
disk_full full:bool free_bytes:int
follower_regressed peer:str match_index:int
gave_way write_age_ms:int
joiner_asked joiner:str address:str voter:bool admitted:bool
leader_known leader:str term:int
leader_lost term:int
log_cut first_index:int
membership_finished outcome:str version:int detail:str
node_failed error:str
node_started term:int last_index:int commit_index:int rebuilt:bool
node_stopped failure:str | null
peer_connected peer:str
peer_lost peer:str
peer_violation detail:str
quarantine_ended index:int
quarantine_started reason:str
removed detail:str
role_changed role:str term:int
scrub_finished entries:int
snapshot_abandoned reason:str
snapshot_damaged index:int
snapshot_installed index:int bytes:int
snapshot_receiving index:int bytes:int
snapshot_sending peer:str index:int bytes:int
snapshot_started index:int
snapshot_taken index:int bytes:int duration_ms:int
term_changed term:int
transfer_finished target:str | null outcome:str detail:str
transfer_started target:str | null
vote_granted candidate:str term:int
"""


def event(kind: Kind, number: int = 1, **fields: Value) -> TraceEvent:
    return TraceEvent(kind, "a", number, 5, fields)


def test_the_schema_is_that_of_its_version() -> None:
    assert TRACE_VERSION == 1
    lines = [
        " ".join([kind.value, *(f"{name}:{type_}" for name, type_ in schema.fields)])
        for kind, schema in EVENTS.items()
    ]
    assert "".join(f"{line}\n" for line in sorted(lines)) == GOLDEN
    assert set(EVENTS) == set(Kind)


def test_no_event_has_a_field_of_its_own_named_like_a_common_one() -> None:
    for schema in EVENTS.values():
        assert not {name for name, _ in schema.fields} & {"v", "node", "n", "t_ns", "event"}


def test_the_bytes_of_a_line_never_change() -> None:
    line = event(Kind.ROLE_CHANGED, 7, role="leader", term=3).to_json()
    assert line == (
        '{"v":1,"node":"a","n":7,"t_ns":5,"event":"role_changed","role":"leader","term":3}'
    )


@pytest.mark.parametrize(
    "wrong",
    [
        event(Kind.TERM_CHANGED),
        event(Kind.TERM_CHANGED, term="3"),
        event(Kind.TERM_CHANGED, term=True),
        event(Kind.TERM_CHANGED, term=None),
        event(Kind.TERM_CHANGED, term=3, more=1),
        event(Kind.ROLE_CHANGED, term=3, role="leader"),
        event(Kind.CONFIGURATION_CHANGED, index=1, stage="stable", voters="a", learners=[]),
        event(Kind.CONFIGURATION_CHANGED, index=1, stage="stable", voters=[1], learners=[]),
    ],
)
def test_an_event_that_is_not_as_its_schema_is_found(wrong: TraceEvent) -> None:
    with pytest.raises(ValueError, match=wrong.kind.value):
        check(wrong)


def test_a_memory_tracer_keeps_the_newest_and_finds_them_by_kind() -> None:
    tracer = MemoryTracer(limit=2)
    for term in range(3):
        tracer.event(event(Kind.TERM_CHANGED, term=term))
    tracer.event(event(Kind.TRANSFER_STARTED, target=None))
    assert [e.fields for e in tracer.of(Kind.TERM_CHANGED)] == [{"term": 2}]
    with pytest.raises(ValueError, match="fields"):
        tracer.event(event(Kind.TERM_CHANGED))


def test_lines_are_written_in_order_and_read_back_as_json() -> None:
    file = io.StringIO()
    tracer = JsonLinesTracer(file)
    for term in range(100):
        tracer.event(event(Kind.TERM_CHANGED, term + 1, term=term))
    tracer.close()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["term"] for line in lines] == list(range(100))
    assert {line["v"] for line in lines} == {TRACE_VERSION}
    assert tracer.dropped == 0


class Stuck(io.StringIO):
    """A file whose first write hangs until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.writing.set()
        assert self.go_on.wait(20)
        return super().write(text)


def test_a_file_that_hangs_costs_events_and_never_the_caller() -> None:
    file = Stuck()
    tracer = JsonLinesTracer(file, limit=3)
    tracer.event(event(Kind.TERM_CHANGED, term=0))
    assert file.writing.wait(20)
    for term in range(1, 11):
        tracer.event(event(Kind.TERM_CHANGED, term=term))
    assert tracer.dropped == 7
    file.go_on.set()
    tracer.close()
    assert [json.loads(line)["term"] for line in file.getvalue().splitlines()] == [0, 1, 2, 3]


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(28, "no space left")


def test_a_file_that_fails_ends_the_writing_and_says_so() -> None:
    tracer = JsonLinesTracer(Broken())
    tracer.event(event(Kind.TERM_CHANGED, term=0))
    tracer.close()
    assert tracer.failure is not None
    assert tracer.failure.errno == 28
    tracer.event(event(Kind.TERM_CHANGED, term=1))
    assert tracer.dropped == 1
