"""What a person sees of a running service: tables on a terminal, lines elsewhere."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sloserve.local.overview import ClassRow, Overview, ReplicaRow
from sloserve.local.scene import Scene

SUMMARY_PERIOD_S = 30.0


class LiveView:
    """Tables that are redrawn in place."""

    def __init__(self, console: Console, scene: Scene) -> None:
        self._scene = scene
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._console = console

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """Take the tables away."""
        self._live.stop()

    def tell(self, line: str) -> None:
        """Something a person would ask about later: it stays above the tables."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, now_s: float) -> None:
        """Draw the scene as it is now."""
        self._live.update(tables(self._scene), refresh=True)


class PlainView:
    """One line per event, and a summary every half minute while requests come."""

    def __init__(self, console: Console, scene: Scene) -> None:
        self._console = console
        self._scene = scene
        self._progress: dict[str, str] = {}
        self._summary_s = 0.0
        self._num_judged = 0

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Nothing to take away."""

    def tell(self, line: str) -> None:
        """Print the line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, now_s: float) -> None:
        """Print what is new in the scene."""
        for name, words in self._scene.progress.items():
            phase = words.partition(":")[0]
            if self._progress.get(name) != phase:
                self._progress[name] = phase
                self.tell(f"{name}: {words}")
        overview = self._scene.overview
        if overview is None or now_s - self._summary_s < SUMMARY_PERIOD_S:
            return
        num_judged = sum(row.num_judged for row in overview.classes)
        if num_judged != self._num_judged:
            self._num_judged, self._summary_s = num_judged, now_s
            self.tell(summary(overview))


def summary(overview: Overview) -> str:
    """One line: ready replicas, requests in flight, attainment of every class."""
    shares = ", ".join(f"{row.name} {_share(row.attainment)}" for row in overview.classes)
    return (
        f"{overview.num_ready}/{len(overview.replicas)} replicas ready, "
        f"{overview.num_inflight} in flight; promises kept in 5 minutes: {shares}"
    )


def tables(scene: Scene) -> RenderableType:
    """The scene as tables."""
    parts: list[RenderableType] = [Text(scene.title, style="bold")]
    if scene.overview is not None:
        parts += [class_table(scene.overview), replica_table(scene.overview)]
    parts += [Text(f"{name}: {words}", style="cyan") for name, words in scene.progress.items()]
    return Group(*parts)


def class_table(overview: Overview) -> Table:
    """A line per class; `*` marks the default one."""
    table = _table(
        ("class", "TTFT", "TPOT"), ("goal", "5 min", "all", "judged", "frontier (tokens)")
    )
    for row in overview.classes:
        style = "" if row.attainment is None or row.attainment >= row.objective else "red"
        mark = " *" if row.name == overview.default_class else ""
        table.add_row(
            row.name + mark,
            row.ttft,
            row.tpot,
            _share(row.objective),
            Text(_share(row.attainment), style=style),
            _share(row.attainment_since_start),
            str(row.num_judged),
            _frontier(row),
        )
    return table


def replica_table(overview: Overview) -> Table:
    """A line per replica."""
    table = _table(("replica", "address", "state"), ("running", "waiting", "KV used"))
    colours = {"ready": "green", "loading": "cyan", "draining": "yellow"}
    for row in overview.replicas:
        table.add_row(
            row.name,
            row.address,
            Text(row.state, style=colours.get(row.state, "red")),
            str(row.num_running),
            str(row.num_waiting),
            _kv(row),
        )
    return table


def print_overview(console: Console, overview: Overview) -> None:
    """Both tables, once."""
    console.print(
        f"{overview.service} serves {overview.model}, generation {overview.generation}: "
        f"{overview.num_inflight} in flight, {overview.num_pending} held",
        highlight=False,
        markup=False,
    )
    console.print(class_table(overview))
    console.print(replica_table(overview))


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _frontier(row: ClassRow) -> str:
    if row.frontier is None:
        return "none"
    return f"{row.frontier[0]}-{row.frontier[1]}"


def _kv(row: ReplicaRow) -> str:
    if row.total_blocks == 0:
        return "-"
    return f"{1 - row.free_blocks / row.total_blocks:.0%} of {row.total_blocks}"
