"""Query parameters and conditional headers, one by one."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from guardian.domain.problems import Problem
from guardian.http import parameters
from guardian.http.exchange import path_number
from guardian.usecases.executing import Expected


def request(query: str = "", *headers: tuple[str, str]) -> web.Request:
    return make_mocked_request("GET", f"/x?{query}", headers=CIMultiDict(headers))


def code_of(caught: pytest.ExceptionInfo[Problem]) -> str:
    return caught.value.code


@pytest.mark.parametrize(
    ("query", "value"), [("", False), ("redirect=true", True), ("redirect=false", False)]
)
def test_a_flag_is_true_or_false(query: str, value: bool) -> None:
    assert parameters.flag(request(query), "redirect") is value


@pytest.mark.parametrize("query", ["redirect=1", "redirect=", "redirect=true&redirect=true"])
def test_a_flag_is_nothing_else(query: str) -> None:
    with pytest.raises(Problem) as caught:
        parameters.flag(request(query), "redirect")
    assert code_of(caught) == "invalid_parameter"
    assert caught.value.errors[0].pointer == "/redirect"


@pytest.mark.parametrize("text", ["", "0", "-1", "01", "1.0", "x", "9" * 17, "٣", " 1"])
def test_an_expected_version_in_the_query_is_a_version(text: str) -> None:
    with pytest.raises(Problem) as caught:
        parameters.expected_in_query(request(f"expected_version={text}"))
    assert code_of(caught) == "invalid_parameter"
    assert parameters.expected_in_query(request("expected_version=7")) == 7
    assert parameters.expected_in_query(request()) is None


def test_if_match_and_expected_version_may_agree_and_the_precondition_counts() -> None:
    with_tag = request("", ("If-Match", '"7"'))
    assert parameters.expected_version(with_tag, 7) == Expected(7, if_match=True)
    assert parameters.expected_version(with_tag, None) == Expected(7, if_match=True)
    assert parameters.expected_version(request(), 7) == Expected(7)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("If-Match", '"7"'), ("If-Match", '"7"')], "invalid_etag"),
        ([("If-None-Match", "*")], "invalid_etag"),
        ([("If-Match", '"8"')], "malformed_request"),
    ],
)
def test_a_confused_precondition_is_refused(headers: list[tuple[str, str]], code: str) -> None:
    with pytest.raises(Problem) as caught:
        parameters.expected_version(request("", *headers), 7)
    assert code_of(caught) == code


@pytest.mark.parametrize("value", ['"', "x", "W/7", '"a""b"', '"a" "b"', '*, "7"', '"é"'])
def test_if_none_match_takes_entity_tags(value: str) -> None:
    with pytest.raises(Problem) as caught:
        parameters.none_match(request("", ("If-None-Match", value)), 7)
    assert code_of(caught) == "invalid_etag"


def test_tags_of_others_simply_do_not_match() -> None:
    assert not parameters.none_match(request("", ("If-None-Match", '"abc", W/"70"')), 7)
    lines = [("If-None-Match", '"abc"'), ("If-None-Match", '"7"')]
    assert parameters.none_match(request("", *lines), 7)


def test_a_long_list_of_tags_is_refused() -> None:
    with pytest.raises(Problem) as caught:
        parameters.none_match(request("", ("If-None-Match", '"1",' * 65 + '"7"')), 7)
    assert code_of(caught) == "invalid_etag"


def test_a_repeated_idempotency_key_is_refused() -> None:
    twice = request("", ("Idempotency-Key", "a"), ("Idempotency-Key", "a"))
    with pytest.raises(Problem) as caught:
        parameters.idempotency_key(twice)
    assert code_of(caught) == "invalid_idempotency_key"


@pytest.mark.parametrize("text", ["0", "01", "x", "-1", "9" * 17, "٣"])
def test_what_is_no_number_in_a_path_names_nothing(text: str) -> None:
    with pytest.raises(Problem) as caught:
        path_number(text)
    assert code_of(caught) == "not_found"
    assert path_number("17") == 17


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        (None, True),
        ("", True),
        ("text/html, */*;q=0.8", True),
        ("APPLICATION/JSON", True),
        ("application/problem+json", True),
        ("application/json; q=0.0", False),
        ("image/*", False),
        (";;,,", False),
    ],
)
def test_accept_is_read_leniently(accept: str | None, accepted: bool) -> None:
    assert parameters.accepts_json(accept) is accepted
