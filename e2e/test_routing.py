"""A request goes to a replica that can keep its promise, not to one that can't."""

from e2e.harness.figures import takes
from e2e.harness.saturation import BULK, saturated
from e2e.harness.service import Service
from e2e.harness.waiting import until

TIGHT = {
    "name": "tight",
    "ttft": {"target": "500ms"},
    "tpot": "100ms",
    "objectivePercent": 95,
}
PROMPT_TOKENS, MAX_RUNNING, NUM_REQUESTS = 200, 4, 10


def test_a_tight_class_goes_to_the_replica_that_can_still_promise(service: Service) -> None:
    service.ready(
        replicas=2,
        sloClasses=[TIGHT, BULK],
        engine={"maxRunning": MAX_RUNNING},
        defaultClass="tight",
    )

    def able() -> set[str]:
        """Replicas whose frontier holds such a prompt."""
        reports = service.replica_reports()
        return {
            pod
            for pod, text in reports.items()
            if takes(text, "tight", prompt_tokens=PROMPT_TOKENS)
        }

    both = service.pod_names("replica")
    until(lambda: able() == both, "both replicas can promise")
    favourite = ask(service)
    (other,) = both - {favourite}
    with saturated(service, favourite, num_requests=MAX_RUNNING):
        until(lambda: able() == {other}, f"only {other} can promise", timeout_s=20)
        assert [ask(service) for _ in range(NUM_REQUESTS)] == [other] * NUM_REQUESTS
    until(lambda: able() == both, f"{favourite} can promise again", timeout_s=30)


def ask(service: Service) -> str:
    """The replica that kept the promise of one more request, asked first."""
    answer = service.complete(prompt_tokens=PROMPT_TOKENS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slo-decision"] == "admitted"
    assert answer.headers["x-slo-hops"] == "1"
    return answer.headers["x-slo-replica"]
