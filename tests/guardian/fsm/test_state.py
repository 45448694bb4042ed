from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from guardian.domain.entities import Served
from guardian.fsm.commands import (
    AbortSchemaAttempt,
    CreateConfig,
    CreateProject,
    DeleteConfig,
    DeleteProject,
    PutSchema,
    RevokeKey,
    UpdateConfig,
)
from guardian.fsm.state import StateReader
from guardian.usecases import ports
from raftcore.core.types import EntryType

if TYPE_CHECKING:
    from guardian.fsm.machine import GuardianMachine
    from raftcore.statemachine import StateMachine

    def checked_by_mypy(machine: GuardianMachine) -> tuple[ports.State, StateMachine]:
        return machine.state, machine


KEY = b"r" * 32


def test_the_reader_is_what_the_use_cases_ask_for() -> None:
    for name, wanted in inspect.getmembers(ports.State, inspect.isfunction):
        if name.startswith("_"):
            continue
        offered = getattr(StateReader, name)
        assert inspect.signature(offered) == inspect.signature(wanted), name


def test_revision_is_that_of_the_last_entry_of_any_type(driver: Any) -> None:
    assert driver.state.revision() == 2
    driver.feed([driver.entry(b"", EntryType.NOOP), driver.entry(b"", EntryType.CONFIGURATION)])
    assert driver.state.revision() == 4
    assert driver.state.applied() == driver.position(4)


def test_configs_are_listed_in_bytewise_order_and_by_page(driver: Any) -> None:
    driver.do(CreateProject, "p2", "k", KEY)
    driver.do(CreateConfig, "p2", "zzz", "s", 1, b"not p")
    keys = ["b", "a/b", "a.b", "a", "B", "a-b", "é"]
    for key in keys:
        driver.do(CreateConfig, "p", key, "s", 1, key.encode())
    wanted = sorted(keys, key=str.encode)
    listed = driver.state.configs("p", "", 100)
    assert [c.key for c in listed] == wanted
    assert [c.content for c in listed] == [k.encode() for k in wanted]
    paged: list[str] = []
    while page := driver.state.configs("p", paged[-1] if paged else "", 2):
        paged += [c.key for c in page]
    assert paged == wanted


def test_revisions_are_newest_first_and_of_that_key_only(driver: Any) -> None:
    for key in ("a", "a/b", "aa"):
        driver.do(CreateConfig, "p", key, "s", 1, b"1")
    for version in range(1, 300):
        driver.do(UpdateConfig, "p", "a", "s", 1, b"%d" % version, version)
    versions = [r.version for r in driver.state.revisions("p", "a", None, 1000)]
    assert versions == list(range(300, 0, -1))
    assert [r.version for r in driver.state.revisions("p", "a", 3, 10)] == [2, 1]
    assert [r.version for r in driver.state.revisions("p", "a", 258, 3)] == [257, 256, 255]
    assert driver.state.revisions("p", "a", 1, 10) == []
    assert driver.state.revisions("p", "a", -5, 10) == []
    assert len(driver.state.revisions("p", "a", 2**70, 5)) == 5
    assert all(r.content is None for r in driver.state.revisions("p", "a", None, 5))
    assert driver.state.revision_of("p", "a", 300).content == b"299"
    assert len(driver.state.revision_of("p", "a", 300).content_digest) == 64


def test_revisions_of_a_deleted_config_stay_readable(driver: Any) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    driver.do(DeleteConfig, "p", "a", 1)
    assert [r.kind for r in driver.state.revisions("p", "a", None, 10)] == ["delete", "create"]
    assert driver.state.revision_of("p", "a", 1).content == b"1"


def test_the_read_route_gets_bytes_version_and_revision(driver: Any) -> None:
    driver.do(CreateProject, "q", "k", KEY)
    driver.do(CreateConfig, "q", "a", "s", 1, b"{}")
    driver.do(UpdateConfig, "q", "a", "s", 1, b"[]", 1)
    driver.feed([driver.entry(b"", EntryType.NOOP)])
    assert driver.state.serving_bytes(KEY, "a") == Served("q", 2, 5, b"[]", 6)
    assert driver.state.serving_bytes(KEY, "b") == Served("q", 0, 0, None, 6)
    assert driver.state.serving_bytes(b"?" * 32, "a") is None
    driver.do(RevokeKey, "q", "k")
    assert driver.state.serving_bytes(KEY, "a") is None


@pytest.mark.parametrize(
    "name",
    ["", "x" * 300, "x" * 1000, "a\0", "\0", "\ud800", "p\0a", "é" * 200, "\U0001f600" * 250],
)
def test_names_that_can_not_be_are_simply_not_there(driver: Any, name: str) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    state = driver.state
    assert not state.project_exists(name)
    assert state.config(name, "a") is None
    assert state.config("p", name) is None
    assert state.config(name, name) is None
    assert state.configs(name, "", 10) == []
    assert state.revisions("p", name, None, 10) == []
    assert state.revisions(name, "a", None, 10) == []
    assert state.revision_of("p", name, 1) is None
    assert state.schema(name) is None
    assert state.schema_users(name, ("", ""), 10) == []
    assert state.schema_attempt("s", name) is None
    assert state.api_keys(name, "", 10) == []
    assert state.serving_bytes(b"", name) is None
    assert state.serving_bytes(name.encode("utf-8", "surrogatepass"), name) is None
    assert state.api_key_project(b"x" * 600) is None
    state.configs("p", name, 10)
    state.api_keys("p", name, 10)
    state.schemas(name, 10)
    state.projects(name, 10)
    state.schema_users("s", (name, name), 10)
    assert state.config("p", "a").content == b"1", "nothing was latched"


@pytest.mark.parametrize("version", [0, -1, 2, 2**63, 2**64, 2**80])
def test_versions_that_never_were_are_not_there(driver: Any, version: int) -> None:
    driver.do(CreateConfig, "p", "a", "s", 1, b"1")
    assert driver.state.revision_of("p", "a", version) is None


def test_a_served_name_that_can_not_be_is_a_missing_config(driver: Any) -> None:
    driver.do(CreateProject, "q", "k", KEY)
    assert driver.state.serving_bytes(KEY, "a\0").content is None
    assert driver.state.serving_bytes(KEY, "\udcff").version == 0


def test_equal_logs_give_equal_hashes_and_other_logs_others(driver: Any, new_driver: Any) -> None:
    twin = new_driver()
    twin.furnish()
    assert twin.state.state_hash() == driver.state.state_hash()
    twin.do(PutSchema, "t", 0, bytes(32), "x")
    assert twin.state.state_hash() != driver.state.state_hash()
    twin.machine.close()


def test_the_state_of_a_fixed_log_is_golden(driver: Any) -> None:
    """Tables, keys and records of a release are in the snapshots that the next one installs."""
    driver.do(CreateProject, "q", "k", KEY, "name")
    driver.do(CreateConfig, "p", "a", "s", 1, b"{}", idem="i", fingerprint=b"f" * 32)
    driver.do(UpdateConfig, "p", "a", "s", 1, b"[]", 1)
    driver.do(CreateConfig, "p", "b", "s", 1, b"{}")
    driver.do(DeleteConfig, "p", "b", 1)
    driver.do(RevokeKey, "q", "k")
    driver.do(DeleteProject, "q")
    driver.do(AbortSchemaAttempt, "s", "x")
    assert driver.state.state_hash().hex() == (
        "3f8e0e1b403cc7b06215dac381eb1143833cef875b557276ab3968266a8a01e5"
    )
