"""Whatever is raised becomes a problem document."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from guardian.domain.problems import Problem
from guardian.http.exchange import ENVIRONMENT, REQUEST_ID, sorted_methods
from guardian.http.problems import problem_of_http_error, problem_response

log = logging.getLogger(__name__)


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer refusals, aiohttp's own errors and defects in the one documented shape."""
    try:
        return await handler(request)
    except Problem as problem:
        return _answer(request, problem)
    except web.HTTPMethodNotAllowed as error:
        allow = sorted_methods({*error.allowed_methods, "OPTIONS"})
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": allow})
        response = _answer(request, Problem("method_not_allowed"))
        response.headers["Allow"] = allow
        return response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _answer(request, problem_of_http_error(error))
    except Exception as error:
        if isinstance(error, ConnectionError) and _is_gone(request):
            raise  # aiohttp drops the connection quietly
        log.exception("defect")
        return _answer(request, Problem("internal_error"))


def _answer(request: web.Request, problem: Problem) -> web.Response:
    request.app[ENVIRONMENT].metrics.problems.labels(problem.code).inc()
    return problem_response(problem, request[REQUEST_ID])


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
