"""Access tokens: short-lived JWTs (RFC 7519) under one shared secret, profile of RFC 8725.

One algorithm, one issuer, one audience, every claim required, keys only from a fixed ring. Nothing
in a token's header is ever used to find a key elsewhere.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from guardian.domain.entities import User
from guardian.domain.problems import Problem
from guardian.usecases.ports import AccessClaims

ISSUER = "guardian"
AUDIENCE = "guardian-api"
ALGORITHM = "HS256"
#: RFC 7518 3.2: a key of at least the hash's size
SECRET_BYTES = 32
_LEEWAY_S = 30
_REQUIRED = ("exp", "iat", "sub", "jti", "aud", "iss", "typ", "adm")
_ACCESS = "access"
#: far above what is issued here, far below what costs anything to refuse
_MAX_TOKEN_CHARS = 4096
_MAX_TIME_S = 1 << 40
_HEADER_FIELDS = frozenset({"alg", "typ", "kid"})


class JwtTokens:
    """:class:`guardian.usecases.ports.Tokens`.

    Args:
        keys: secrets of 32 bytes or more by key id; the old ones of a rotation stay in until
            their last token has expired.
        current: id of the key that signs.
        access_ttl_s: lifetime of a token.
        now_s: Unix time for the stamps of new tokens.

    Raises:
        ValueError: a secret is too short, or ``current`` is not in ``keys``.
    """

    def __init__(
        self,
        keys: Mapping[str, bytes],
        current: str,
        *,
        access_ttl_s: int = 900,
        now_s: Callable[[], int] | None = None,
    ) -> None:
        if current not in keys:
            raise ValueError("the current signing key is not in the ring")
        if any(len(key) < SECRET_BYTES for key in keys.values()):
            raise ValueError(f"a signing key has at least {SECRET_BYTES} bytes")
        self._keys = dict(keys)
        self._current = current
        self._access_ttl_s = access_ttl_s
        self._now_s = now_s or _wall_clock_s
        # an instance of our own: options of the module-level one are anybody's to change
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})

    @property
    def access_ttl_s(self) -> int:
        return self._access_ttl_s

    def issue_access(self, user: User) -> str:
        now_s = self._now_s()
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user.id,
            "adm": user.is_admin,
            "typ": _ACCESS,
            "iat": now_s,
            "exp": now_s + self._access_ttl_s,
            "jti": secrets.token_urlsafe(16),
        }
        return self._jwt.encode(
            claims, self._keys[self._current], algorithm=ALGORITHM, headers={"kid": self._current}
        )

    def verify_access(self, token: str) -> AccessClaims:
        """Raises ``Problem`` ``invalid_token`` or ``token_expired``."""
        if len(token) > _MAX_TOKEN_CHARS or not token.isascii():
            raise Problem("invalid_token")
        try:
            claims = self._decode(token)
        except jwt.ExpiredSignatureError:
            raise Problem("token_expired") from None
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError, TypeError):
            # what a hostile header or claim makes of the parser, besides PyJWT's own errors
            raise Problem("invalid_token") from None
        if not _well_shaped(claims):
            raise Problem("invalid_token")
        return AccessClaims(user_id=claims["sub"], is_admin=claims["adm"])

    def _decode(self, token: str) -> dict[str, Any]:
        header = self._header(token)
        key = self._keys.get(header["kid"])
        if key is None:
            raise jwt.InvalidTokenError("unknown kid")
        return self._jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=_LEEWAY_S,
            options={
                "require": list(_REQUIRED),
                "strict_aud": True,
                "verify_signature": True,
                "verify_exp": True,
                "verify_iat": True,
                "verify_nbf": True,
                "verify_sub": True,
                "verify_jti": True,
            },
        )

    def _header(self, token: str) -> dict[str, Any]:
        """The unverified header, if it is one that we write."""
        header: dict[str, Any] = jwt.get_unverified_header(token)
        if set(header) != _HEADER_FIELDS or header["alg"] != ALGORITHM or header["typ"] != "JWT":
            raise jwt.InvalidTokenError("not a header of ours")
        if not isinstance(header["kid"], str):
            raise jwt.InvalidTokenError("kid is not a string")
        return header


def _well_shaped(claims: dict[str, Any]) -> bool:
    """What PyJWT lets pass: numbers in strings, fractions and truths as times, empty names."""
    return (
        claims["typ"] == _ACCESS
        and type(claims["adm"]) is bool
        and all(type(claims[name]) is int and claims[name] < _MAX_TIME_S for name in ("exp", "iat"))
        and all(type(claims[name]) is str and claims[name] for name in ("sub", "jti"))
    )


def _wall_clock_s() -> int:
    return int(time.time())
