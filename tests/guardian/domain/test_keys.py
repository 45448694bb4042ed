"""The rules of names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.domain import keys
from guardian.domain.problems import Problem


@pytest.mark.parametrize(
    "key", ["a", "A.b_c-9", "a/b/c", "...", "a/..b", ".a/b.", "-", "x" * 256, "configs", "1/2"]
)
def test_keys_that_are_fine(key: str) -> None:
    assert keys.is_config_key(key)
    keys.check_config_key(key)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "../a", "a/..", "x" * 257, "a b", "ä"),
        *("a\0", "a\n", "a%2Fb", "a\\b", "a:b", "٣"),
    ],
)
def test_keys_that_are_refused(key: str) -> None:
    assert not keys.is_config_key(key)
    with pytest.raises(Problem) as caught:
        keys.check_config_key(key)
    assert caught.value.code == "validation_failed"
    assert caught.value.errors[0].pointer == "/key"


@given(st.text("ab./", max_size=8))
def test_the_key_rule_is_the_one_stated(key: str) -> None:
    segments = key.split("/")
    stated = bool(key) and all(segment not in ("", ".", "..") for segment in segments)
    assert keys.is_config_key(key) == stated


@pytest.mark.parametrize("email", ["a@b", "admin@localhost", "a.b+c@x-y.example.org", "O'N@e.io"])
def test_addresses_that_are_fine(email: str) -> None:
    keys.check_email(email, "/email")
    assert keys.normal_email(email) == email.lower()


@pytest.mark.parametrize(
    "email",
    [
        *("", "a", "@b", "a@", "a@b@c", "a b@c", "a@b c", ".a@b", "a.@b", "a..b@c", "a@-b"),
        *("a@b..c", "a@b.", "ä@b", "a@b\n", "x" * 65 + "@b", "a@" + "b." * 130 + "c", "<a@b>"),
    ],
)
def test_addresses_that_are_refused(email: str) -> None:
    with pytest.raises(Problem) as caught:
        keys.check_email(email, "/email")
    assert caught.value.code == "validation_failed"
    assert keys.normal_email(email) == ""


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
def test_text_that_postgres_can_not_hold_has_its_own_code(text: str) -> None:
    for check in (keys.check_name, keys.check_email):
        with pytest.raises(Problem) as caught:
            check(text, "/x")
        assert caught.value.code == "invalid_string"
        assert caught.value.errors[0].pointer == "/x"


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x7f", "x" * 201, "\t"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(Problem) as caught:
        keys.check_name(name, "/name")
    assert caught.value.code == "validation_failed"


@pytest.mark.parametrize("name", ["a", "Größe 7; DROP TABLE x --", "日本", "x" * 200])
def test_names_that_are_fine(name: str) -> None:
    keys.check_name(name, "/name")


@pytest.mark.parametrize("password", ["x" * 12, "x" * 256, "é" * 128, "\U0001f600" * 3])
def test_passwords_within_the_limits_in_bytes(password: str) -> None:
    assert keys.check_password(password, "/password") == password


@pytest.mark.parametrize(
    "password",
    ["", "x" * 11, "x" * 257, "é" * 129, "x" * 20 + "\0", "x" * 20 + "\ud800", "x" * 10_000_000],
)
def test_passwords_beyond_the_limits(password: str) -> None:
    assert keys.normal_password(password) is None
    with pytest.raises(Problem) as caught:
        keys.check_password(password, "/password")
    assert caught.value.code == "validation_failed"


def test_a_password_is_the_same_however_its_accents_were_typed() -> None:
    assert keys.normal_password("cafe\u0301 au lait") == keys.normal_password("café au lait")


def test_ids_are_a_short_plain_alphabet() -> None:
    assert keys.is_id("0123abcdef")
    for text in ("", "a" * 65, "a/b", "a\0", "é", "a\n"):
        assert not keys.is_id(text)
