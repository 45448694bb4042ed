"""Changing the members and the leader: who may, and what is refused before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest

from guardian.domain.problems import Problem
from guardian.usecases.ports import WantedMember

TWO = [WantedMember("n1", True), WantedMember("n2", False)]


async def test_only_administrators_change_members_or_the_leader(stage: Any) -> None:
    cluster = stage.services.cluster
    for who in ("owner", "stranger"):
        with pytest.raises(Problem, match="forbidden"):
            await cluster.change_members(stage.who(who), TWO, 1, timeout_s=1.0)
        with pytest.raises(Problem, match="forbidden"):
            await cluster.transfer(stage.who(who), None, timeout_s=1.0)


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ([WantedMember("n1", True), WantedMember("n1", False)], "/members/1/id"),
        ([WantedMember("n1", False)], "/members"),
    ],
)
async def test_members_that_can_never_be_are_refused_before_anybody_is_asked(
    stage: Any, members: list[WantedMember], pointer: str
) -> None:
    with pytest.raises(Problem) as caught:
        await stage.services.cluster.change_members(stage.who("root"), members, 1, timeout_s=1.0)
    assert caught.value.code == "invalid_members"
    assert [fault.pointer for fault in caught.value.errors] == [pointer]
