"""A proxy before a server of HTTP that fails when it is told to: for tests of what a client bears."""

import random
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["500", "503", "slow", "cut"]

SLOW_SECONDS = 2.0
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FaultyProxy:
    """As a context manager it listens; requests pass unharmed until a fault is ordered."""

    def __init__(self, target: str) -> None:
        proxy = self

        class Handler(_Handler):
            faults = proxy

        self.target = urlsplit(target).netloc
        self.failed = 0
        self._lock = threading.Lock()
        self._ordered: list[Fault] = []
        self._share = 0.0
        self._kind: Fault = "500"
        self._random = random.Random(0)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        """URL to use instead of the server's own."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail_next(self, count: int, kind: Fault) -> None:
        """The next requests fail, then no more."""
        with self._lock:
            self._ordered = [kind] * count

    def fail_some(self, share: float, kind: Fault) -> None:
        """From now on so large a share of the requests fail, at random."""
        with self._lock:
            self._share, self._kind = share, kind

    def next_fault(self) -> Fault | None:
        """What becomes of the request that has just come."""
        with self._lock:
            fault = self._ordered.pop() if self._ordered else None
            if fault is None and self._random.random() < self._share:
                fault = self._kind
            self.failed += fault is not None
            return fault

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Hands one request on, or fails it."""

    protocol_version = "HTTP/1.1"
    faults: FaultyProxy

    def handle_one_request(self) -> None:
        """As inherited, for any method; a client that hangs up is no error."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.faults.next_fault()
        if fault in ("500", "503"):
            self._answer(int(fault), {}, b"")
            return
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        upstream = HTTPConnection(self.faults.target, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            content = response.read()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP_BY_HOP}
            length = response.headers.get("Content-Length") if self.command == "HEAD" else None
            self._answer(response.status, kept, content, length=length, cut=fault == "cut")
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - the base class asks for these names

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, length: str | None = None, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and not cut:
            self.wfile.write(body)
        elif cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""
