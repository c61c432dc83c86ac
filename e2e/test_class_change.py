"""Classes are changed under traffic: no pod restarts, no request fails."""

from e2e.harness.service import CHAT, Service
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

CODE = {"name": "code", "ttft": {"target": "1s"}, "tpot": "150ms", "objectivePercent": 90}
SOON_S = 20
"""From `kubectl apply` to a class that is served: seconds, not the minute of a kubelet."""


def test_classes_come_change_and_go_without_a_restart(service: Service) -> None:
    service.ready(replicas=2, gateway={"replicas": 2})
    before = starts(service)
    with Traffic(service, rate=1, output_tokens=60) as traffic:
        traffic.more(3)
        refused = service.complete(headers={"x-slo-class": "code"})
        assert refused.status_code == 400, refused.text
        assert "chat" in refused.json()["error"]["message"], "it names the classes there are"

        looser = {**CHAT, "tpot": "250ms"}
        service.change(sloClasses=[looser, CODE], defaultClass="code")
        until(lambda: served(service, "code"), "the new class is served", timeout_s=SOON_S)
        service.wait_ready(timeout_s=60)
        generation = service.object()["metadata"]["generation"]
        assert service.status()["observedGeneration"] == generation
        for _ in range(6):  # through both gateways
            answer = service.complete(headers={"x-slo-class": "code"})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-slo-ttft-ms"] == "1000"
            assert service.complete().headers["x-slo-class"] == "code", "the default changed"

        service.change(sloClasses=[CHAT], defaultClass="chat")
        until(lambda: not served(service, "code"), "the class goes", timeout_s=SOON_S)
        service.wait_ready(timeout_s=60)
        for _ in range(6):
            refused = service.complete(headers={"x-slo-class": "code"})
            assert refused.status_code == 400, refused.text
            error = refused.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert "code" in error["message"]
            assert "chat" in error["message"]
            assert service.complete().headers["x-slo-class"] == "chat"
        assert service.status()["observedGeneration"] == generation + 1
        traffic.more(3)
    assert traffic.seen.lost == []
    assert starts(service) == before, "pods were replaced or restarted"


def served(service: Service, slo_class: str) -> bool:
    """Whether a request of the class is answered."""
    return service.complete(headers={"x-slo-class": slo_class}).status_code == 200


def starts(service: Service) -> set[tuple[str, int]]:
    """Every process there is: its pod, and how often it was started again."""
    return {
        (pod["metadata"]["uid"], status["restartCount"])
        for part in ("replica", "gateway")
        for pod in service.pods(part)
        for status in pod["status"]["containerStatuses"]
    }
