"""A network between a process and its servers that can go silent: nothing is closed, nothing is answered, until later.

with Network() as network:
    url = f"redis://127.0.0.1:{network.to(redis.port)}/0"
    network.cut()         # bytes are taken and kept; new connections are accepted and say nothing
    network.restore()     # what was kept goes out, late, as TCP would send it again
"""

import contextlib
import socket
import threading
from typing import Self

CHUNK = 65536


class Network:
    """Forwards TCP connections to ports of 127.0.0.1, each through a port of its own."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        self.held_back = 0

    def to(self, port: int) -> int:
        """Return a new port from which connections go to `port`."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        self._start(self._accept, listener, port)
        return listener.getsockname()[1]

    def cut(self) -> None:
        """Go silent, in both directions."""
        self._open.clear()

    def restore(self) -> None:
        """Forward again, first of all what came meanwhile."""
        self._open.set()

    def _start(self, target: object, *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()  # pyright: ignore[reportArgumentType]

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                self._sockets.append(near)
                self._start(self._connect, near, port)

    def _connect(self, near: socket.socket, port: int) -> None:
        self._open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", port), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self._sockets.append(far)
        self._start(self._forward, near, far)
        self._forward(far, near)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if not self._open.is_set():
                    self.held_back += 1
                    self._open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Close every connection."""
        self._open.set()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
