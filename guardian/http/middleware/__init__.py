"""What every request passes, from the outside in.

``observe`` (identity, metrics, access log), ``refuse`` (problem documents for everything that is
raised), ``throttle`` (rates by address), ``authenticate``, ``receive`` (redirect, then the body),
``deadline``. Authentication comes before a single byte of the body is read.

aiohttp passes the next handler by keyword: the second parameter must be called ``handler``.
"""

from __future__ import annotations

from aiohttp.typedefs import Middleware

from guardian.http.middleware.authenticate import authenticate
from guardian.http.middleware.deadline import deadline
from guardian.http.middleware.observe import observe
from guardian.http.middleware.receive import receive
from guardian.http.middleware.refuse import refuse
from guardian.http.middleware.throttle import Throttle


def middlewares(throttle: Throttle) -> tuple[Middleware, ...]:
    """All of them, outermost first."""
    return (observe, refuse, throttle.by_address(), authenticate, receive, deadline)


__all__ = ["Throttle", "middlewares"]
