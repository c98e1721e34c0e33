"""An open-loop HTTP load: requests leave when they are due, whether or not those before them have been answered."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """Status, and seconds from the moment the request was due."""

    status: int
    seconds: float


class Connection:
    """One keep-alive connection, opened again where the server has closed it."""

    def __init__(self, port: int):
        self._port = port
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect, unless connected."""
        if self._reader is None or self._reader.at_eof():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self, path: str, body: bytes) -> int:
        """Return the status of the answer; 0 where the connection broke."""
        async with self._lock:
            try:
                await self.open()
                return await self._exchange(path, body)
            except (OSError, asyncio.IncompleteReadError):
                self._reader = None
                return 0

    async def _exchange(self, path: str, body: bytes) -> int:
        assert self._reader is not None
        assert self._writer is not None
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(line.split(":")[1] for line in answer.splitlines() if line.startswith("content-length:"))
        await self._reader.readexactly(int(length))
        return int(answer.split()[1])

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()


async def offered(
    port: int, path: str, body: Callable[[int], bytes], rate: float, seconds: float, connections: int
) -> list[Answer]:
    """Return the answers to `rate` requests per second, taking turns over that many connections."""
    lines = [Connection(port) for _ in range(connections)]
    await asyncio.gather(*(line.open() for line in lines))
    began = time.perf_counter() + 0.1

    async def one(number: int) -> Answer:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        status = await lines[number % connections].post(path, body(number))
        return Answer(status, time.perf_counter() - due)

    answers = await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
    for line in lines:
        line.close()
    return list(answers)
