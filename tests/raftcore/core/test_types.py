"""Values as people see them."""

from __future__ import annotations

from raftcore.core.types import Configuration, Lease, Member, Target

A = Member("a", "a:1", bytes.fromhex("0123456789abcdef0123456789abcdef"))
B = Member("b", "b:1", b"", voter=False, attributes=(("http", "b:2"),))


def test_a_member_shows_as_much_of_its_incarnation_as_tells_it_apart() -> None:
    assert repr(A) == "Member('a', 'a:1', incarnation=01234567...)"
    assert repr(B) == "Member('b', 'b:1', incarnation=, voter=False, attributes=(('http', 'b:2'),))"


def test_a_member_that_can_not_be_can_still_be_shown() -> None:
    wrong = Member("a", "a:1", "text")  # type: ignore[arg-type]
    assert repr(wrong) == "Member('a', 'a:1', incarnation='text')"


def test_a_configuration_shows_what_is_special_about_it() -> None:
    assert repr(Configuration("c", (A,))) == (
        "Configuration('c', members=(Member('a', 'a:1', incarnation=01234567...),), level=2)"
    )
    staging = Configuration(
        "c", (), target=Target(("a",)), retired=(b"0" * 16, b"1" * 4), lease=Lease(300, 5), level=3
    )
    assert repr(staging) == (
        "Configuration('c', members=(), target=Target(voters=('a',), learners=()), "
        "lease=Lease(election_timeout_ms=300, clock_error_ppm=5), "
        "retired=(30303030..., 31313131), level=3)"
    )
