"""What `sloserve up` keeps for a Prometheus beside it."""

import json
import urllib.request
from typing import Any

import yaml


def test_targets_and_rules_follow_the_service(up: Any, manifest: Any, eventually: Any) -> None:
    world = up(manifest, "--plain")
    world.ready(2)

    def targets() -> list[str]:
        (group,) = json.loads((world.state / "targets.json").read_text())
        return list(group["targets"])

    def classes() -> set[str]:
        rules = yaml.safe_load((world.state / "rules.yaml").read_text())
        return {
            rule["labels"]["slo_class"]
            for group in rules["groups"]
            for rule in group["rules"]
            if "record" in rule
        }

    texts = [urllib.request.urlopen(f"http://{t}/metrics", timeout=10).read() for t in targets()]
    assert b"sloserve_gateway_inflight" in texts[0]
    assert [b"sloserve_step_seconds" in text for text in texts] == [False, True, True]
    assert classes() == {"chat"}

    manifest["spec"]["sloClasses"].append({"name": "code", "ttft": {"target": "5s"}, "tpot": "1s"})
    manifest["spec"]["replicas"] = 1
    world.write(manifest)
    eventually(lambda: classes() == {"chat", "code"}, "rules of the new class")
    eventually(lambda: len(targets()) == 2, "the gateway and one replica")
