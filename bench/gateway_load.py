"""The load client: canned requests on kept-alive connections, as little work as can be."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import cast

SERVICE = "bench"
SECRET = "bench-key"
CHAT = "/v1/chat/completions"
PROMPT = "Tell me a story about a replica that kept its promises. " * 8
BODY = json.dumps(
    {
        "model": SERVICE,
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "max_tokens": 18,
    }
).encode()
REQUEST = (
    f"POST {CHAT} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    f"authorization: Bearer {SECRET}\r\nuser-agent: bench\r\naccept: */*\r\n"
    f"content-length: {len(BODY)}\r\n\r\n"
).encode() + BODY


class Client(asyncio.Protocol):
    """
    One connection that asks again and again; times the first event and the end.

    Not the head: a gateway may hold it back until the first event, so that it can still retry.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._done: asyncio.Future[None]
        self._tail = b""
        self._first_s: float | None = None
        self._num_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._num_bytes == 0 and not data.startswith(b"HTTP/1.1 200"):
            self._done.set_exception(RuntimeError(data[:300].decode("latin-1")))
            return
        if self._first_s is None and b"data:" in data:
            self._first_s = time.perf_counter()
        self._num_bytes += len(data)
        self._tail = (self._tail + data)[-5:]
        if self._tail == b"0\r\n\r\n" and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionResetError("connection lost"))

    async def ask(self) -> float:
        """One request; seconds to the first event."""
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._first_s, self._num_bytes = b"", None, 0
        begin_s = time.perf_counter()
        self._transport.write(REQUEST)
        await self._done
        assert self._first_s is not None
        return self._first_s - begin_s

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


@contextlib.asynccontextmanager
async def clients(port: int, count: int) -> AsyncIterator[list[Client]]:
    """So many connections, hung up at the end."""
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]
    try:
        yield made
    finally:
        for client in made:
            client.close()


async def closed_loop(port: int, *, connections: int, seconds: float) -> int:
    """Every connection asks again as soon as it is answered; requests answered."""
    end_s = time.perf_counter() + seconds

    async def one(client: Client) -> int:
        count = 0
        while time.perf_counter() < end_s:
            await client.ask()
            count += 1
        return count

    async with clients(port, connections) as made:
        return sum(await asyncio.gather(*(one(client) for client in made)))


async def open_loop(port: int, *, rate_per_s: float, seconds: float) -> list[float]:
    """Requests at a steady rate, whatever the answers do; seconds to the first event of each."""
    async with clients(port, 32) as made:
        free = asyncio.Queue[Client]()
        for client in made:
            free.put_nowait(client)

        async def one() -> float:
            client = await free.get()
            try:
                return await client.ask()
            finally:
                free.put_nowait(client)

        begin_s = time.perf_counter()
        tasks = []
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(begin_s + number / rate_per_s - time.perf_counter())
            tasks.append(asyncio.create_task(one()))
        return await asyncio.gather(*tasks)
