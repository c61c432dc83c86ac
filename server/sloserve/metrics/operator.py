"""What the operator exports: sums over all services it looks after, never a series per service."""

from sloserve.metrics.metric import RECONCILE_BUCKETS, Kind, Metric

OPERATOR = (
    Metric(
        "sloserve_operator_reconciles_total",
        Kind.COUNTER,
        "Reconciles by result: unchanged, changed, failed.",
        ("result",),
    ),
    Metric(
        "sloserve_operator_reconcile_seconds",
        Kind.HISTOGRAM,
        "Time of one reconcile, from the cache to the last write.",
        (),
        RECONCILE_BUCKETS,
    ),
    Metric(
        "sloserve_operator_writes_total",
        Kind.COUNTER,
        "Writes to the API server by verb: apply, status, delete, event.",
        ("verb",),
    ),
    Metric(
        "sloserve_operator_scalings_total",
        Kind.COUNTER,
        "Changes of a replica count by direction (up, down) and by the constraint behind them.",
        ("direction", "constraint"),
    ),
    Metric(
        "sloserve_operator_services",
        Kind.GAUGE,
        "Services whose condition has this status (True, False, Unknown).",
        ("condition", "status"),
    ),
    Metric(
        "sloserve_operator_replicas",
        Kind.GAUGE,
        "Replicas of all services by state: desired, ready.",
        ("state",),
    ),
    Metric(
        "sloserve_operator_queue_length",
        Kind.GAUGE,
        "Services that wait for a reconcile.",
    ),
    Metric(
        "sloserve_operator_event_age_seconds",
        Kind.GAUGE,
        "Time since the last watch event or finished resync.",
    ),
    Metric(
        "sloserve_operator_leader",
        Kind.GAUGE,
        "1 while this process holds the Lease.",
    ),
)
