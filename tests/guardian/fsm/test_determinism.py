"""Equal logs give equal states and equal results, however they are batched, cut by snapshots or
interrupted by restarts; and a model that fits on a page agrees on every version and conflict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guardian.fsm.commands import (
    AbortSchemaAttempt,
    AnyCommand,
    ConfigWritten,
    CreateConfig,
    CreateKey,
    CreateProject,
    DeleteConfig,
    DeleteProject,
    DeleteSchema,
    Done,
    Envelope,
    PurgeProject,
    PutSchema,
    Refused,
    RevokeKey,
    RollbackConfig,
    UpdateConfig,
    encode_command,
)
from guardian.fsm.deduplication import RESULT_KEPT_MS
from raftcore.core.types import Entry, EntryType
from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
from raftcore.statemachine import AppliedPosition

projects = st.sampled_from(["p", "q"])
keys = st.sampled_from(["a", "b"])
schemas = st.sampled_from(["s", "t"])
small = st.integers(0, 4)
attempts = st.sampled_from(["x", "y"])
named = st.sampled_from([1, 1, 1, 2])
digests = st.sampled_from([bytes([i]) * 32 for i in range(4)])
contents = st.sampled_from([b"1", b"2", b"3" * 5000])

bodies = st.one_of(
    st.tuples(st.just(CreateProject), projects, st.just("k0"), digests),
    st.tuples(st.just(DeleteProject), st.sampled_from(["q", "q", "q", "p"])),
    st.tuples(st.just(PurgeProject), projects, st.integers(0, 5)),
    st.tuples(st.just(CreateKey), projects, st.sampled_from(["k1", "k2"]), digests),
    st.tuples(st.just(RevokeKey), projects, st.sampled_from(["k0", "k1", "k2"])),
    st.tuples(st.just(PutSchema), schemas, small, digests, attempts, small),
    st.tuples(st.just(DeleteSchema), schemas),
    st.tuples(st.just(AbortSchemaAttempt), schemas, attempts),
)
config_bodies = st.one_of(
    st.tuples(st.just(CreateConfig), projects, keys, schemas, named, contents),
    st.tuples(st.just(UpdateConfig), projects, keys, schemas, named, contents, small),
    st.tuples(st.just(DeleteConfig), projects, keys, small),
    st.tuples(st.just(RollbackConfig), projects, keys, small, small, schemas, named),
)
heads = st.builds(
    Envelope,
    # a few repeated ids and idempotency keys, most of them fresh
    st.one_of(st.binary(min_size=16, max_size=16), st.sampled_from([b"r" * 16, b"s" * 16])),
    st.sampled_from(["user:1", "user:2"]),
    st.sampled_from(["", "", "i", "j"]),
    st.sampled_from([b"f" * 32, b"g" * 32]),
)
commands = st.builds(
    lambda head, body: body[0](head, *body[1:]),
    heads,
    st.one_of(bodies, config_bodies, config_bodies, config_bodies),
)
steps = st.one_of(
    commands.map(lambda command: (EntryType.COMMAND, encode_command(command))),
    st.sampled_from([(EntryType.NOOP, b""), (EntryType.COMMAND, b"garbage")]),
)
stamps = st.sampled_from([0, 1, 1_000, RESULT_KEPT_MS, 24 * 3_600_000])

START: list[AnyCommand] = [
    CreateProject(Envelope(b"0" * 16, "user:1"), "p", "k0", b"\xff" * 32),
    PutSchema(Envelope(b"1" * 16, "user:1"), "s", 0, bytes(32), "first"),
]


@dataclass
class Log:
    entries: list[Entry] = field(default_factory=list)
    chains: list[bytes] = field(default_factory=lambda: [GENESIS_CHAIN])

    def add(self, kind: EntryType, data: bytes, at_ms: int) -> None:
        entry = Entry(len(self.entries) + 1, 1, kind, data, timestamp_ms=at_ms)
        self.entries.append(entry)
        self.chains.append(chain_next(self.chains[-1], encode_entry(entry)))

    def feed(self, machine: Any, upto: int | None = None) -> list[Any]:
        """Apply what ``machine`` has not seen yet, as one batch."""
        upto = len(self.entries) if upto is None else upto
        batch = self.entries[machine.last_applied().index : upto]
        if not batch:
            return []
        return list(machine.apply(batch, AppliedPosition(upto, 1, self.chains[upto])))


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log = Log()
    at_ms = 1_000
    for command in START:
        log.add(EntryType.COMMAND, encode_command(command), at_ms)
    for kind, data in draw(st.lists(steps, min_size=15, max_size=60)):
        at_ms += draw(stamps)
        log.add(kind, data, at_ms)
    return log


@settings(deadline=None, max_examples=40)
@given(logs(), st.data())
def test_batches_snapshots_and_restarts_do_not_change_state_or_results(
    new_driver: Callable[..., Any], log: Log, data: st.DataObject
) -> None:
    one_by_one, cut = new_driver(), new_driver()
    results = [
        result
        for upto in range(1, len(log.entries) + 1)
        for result in log.feed(one_by_one.machine, upto)
    ]
    cuts = data.draw(st.lists(st.integers(1, len(log.entries)), max_size=6).map(sorted))
    other_results: list[Any] = []
    for upto in cuts:
        other_results += log.feed(cut.machine, upto)
        what = data.draw(st.sampled_from(["nothing", "restart", "snapshot"]))
        if what == "restart":
            cut.reopen()
        elif what == "snapshot":
            source = cut.machine.open_snapshot()
            records = list(source.records())
            source.close()
            fresh = new_driver()
            fresh.machine.install_snapshot(records, source.position)
            cut.machine.close()
            cut = fresh
    other_results += log.feed(cut.machine)
    assert other_results == results
    assert cut.machine.last_applied() == one_by_one.machine.last_applied()
    assert cut.state.state_hash() == one_by_one.state.state_hash()
    assert cut.state.chain_head() == one_by_one.state.chain_head()
    assert cut.state.verify_chain() == len(cut.state.changes((0, 0), 10_000))
    check_usage(cut.state)
    one_by_one.machine.close()
    cut.machine.close()


def check_usage(state: Any) -> None:
    """What schemas count is what configs say."""
    for schema in state.schemas("", 100):
        users = state.schema_users(schema.schema_id, ("", ""), 1000)
        assert len(users) == schema.usage_count
        for project_id, key in users:
            if state.project_exists(project_id):
                assert state.config(project_id, key).schema_id == schema.schema_id


@dataclass
class ModelConfig:
    version: int
    content: bytes | None
    versions: dict[int, bytes | None]


class Model:
    """Versions and conflicts of one project's configs under one schema that never changes."""

    def __init__(self) -> None:
        self.configs: dict[str, ModelConfig] = {}

    def expect(self, command: Any) -> tuple[str, int]:
        """("written", new version), or (refusal, current version)."""
        config = self.configs.setdefault(command.key, ModelConfig(0, None, {}))
        alive = config.content is not None
        if isinstance(command, CreateConfig):
            if alive:
                return "already_exists", config.version
            return self._write(config, command.content)
        if not alive:
            return "not_found", 0
        if command.expected_version != config.version:
            return "version_conflict", config.version
        if isinstance(command, UpdateConfig):
            return self._write(config, command.content)
        if isinstance(command, DeleteConfig):
            return self._write(config, None)
        old = config.versions.get(command.to_version)
        if old is None:
            return "not_found", config.version
        if command.to_version == config.version:
            return "no_change", config.version
        return self._write(config, old)

    def _write(self, config: ModelConfig, content: bytes | None) -> tuple[str, int]:
        config.version += 1
        config.content = content
        config.versions[config.version] = content
        return "written", config.version


