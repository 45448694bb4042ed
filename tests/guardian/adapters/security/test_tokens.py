"""Access tokens against forgeries (RFC 8725): whatever is not exactly ours is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardian.adapters.security.tokens import AUDIENCE, ISSUER, JwtTokens
from guardian.domain.entities import User
from guardian.domain.problems import Problem
from guardian.usecases.ports import AccessClaims

_KEY = bytes(range(32))
_USER = User("u1", "ann@example.org", is_admin=True, created_at_ms=1)
_TOKENS = JwtTokens({"k1": _KEY}, "k1", access_ttl_s=900)


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _claims(**changes: Any) -> dict[str, Any]:
    now_s = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "u1",
        "adm": False,
        "typ": "access",
        "iat": now_s,
        "exp": now_s + 900,
        "jti": "x",
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not ...}


def _forge(
    claims: dict[str, Any] | bytes,
    header: dict[str, Any] | None = None,
    key: bytes = _KEY,
    digest: str = "sha256",
) -> str:
    """A token that is well signed, whatever it says."""
    wanted = {"alg": "HS256", "typ": "JWT", "kid": "k1"} if header is None else header
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = f"{_b64(json.dumps(wanted).encode())}.{_b64(body)}"
    return f"{signed}.{_b64(hmac.digest(key, signed.encode(), digest))}"


def _refusal(token: str, tokens: JwtTokens = _TOKENS) -> str:
    with pytest.raises(Problem) as caught:
        tokens.verify_access(token)
    return caught.value.code


def test_an_issued_token_tells_who_it_is() -> None:
    assert _TOKENS.verify_access(_TOKENS.issue_access(_USER)) == AccessClaims("u1", True)
    assert _TOKENS.access_ttl_s == 900


def test_the_forger_here_makes_tokens_that_would_pass() -> None:
    assert _TOKENS.verify_access(_forge(_claims())) == AccessClaims("u1", False)


def test_no_two_tokens_are_the_same() -> None:
    assert _TOKENS.issue_access(_USER) != _TOKENS.issue_access(_USER)


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "Bearer", "x" * 10_000, "ü.ü.ü", "a.b.c.d", " ", "\0", "\ud800"],
)
def test_what_is_no_token_is_invalid(token: str) -> None:
    assert _refusal(token) == "invalid_token"


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "NONE", ""])
def test_unsigned_tokens_are_invalid(algorithm: str) -> None:
    header = {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    signed = _forge(_claims(), header)
    assert _refusal(signed) == "invalid_token"
    assert _refusal(signed.rpartition(".")[0] + ".") == "invalid_token"


@pytest.mark.parametrize(
    ("algorithm", "digest"), [("HS384", "sha384"), ("HS512", "sha512"), ("RS256", "sha256")]
)
def test_other_algorithms_are_invalid(algorithm: str, digest: str) -> None:
    header = {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    assert _refusal(_forge(_claims(), header, digest=digest)) == "invalid_token"


@pytest.mark.parametrize(
    "kid",
    ["../../etc/passwd", "k2", "' OR 1=1 --", "", "x" * 3000, "x" * 2**20, None, 1, ["k1"], {}],
)
def test_unknown_key_ids_are_invalid(kid: object) -> None:
    header = {"alg": "HS256", "typ": "JWT", "kid": kid}
    assert _refusal(_forge(_claims(), header)) == "invalid_token"


def test_a_token_without_key_id_is_invalid() -> None:
    assert _refusal(_forge(_claims(), {"alg": "HS256", "typ": "JWT"})) == "invalid_token"


@pytest.mark.parametrize(
    "extra",
    [
        {"jku": "https://attacker.example/keys"},
        {"x5u": "https://attacker.example/cert"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"crit": ["exp"]},
        {"b64": False, "crit": ["b64"]},
        {"b64": False},
    ],
)
def test_headers_that_would_bring_keys_or_rules_are_invalid(extra: dict[str, Any]) -> None:
    header = {"alg": "HS256", "typ": "JWT", "kid": "k1", **extra}
    assert _refusal(_forge(_claims(), header)) == "invalid_token"


@pytest.mark.parametrize("typ", ["jwt", "at+jwt", None, 1])
def test_another_type_of_token_is_invalid(typ: object) -> None:
    assert _refusal(_forge(_claims(), {"alg": "HS256", "typ": typ, "kid": "k1"})) == "invalid_token"


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "adm", "typ", "iat", "exp", "jti"])
@pytest.mark.parametrize("value", [..., None, "", [], {}, -1.5])
def test_a_missing_or_misshapen_claim_is_invalid(claim: str, value: object) -> None:
    expected = "token_expired" if (claim, value) == ("exp", -1.5) else "invalid_token"
    assert _refusal(_forge(_claims(**{claim: value}))) == expected


def test_an_expired_token_is_told_apart() -> None:
    past = int(time.time()) - 31
    assert _refusal(_forge(_claims(exp=past))) == "token_expired"


def test_clocks_may_differ_by_the_leeway() -> None:
    now_s = int(time.time())
    assert _TOKENS.verify_access(_forge(_claims(exp=now_s - 20, iat=now_s + 20)))


@pytest.mark.parametrize("value", [1e999, -1e999, float("nan"), "9999999999", 10**400, True, "x"])
def test_an_absurd_expiry_is_invalid(value: object) -> None:
    assert _refusal(_forge(_claims(exp=value))) in ("invalid_token", "token_expired")


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_of_the_future_is_invalid(claim: str) -> None:
    assert _refusal(_forge(_claims(**{claim: int(time.time()) + 300}))) == "invalid_token"


@pytest.mark.parametrize("issuer", ["guardia", "guardian2", "GUARDIAN", ["guardian"], "g"])
def test_another_issuer_is_invalid(issuer: object) -> None:
    assert _refusal(_forge(_claims(iss=issuer))) == "invalid_token"


@pytest.mark.parametrize("audience", ["other", [AUDIENCE], [AUDIENCE, "other"], "guardian", {}])
def test_another_audience_or_several_are_invalid(audience: object) -> None:
    assert _refusal(_forge(_claims(aud=audience))) == "invalid_token"


@pytest.mark.parametrize("typ", ["refresh", "Access", ["access"], 1])
def test_a_token_for_something_else_is_invalid(typ: object) -> None:
    assert _refusal(_forge(_claims(typ=typ))) == "invalid_token"


@pytest.mark.parametrize("admin", ["true", 1, None, [True]])
def test_admin_is_a_boolean_or_the_token_is_invalid(admin: object) -> None:
    assert _refusal(_forge(_claims(adm=admin))) == "invalid_token"


@pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"null", b"{", b"[" * 1000, b"\xff{}"])
def test_a_payload_that_is_no_object_is_invalid(payload: bytes) -> None:
    assert _refusal(_forge(payload)) == "invalid_token"


def test_a_token_of_another_key_is_invalid() -> None:
    assert _refusal(_forge(_claims(), key=hashlib.sha256(_KEY).digest())) == "invalid_token"


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_passes(position: int, flip: int) -> None:
    token = bytearray(_forge(_claims()).encode())
    token[position % len(token)] ^= flip
    changed = token.decode("latin-1")
    header, _, signature = changed.partition(".")
    original = _forge(_claims())
    if base64.urlsafe_b64decode(original.rpartition(".")[2] + "==") == _decoded(signature):
        return  # the last character of base64 has bits that mean nothing
    assert header
    assert _refusal(changed) == "invalid_token"


def _decoded(rest: str) -> bytes | None:
    try:
        return base64.urlsafe_b64decode(rest.rpartition(".")[2] + "==")
    except ValueError:
        return None


def test_after_a_rotation_of_keys_old_tokens_live_out_their_time() -> None:
    new = bytes(range(32, 64))
    both = JwtTokens({"k1": _KEY, "k2": new}, "k2")
    old_token, new_token = _TOKENS.issue_access(_USER), both.issue_access(_USER)
    assert both.verify_access(old_token).user_id == "u1"
    assert both.verify_access(new_token).user_id == "u1"
    only_new = JwtTokens({"k2": new}, "k2")
    assert _refusal(old_token, only_new) == "invalid_token"
    assert _refusal(new_token) == "invalid_token"


def test_a_key_of_one_id_does_not_pass_under_another() -> None:
    both = JwtTokens({"k1": _KEY, "k2": bytes(32)}, "k1")
    header = {"alg": "HS256", "typ": "JWT", "kid": "k2"}
    assert _refusal(_forge(_claims(), header), both) == "invalid_token"


@pytest.mark.parametrize(("keys", "current"), [({"k": b"x" * 31}, "k"), ({"k": _KEY}, "other")])
def test_short_secrets_and_missing_keys_are_refused_at_start(
    keys: dict[str, bytes], current: str
) -> None:
    with pytest.raises(ValueError, match="key"):
        JwtTokens(keys, current)
