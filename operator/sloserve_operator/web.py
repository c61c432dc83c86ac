"""The operator's own small server: alive, leading, metrics. It answers in standby as well."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from sloserve.errors import BadInput, Failed
from sloserve_operator.figures import CONTENT_TYPE, Figures


def parse_listen(text: str) -> tuple[str | None, int]:
    """`HOST:PORT` or `:PORT` (all addresses); port 0 takes a free one. Raises BadInput."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise BadInput(
            f"is {text!r}; must be HOST:PORT with a port from 0 to 65535", field="listen"
        )
    return host.removeprefix("[").removesuffix("]") or None, int(port)


@asynccontextmanager
async def serving(
    listen: str, *, figures: Figures, alive: Callable[[], str], leading: Callable[[], bool]
) -> AsyncIterator[int]:
    """
    Serve while the block runs; yields the port.

    `alive` says what is wrong, or nothing. Raises Failed when the port is taken.
    """

    async def livez(_: web.Request) -> web.Response:
        problem = alive()
        return web.Response(status=503 if problem else 200, text=problem or "ok")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="leading" if leading() else "standing by")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=figures.text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes(
        [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        host, port = parse_listen(listen)
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise Failed(f"can't listen on {listen}: {error.strerror or error}") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
