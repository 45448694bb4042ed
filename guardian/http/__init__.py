"""The HTTP side of Guardian: thin handlers over the use cases.

``endpoints`` is the one table of routes; ``bodies`` and ``shapes`` are what goes in and out;
``middleware`` is what every request passes; ``routes`` holds the handlers; ``server`` listens.
"""

from guardian.http.application import build_application, build_metrics_application
from guardian.http.endpoints import ENDPOINTS, PREFIX, Endpoint
from guardian.http.health import Health, HealthReport, NodeHealth
from guardian.http.server import HttpServer

__all__ = [
    "ENDPOINTS",
    "PREFIX",
    "Endpoint",
    "Health",
    "HealthReport",
    "HttpServer",
    "NodeHealth",
    "build_application",
    "build_metrics_application",
]
