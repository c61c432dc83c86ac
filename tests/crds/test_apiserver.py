"""The samples and every odd value against a real API server, with strict field validation."""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

kubernetes = pytest.importorskip(
    "kubernetes", reason="the kubernetes package is missing: pip install 'sloserve[operator]'"
)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not os.environ.get("KUBECONFIG"), reason="needs a Kubernetes cluster: set KUBECONFIG"
    ),
]
CREATE = "/apis/sloserve.io/v1alpha1/namespaces/default/sloservices"

Answer = Callable[[Any], str]


@pytest.fixture(scope="module")
def refused(root: Path) -> Iterator[Answer]:
    """What an API server refuses a manifest for (dry run); empty when it would be stored."""
    import yaml

    kubernetes.config.load_kube_config(os.environ["KUBECONFIG"])
    api = kubernetes.client.ApiClient()
    manifest = yaml.safe_load((root / "crds" / "sloservices.sloserve.io.yaml").read_text())

    def call(method: str, path: str, body: Any, kind: str, **query: str) -> tuple[int, str]:
        request = api.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": kind},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = api.call_api(*request, _request_timeout=30)
        return response.status, response.read().decode()

    where = (
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + manifest["metadata"]["name"]
    )
    status, said = call(
        "PATCH", where, manifest, "application/apply-patch+yaml", fieldManager="test", force="true"
    )
    assert status in (200, 201), said
    watch = kubernetes.watch.Watch()
    crds = kubernetes.client.ApiextensionsV1Api(api)
    for event in watch.stream(
        crds.list_custom_resource_definition,
        field_selector=f"metadata.name={manifest['metadata']['name']}",
        timeout_seconds=60,
    ):
        conditions = event["object"].status.conditions or []
        if any(c.type == "Established" and c.status == "True" for c in conditions):
            watch.stop()

    def answer(manifest: Any) -> str:
        code, said = call(
            "POST", CREATE, manifest, "application/json", dryRun="All", fieldValidation="Strict"
        )
        return "" if code == 201 else str(json.loads(said)["message"])

    yield answer
    if status == 201:  # it was not there before
        call("DELETE", where, None, "application/json")
        while call("GET", where, None, "application/json")[0] != 404:
            time.sleep(0.1)


def test_an_api_server_accepts_every_valid_sample(valid: list[Any], refused: Answer) -> None:
    said = {sample.name: refused(sample.manifest) for sample in valid}
    assert said == {sample.name: "" for sample in valid}


def test_an_api_server_refuses_every_invalid_sample_with_the_announced_message(
    invalid: list[Any], refused: Answer
) -> None:
    for sample in invalid:
        assert sample.said["cluster"] in refused(sample.manifest), sample.name


@pytest.mark.slow
def test_an_api_server_and_the_parser_give_the_same_verdict_on_every_odd_value(
    odd: list[tuple[str, Any, Any]], refused: Answer, parser_says: Callable[[Any], str]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(refused, [manifest for _, _, manifest in odd])
        disagreed = [
            (name, value, said, answer)
            for (name, value, manifest), answer in zip(odd, answers, strict=True)
            if bool(said := parser_says(manifest)) != bool(answer)
        ]
    assert disagreed == []
