"""
Panels in our manner: a unit, two numbers where there is a target, and what the panel answers.

Selectors are strings of PromQL with Grafana's variables in them; `ALL` stands for anything, so
that a series without the label (a plain Prometheus has no `namespace`) is found as well.
"""

from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

ALL = ".*"
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
SERVICE = 'namespace=~"$namespace", service=~"$service"'
CLASS = f'{SERVICE}, slo_class=~"$slo_class"'
RATE = "$__rate_interval"

HEIGHT = 8
Panel = Builder[dashboard.Panel]
Steps = tuple[tuple[float, str], ...]
"""Colours: (from this value on, colour)."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query and the name of its lines (`{{label}}` is filled in)."""

    expr: str
    legend: str = ""


def of_replicas(expr: str) -> str:
    """The part of `expr` (per scraped replica) that the variables choose, with its replica."""
    info = f'sloserve_replica_info{{{SERVICE}, replica=~"$replica"}}'
    return f"({expr}) * on (job, instance) group_left (service, replica) {info}"


def quantile(share: float, buckets: str, by: str = "") -> str:
    """A percentile out of buckets that were summed first: percentiles are never averaged."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) ({buckets}))"


def lines(
    title: str,
    answers: str,
    *queries: Query,
    unit: str,
    span: int = 8,
    stack: bool = False,
    most: float | None = None,
    marks: Steps = (),
    right: tuple[str, str] | None = None,
) -> Panel:
    """
    Lines over time; a line whose legend begins with `target` or `objective` is dashed.

    `marks` are dashed lines across the panel; lines whose legend begins with `right[0]` have an
    axis on the right, in the unit `right[1]`.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(answers)
        .datasource(SOURCE)
        .span(span)
        .height(HEIGHT)
        .unit(unit)
        .fill_opacity(30 if stack else 6)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .override_by_regexp(
            "^(target|objective).*",
            [
                dashboard.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                dashboard.DynamicConfigValue("custom.fillOpacity", 0),
                dashboard.DynamicConfigValue("custom.stacking", {"mode": "none"}),
            ],
        )
    )
    if stack:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if most is not None:
        panel.min(0).max(most)
    if marks:
        panel.thresholds(_thresholds("transparent", marks)).thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        )
    if right is not None:
        panel.override_by_regexp(
            f"^{right[0]}.*",
            [
                dashboard.DynamicConfigValue("unit", right[1]),
                dashboard.DynamicConfigValue("custom.axisPlacement", "right"),
            ],
        )
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_range(query, letter))
    return panel


def value(
    title: str,
    answers: str,
    query: Query,
    *,
    unit: str,
    colour: str = "text",
    steps: Steps = (),
    span: int = 6,
) -> Panel:
    """One number per series, as it is now; `colour` below the first of `steps`."""
    return (
        stat.Panel()
        .title(title)
        .description(answers)
        .datasource(SOURCE)
        .span(span)
        .height(HEIGHT // 2)
        .unit(unit)
        .graph_mode(common.BigValueGraphMode.AREA)
        .thresholds(_thresholds(colour, steps))
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_range(query, "A"))
    )


def heat(title: str, answers: str, buckets: str, *, unit: str, span: int = 12) -> Panel:
    """How often a histogram's buckets were hit over time, whatever their edges are."""
    query = (
        prometheus.Dataquery()
        .expr(f"sum by (le) ({buckets})")
        .format(PromQueryFormat.HEATMAP)
        .legend_format("{{le}}")
        .range()
        .ref_id("A")
    )
    return (
        heatmap.Panel()
        .title(title)
        .description(answers)
        .datasource(SOURCE)
        .span(span)
        .height(HEIGHT)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .show_legend()
        .show_tooltip()
        .with_target(query)
    )


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table; green below the first of `steps`, if there are any."""

    title: str
    expr: str
    unit: str
    steps: Steps = ()


def grid(
    title: str,
    answers: str,
    *columns: Column,
    labels: dict[str, str],
    sort: str,
    descending: bool = True,
    nothing: str = "",
    span: int = 24,
) -> Panel:
    """
    A table of what is now: one row per combination of `labels` (label to column title), one
    column per query; the largest of column `sort` on top. `nothing` is what an empty one says.
    """
    names = {f"Value #{letter}": c.title for letter, c in zip("ABCDEFGH", columns, strict=False)}
    organise = dashboard.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": {"Time": True},
            "indexByName": {name: i for i, name in enumerate((*labels, *names))},
            "renameByName": {**labels, **names},
        },
    )
    panel = (
        table.Panel()
        .title(title)
        .description(answers)
        .datasource(SOURCE)
        .span(span)
        .height(HEIGHT)
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(organise)
        .sort_by([common_builders.TableSortByFieldState().display_name(sort).desc(descending)])
    )
    if nothing:
        panel.no_value(nothing)
    for letter, column in zip("ABCDEFGH", columns, strict=False):
        panel.with_target(
            prometheus.Dataquery()
            .expr(column.expr)
            .format(PromQueryFormat.TABLE)
            .instant()
            .ref_id(letter)
        )
        panel.override_by_name(column.title, _look(column))
    return panel


def _thresholds(colour: str, steps: Steps) -> builders.ThresholdsConfig:
    """Without them Grafana paints what is above 80 red, whatever it is."""
    whole: list[tuple[float | None, str]] = [(None, colour), *steps]
    return (
        builders.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value=least, color=c) for least, c in whole])
    )


def _look(column: Column) -> list[dashboard.DynamicConfigValue]:
    look = [dashboard.DynamicConfigValue("unit", column.unit)]
    if column.steps:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        steps += [{"color": colour, "value": least} for least, colour in column.steps]
        look.append(
            dashboard.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps})
        )
        look.append(dashboard.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    return look


def _range(query: Query, letter: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().expr(query.expr).legend_format(query.legend).range().ref_id(letter)
    )


def _variable(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": f"{name}-values"})
        .datasource(SOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(ALL)
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )


VARIABLES = {
    "datasource": builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
    "namespace": _variable(
        "namespace", "Namespace", "label_values(sloserve_slo_objective_ratio, namespace)"
    ),
    "service": _variable(
        "service",
        "Service",
        'label_values(sloserve_slo_objective_ratio{namespace=~"$namespace"}, service)',
    ),
    "slo_class": _variable(
        "slo_class", "Class", f"label_values(sloserve_slo_objective_ratio{{{SERVICE}}}, slo_class)"
    ),
    "replica": _variable(
        "replica", "Replica", f"label_values(sloserve_replica_info{{{SERVICE}}}, replica)"
    ),
}


def board(name: str, title: str, about: str, *variables: str) -> builders.Dashboard:
    """An empty board; `name` is its file and, after `sloserve-`, its fixed uid."""
    empty = (
        builders.Dashboard(f"sloserve / {title}")
        .uid(f"sloserve-{name}")
        .description(about)
        .tags(["sloserve"])
        .readonly()
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("sloserve boards")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags(["sloserve"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in ("datasource", *variables):
        empty.with_variable(VARIABLES[variable])
    return empty
