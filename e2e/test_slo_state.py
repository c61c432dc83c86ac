"""The status tells whether promises are kept, and `kubectl sloserve explain` why not."""

from datetime import UTC, datetime

from e2e.harness.service import Service
from e2e.harness.traffic import Traffic

CHAT = {"name": "chat", "ttft": {"target": "20s"}, "tpot": "2s", "objectivePercent": 95}
"""Kept however busy the machine under the cluster is: here it is the telling that counts."""
DREAM = {"name": "dream", "ttft": {"target": "1ms"}, "tpot": "1ms", "objectivePercent": 90}
"""Not even an idle H200 can keep this one."""


def test_kept_promises_show_in_the_status_and_kubectl_can_wait_for_them(service: Service) -> None:
    service.ready(sloClasses=[CHAT])
    assert service.condition("SLOMet")["reason"] == "NoTraffic"
    with Traffic(service, rate=10, output_tokens=10, classes=[CHAT]) as traffic:
        traffic.seconds(4)
    assert traffic.seen.attainment("chat") == 1.0
    service.wait("SLOMet", timeout_s=60)
    status = service.status()
    (chat,) = status["classes"]
    assert chat["attainment5m"] == "100.0"
    assert chat["budgetRemaining"] == "100.0"
    assert chat["feasible"] is True
    (today,) = chat["days"]
    assert today["date"] == datetime.now(UTC).date().isoformat()
    assert 20 <= today["attained"] == today["total"] <= len(traffic.seen.records)
    assert service.condition("SLOFeasible")["status"] == "True"
    row = columns(service.kubectl("get", service.ref))
    assert row["READY"] == "1/1"
    assert row["SLO-MET"] == "True"
    assert row["ATTAINMENT"] == "100.0"
    assert "keeps its promises" in service.explain()


def test_a_class_that_no_idle_replica_can_serve_is_told_with_what_would_help(
    service: Service,
) -> None:
    service.ready(sloClasses=[CHAT, DREAM])
    told = service.until_condition("SLOFeasible", "False", "Infeasible", timeout_s=60)
    assert "dream" in told["message"]
    assert "chat" not in told["message"]
    assert told["message"] in service.explain()

    with Traffic(service, rate=10, output_tokens=10, classes=[DREAM]) as traffic:
        traffic.seconds(4)
    assert traffic.seen.lost == []
    assert traffic.seen.attainment("dream") == 0.0
    missed = service.until_condition("SLOMet", "False", "Missed", timeout_s=60)
    assert "dream 0.0%" in missed["message"]
    feasible = {c["name"]: c["feasible"] for c in service.status()["classes"]}
    assert feasible == {"chat": True, "dream": False}
    said = service.explain()
    assert "does not keep its promises" in said
    assert "loosen it, or serve a smaller model or faster hardware" in said
    assert "dream: 0.0 % in the last 5 minutes, -900.0 % of the error budget left" in said


def columns(table: str) -> dict[str, str]:
    """The first row of a kubectl table, by the names of its columns."""
    head, row = table.splitlines()[:2]
    names = head.split()
    starts = [head.index(name) for name in names]
    ends = [*starts[1:], len(row)]
    cells = [row[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return dict(zip(names, cells, strict=True))
