"""podTemplate over a pod template, and quantities as the API server writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve_operator.api import Obj
from sloserve_operator.overlay import lay_over
from sloserve_operator.quantity import canonical, resources

BASE: Obj = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [
            {
                "name": "main",
                "env": [{"name": "X", "value": "1"}, {"name": "Y", "valueFrom": {"f": 1}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "args": ["a", "b"],
            }
        ],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "k"}],
    },
}


def over(overlay: Obj) -> Obj:
    return lay_over(BASE, overlay, selector={"s": "1"}, field="spec.engine.podTemplate")


def test_maps_merge_named_lists_merge_by_name_and_others_are_replaced() -> None:
    merged = over(
        {
            "metadata": {"labels": {"b": "2"}, "annotations": {"x": "y"}},
            "spec": {
                "nodeSelector": {"gpu": "yes"},
                "containers": [
                    {
                        "name": "main",
                        "env": [{"name": "Y", "value": "2"}, {"name": "Z", "value": "3"}],
                        "volumeMounts": [{"name": "v", "mountPath": "/w"}],
                        "args": ["c"],
                    },
                    {"name": "sidecar", "image": "s"},
                ],
                "tolerations": [{"key": "other"}],
            },
        }
    )
    assert merged["metadata"] == {"labels": {"a": "1", "b": "2"}, "annotations": {"x": "y"}}
    main, sidecar = merged["spec"]["containers"]
    assert main["env"] == [
        {"name": "X", "value": "1"},
        {"name": "Y", "value": "2"},
        {"name": "Z", "value": "3"},
    ]
    assert [m["mountPath"] for m in main["volumeMounts"]] == ["/v", "/w"]
    assert main["args"] == ["c"]
    assert sidecar["name"] == "sidecar"
    assert merged["spec"]["tolerations"] == [{"key": "other"}]
    assert merged["spec"]["volumes"] == BASE["spec"]["volumes"]


def test_null_removes_and_nothing_changes_nothing() -> None:
    assert "tolerations" not in over({"spec": {"tolerations": None}})["spec"]
    assert over({}) == BASE


@pytest.mark.parametrize("overlay", [{"spec": 1}, {"spec": {"volumes": {}}}, {"env": []}])
def test_what_does_not_fit_is_refused_with_its_place(overlay: Obj) -> None:
    with pytest.raises(BadInput, match=r"spec\.engine\.podTemplate"):
        over(overlay)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("1", "1"), (1, "1"), ("1000m", "1"), ("1500m", "1500m"), ("0.5", "500m"), (0.25, "250m"),
        ("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"), ("1000", "1k"), ("8Gi", "8Gi"), ("0", "0"),
        ("0.5Ki", "512"), ("1e3", "1e3"), ("1500M", "1500M"), ("1000M", "1G"), ("100Mi", "100Mi"),
        ("512Ki", "512Ki"), ("2000m", "2"),
    ],
)  # fmt: skip
def test_quantities_are_written_as_the_api_server_stores_them(written: object, stored: str) -> None:
    assert canonical(written, field="x") == stored


@given(st.integers(0, 10**9), st.sampled_from(["", "m", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_the_canonical_form_is_its_own(number: int, unit: str) -> None:
    once = canonical(f"{number}{unit}", field="x")
    assert canonical(once, field="x") == once


@pytest.mark.parametrize("wrong", ["", "GB", "1 Gi", True, "1Q"])
def test_what_is_no_quantity_is_refused(wrong: object) -> None:
    with pytest.raises(BadInput, match="quantity"):
        canonical(wrong, field="spec.engine.resources.limits.cpu")


def test_empty_parts_of_resources_are_left_out() -> None:
    assert resources({"limits": {"cpu": "2000m"}, "requests": {}}, field="r") == {
        "limits": {"cpu": "2"}
    }
