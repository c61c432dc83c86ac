"""Numbers out of Prometheus text."""

from prometheus_client.parser import text_string_to_metric_families


def total(text: str, series: str, **labels: str) -> float:
    """The sum of the samples of a series that have these labels; 0 when there are none."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == series and labels.items() <= sample.labels.items()
    )


def takes(replica_report: str, slo_class: str, *, prompt_tokens: int) -> bool:
    """Whether the frontier that a replica exports holds a prompt of the class."""
    least, most = (
        total(replica_report, "sloserve_frontier_prompt_tokens", slo_class=slo_class, bound=bound)
        for bound in ("min", "max")
    )
    return least <= prompt_tokens <= most
