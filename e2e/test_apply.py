"""Apply the sample: it becomes Ready, and answers."""

from e2e.harness.service import Service


def test_an_applied_service_becomes_ready_and_answers(service: Service) -> None:
    service.ready(replicas=2)
    answer = service.complete(headers={"x-slo-class": "chat"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slo-decision"] == "admitted"
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert service.status()["ready"] == "2/2"
