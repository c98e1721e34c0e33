"""A real S3 server for the tests, moto's in a process of its own, and a proxy before a server, told when to refuse."""

import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self

from store.artifacts import open_store
from store.s3 import BucketStore
from store.settings import Settings
from tests.servers import Server

KEYS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
BUCKET = "gauntlet"


class S3Server(Server):
    """moto's server. What it holds is gone when it stops."""

    name = "s3"

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> tuple[list[str], dict[str, Any]]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], {}

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def create_bucket(self, name: str = BUCKET) -> str:
        """Create a bucket and return its name."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT"), timeout=5):
            return name


def opened(endpoint: str, url: str) -> BucketStore:
    """Return the store that settings with these addresses and our keys name."""
    given = {**KEYS, "ARTIFACT_URL": url, "AWS_ENDPOINT_URL": endpoint}
    chosen = Settings(**{name.lower(): value for name, value in given.items()})  # pyright: ignore[reportArgumentType]
    store = open_store(chosen.artifacts, chosen.s3)
    assert isinstance(store, BucketStore)
    return store


class Listening(Protocol):
    """Whatever has a port of this machine."""

    @property
    def port(self) -> int: ...


class Proxy:
    """Passes requests on to a server; while `refusing` is a status, it answers with that instead, or hangs."""

    HANG = -1

    def __init__(self, server: Listening, port: int = 0, refusing: int | None = None):
        self.refusing = refusing
        self.refused = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if proxy.refusing is not None:
                    proxy.refused += 1
                    while proxy.refusing == proxy.HANG:
                        time.sleep(0.05)
                    self.answer(proxy.refusing or 503, [], b"")
                    return
                upstream = HTTPConnection("127.0.0.1", server.port, timeout=30)
                upstream.request(self.command, self.path, body, dict(self.headers.items()))
                answer = upstream.getresponse()
                self.answer(answer.status, answer.getheaders(), answer.read())
                upstream.close()

            def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                size = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
                self.send_header("Content-Length", size if self.command == "HEAD" else str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815 - as http.server names them

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address, for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refusing = None
        self._http.shutdown()
        self._http.server_close()
