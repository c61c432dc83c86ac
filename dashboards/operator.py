"""How the operator does: what it changed, what it could not, what it hears."""

from dashboards.panels import RATE, Query, board, lines, quantile, value
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row


def operator() -> Dashboard:
    """For whoever runs the cluster."""
    took = f"rate(sloserve_operator_reconcile_seconds_bucket[{RATE}])"
    return (
        board(
            "operator",
            "Operator",
            "Whether declared services become real ones. A dead operator never stops serving.",
        )
        .with_row(Row("Is it well"))
        .with_panel(
            value(
                "Leaders",
                "Exactly one process holds the Lease; 0: nothing changes in the cluster.",
                Query("sum(sloserve_operator_leader)"),
                unit="none",
                colour="red",
                steps=((1, "green"), (2, "red")),
            )
        )
        .with_panel(
            value(
                "Last news",
                "Time since the leader heard an event or finished a resync.",
                Query(
                    "max(sloserve_operator_event_age_seconds "
                    "and on (job, instance) sloserve_operator_leader == 1)"
                ),
                unit="s",
                colour="green",
                steps=((600, "orange"), (900, "red")),
            )
        )
        .with_panel(
            value(
                "Waiting",
                "Services that wait for a reconcile; growing: the API server is slow.",
                Query("sum(sloserve_operator_queue_length)"),
                unit="none",
            )
        )
        .with_panel(
            value(
                "Failed, 15 min",
                "Reconciles that failed; the operator's log and the service's Events say why.",
                Query('sum(increase(sloserve_operator_reconciles_total{result="failed"}[15m]))'),
                unit="none",
                colour="green",
                steps=((1, "red"),),
            )
        )
        .with_row(Row("What it does"))
        .with_panel(
            lines(
                "Reconciles",
                "By result, per second; at rest all are unchanged.",
                Query(
                    f"sum by (result) (rate(sloserve_operator_reconciles_total[{RATE}]))",
                    "{{result}}",
                ),
                unit="ops",
                stack=True,
            )
        )
        .with_panel(
            lines(
                "Reconcile time",
                "From the cache to the last write: half and 99 % of them.",
                Query(quantile(0.5, took), "p50"),
                Query(quantile(0.99, took), "p99"),
                unit="s",
            )
        )
        .with_panel(
            lines(
                "Writes",
                "Writes to the API server, per second; at rest there is the Lease only.",
                Query(f"sum by (verb) (rate(sloserve_operator_writes_total[{RATE}]))", "{{verb}}"),
                unit="ops",
                stack=True,
            )
        )
        .with_row(Row("What it looks after"))
        .with_panel(
            lines(
                "Conditions that do not hold",
                "Services whose condition is False; `kubectl get slosvc` names them.",
                Query(
                    'max by (condition) (sloserve_operator_services{status="False"})',
                    "{{condition}}",
                ),
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Replicas",
                "Desired and ready, over all services.",
                Query("max by (state) (sloserve_operator_replicas)", "{{state}}"),
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Scaling decisions",
                "Changes of a replica count in an hour, by direction and by what bound.",
                Query(
                    "sum by (direction, constraint) "
                    "(increase(sloserve_operator_scalings_total[1h]))",
                    "{{direction}} {{constraint}}",
                ),
                unit="short",
            )
        )
    )