@st.composite
def moves(draw: st.DrawFn) -> tuple[Any, ...]:
    """A kind of command, a key, an offset from the current version, a target, a content."""
    kind = draw(st.sampled_from([CreateConfig, UpdateConfig, DeleteConfig, RollbackConfig]))
    return (
        kind,
        draw(keys),
        draw(st.sampled_from([0, 0, 0, 0, 1, -1])),
        draw(st.integers(0, 8)),
        draw(contents),
    )


def command_of(driver: Any, model: Model, move: tuple[Any, ...]) -> Any:
    kind, key, offset, target, content = move
    known = model.configs.get(key)
    expected = max(0, (known.version if known else 1) + offset)
    if kind is CreateConfig:
        return driver.make(kind, "p", key, "s", 1, content)
    if kind is UpdateConfig:
        return driver.make(kind, "p", key, "s", 1, content, expected)
    if kind is DeleteConfig:
        return driver.make(kind, "p", key, expected)
    return driver.make(kind, "p", key, target, expected, "s", 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(moves(), min_size=10, max_size=50))
def test_a_model_agrees_on_every_version_conflict_and_content(
    new_driver: Callable[..., Any], plan: list[tuple[Any, ...]]
) -> None:
    driver, model = new_driver(), Model()
    driver.furnish()
    for move in plan:
        command = command_of(driver, model, move)
        result = driver.run(command)
        outcome, version = model.expect(command)
        if outcome == "written":
            assert isinstance(result, ConfigWritten), (command, result)
            assert result.version == version
        else:
            assert isinstance(result, Refused), (command, result)
            assert (result.code, result.current_version) == (outcome, version)
    for key, known in model.configs.items():
        config = driver.state.config("p", key)
        assert (config.content if config else None) == known.content
        for version, content in known.versions.items():
            assert driver.state.revision_of("p", key, version).content == content
    driver.machine.close()


def test_the_generated_logs_reach_every_kind_of_result(new_driver: Callable[..., Any]) -> None:
    """The properties above would prove nothing about commands that are always refused."""
    seen: set[str] = set()

    @settings(deadline=None, max_examples=100, database=None, derandomize=True)
    @given(logs())
    def collect(log: Log) -> None:
        driver = new_driver()
        for result in log.feed(driver.machine):
            if isinstance(result, Refused):
                seen.add(result.code)
            elif isinstance(result, (Done, ConfigWritten)):
                seen.add("replayed" if result.replayed else type(result).__name__)
        driver.machine.close()

    collect()
    missing = {
        "Done", "ConfigWritten", "replayed", "version_conflict", "already_exists", "not_found",
        "project_gone", "key_taken", "schema_stale", "idempotency_key_reused", "malformed",
        "attempt_aborted",
    } - seen  # fmt: skip
    assert not missing
