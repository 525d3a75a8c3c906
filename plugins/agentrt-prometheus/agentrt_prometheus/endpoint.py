"""The endpoint that Prometheus scrapes: the text format or OpenMetrics, as the request accepts."""

from __future__ import annotations

import errno
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from agentrt.errors import ConfigError, PermanentError

__all__ = ["Endpoint"]


class Endpoint:
    """Listens on `host` and `port` from here on, in a thread of its own; 0 is any free port.

    Raises ConfigError if the port is taken, PermanentError if it cannot listen for another reason.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), _Server, _Silent)
        except OSError as error:
            where = f"[telemetry.prometheus] cannot listen on {host}:{port}"
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"{where}: the port is in use, perhaps by another agentrt. Set another `port`, or "
                    "`port = 0` for any free one"
                ) from error
            raise PermanentError(f"{where}: {error.strerror or error}. Check `host` and `port`") from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="agentrt-prometheus", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Returns when nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingWSGIServer):
    # A scraper that hangs must not hold up the end of the process.
    daemon_threads = True
    block_on_close = False


class _Silent(WSGIRequestHandler):
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""
