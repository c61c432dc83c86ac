"""How far a download has come, told while it runs."""

from collections.abc import Callable
from typing import Any

from tqdm.std import tqdm  # type: ignore[import-untyped]

OnBytes = Callable[[int, int], None]
"""Called with bytes done and bytes in total; from any thread."""


class _Nowhere:
    """A stream for bars that nobody looks at."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""


def bars(on_bytes: OnBytes) -> type[Any]:
    """
    A kind of progress bar for `snapshot_download(tqdm_class=...)` that draws nothing and tells
    `on_bytes`.

    The hub's client has one bar for what came over the network and one for what was written, both
    of all files together; the one that is ahead counts.
    """
    alive: list[tqdm[Any]] = []

    class Told(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs |= {"file": _Nowhere(), "disable": False}
            super().__init__(*args, **kwargs)
            if kwargs.get("unit") == "B":
                alive.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            if self in alive:
                done = max(int(bar.n) for bar in alive)
                on_bytes(done, max(done, *(int(bar.total or 0) for bar in alive)))
            return drawn

        def __eq__(self, other: object) -> bool:
            return self is other

        __hash__ = tqdm.__hash__

    return Told
