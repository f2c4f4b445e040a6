"""The protocol of Label Studio's backends, over HTTP."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hdmnet.integrations.label_studio.backend import FewShotBackend
from hdmnet.integrations.label_studio.regions import Json

logger = logging.getLogger(__name__)


class BackendServer(ThreadingHTTPServer):
    """A server that speaks Label Studio's protocol of backends.

    Args:
        backend: The backend.
        address: Host and port. Port 0 is any free one, see `server_port`.
    """

    def __init__(self, backend: FewShotBackend, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self.backend = backend
        # Label Studio waits one second for a webhook. One thread keeps the order of events.
        self.events = ThreadPoolExecutor(max_workers=1)

    def server_close(self) -> None:
        """Close, after the work for all events that came."""
        super().server_close()
        self.events.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: BackendServer

    def do_GET(self) -> None:
        self._send(200, {"status": "UP"})

    def do_POST(self) -> None:
        backend = self.server.backend
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            match self.path.rpartition("/")[2]:
                case "setup":
                    version = backend.setup(body["project"], body["schema"])
                    self._send(200, {"model_version": version})
                case "predict":
                    results = backend.predict(body["project"], body["label_config"], body["tasks"])
                    self._send(200, {"results": results})
                case "webhook":
                    self.server.events.submit(self._handle, body)
                    self._send(200, {})
                case _:
                    self._send(404, {"error": f"no such path: {self.path}"})
        except (KeyError, TypeError, ValueError) as error:
            logger.exception("a request that cannot be answered")
            self._send(400, {"error": f"{type(error).__name__}: {error}"})

    def _handle(self, event: Json) -> None:
        try:
            self.server.backend.handle(event)
        except Exception:
            logger.exception("an event that cannot be handled")

    def _send(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
