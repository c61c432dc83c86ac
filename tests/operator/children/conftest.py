"""What is rendered for a service."""

from collections.abc import Callable
from typing import Any

import pytest

from sloserve.slo import parse_service
from sloserve_operator.api import Obj, Ref, owner_reference, ref_of
from sloserve_operator.children import render
from sloserve_operator.children.subject import Subject
from sloserve_operator.settings import OperatorSettings

OPTIONAL_KINDS = frozenset({"PodMonitor", "PrometheusRule"})


@pytest.fixture
def children(manifest: Callable[..., Obj]) -> Callable[..., dict[Ref, Obj]]:
    """`children(engine={...})`: what is rendered for such a service, by kind and name."""

    def make(
        settings: OperatorSettings | None = None,
        kinds: frozenset[str] = OPTIONAL_KINDS,
        **spec: Any,
    ) -> dict[Ref, Obj]:
        service = manifest(**spec)
        parsed = parse_service(service)
        subject = Subject(
            parsed, owner_reference(service), settings or OperatorSettings(), parsed.replicas,
            kinds=kinds,
        )  # fmt: skip
        return {ref_of(child): child for child in render(subject)}

    return make
