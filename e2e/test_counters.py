"""What gateways count is what their clients measure."""

from e2e.harness.figures import total
from e2e.harness.saturation import BULK, saturated
from e2e.harness.service import CHAT, Service
from e2e.harness.traffic import Traffic

STRICT = {
    "name": "strict",
    "ttft": {"target": "1s"},
    "tpot": "200ms",
    "objectivePercent": 95,
    "onInfeasible": "Decline",
}
MAX_RUNNING = 8
TOLERANCE = 0.01


def test_the_counters_of_two_gateways_equal_the_clients_own_measurement(service: Service) -> None:
    service.ready(
        sloClasses=[CHAT, STRICT, BULK],
        engine={"maxRunning": MAX_RUNNING},
        gateway={"replicas": 2},
    )
    (replica,) = service.pod_names("replica")
    traffic = Traffic(service, rate=10, output_tokens=30, classes=[CHAT, STRICT], keep_alive=False)
    with traffic:
        traffic.seconds(10)
        with saturated(service, replica, num_requests=MAX_RUNNING):
            traffic.seconds(5)
        traffic.seconds(8)
    judged = traffic.seen.judged

    reports = service.gateway_reports()
    shares = [total(text, "sloserve_slo_requests_total") for text in reports.values()]
    assert len(shares) == 2
    assert min(shares) > 20, "both gateways had their part"
    for slo_class in ("chat", "strict"):
        mine = [j for j in judged if j.slo_class == slo_class and j.eligible]
        attained = sum(j.attained for j in mine)
        assert 0 < attained < len(mine) > 100, "there was something to tell apart"
        counted, kept = (
            sum(total(text, series, slo_class=slo_class, **more) for text in reports.values())
            for series, more in (
                ("sloserve_slo_requests_total", {}),
                ("sloserve_slo_attained_total", {"promise": "all"}),
            )
        )
        assert abs(counted - len(mine)) <= TOLERANCE * len(mine)
        assert abs(kept - attained) <= TOLERANCE * len(mine)
