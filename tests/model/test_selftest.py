"""What an attention that is wrong for the model meets at load time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AttentionInterface, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from sloserve.model import attention
from sloserve.model.attention import paged_attention
from sloserve.model.load import load_runner
from sloserve.model.selftest import Mismatch
from sloserve.model.terms import Unsupported, read_terms
from sloserve.slo.service import EngineSpec

ENGINE = EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000, attention="torch")
Change = Callable[[dict[str, Any]], None]


def a_config(kind: str, **changes: Any) -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING[kind]
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config: PreTrainedConfig = build(**{**sizes, **changes})
    return config


@pytest.fixture
def attend_otherwise(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Our attention function with what it is asked for changed before it is read."""

    def use(change: Change) -> None:
        def changed(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any
        ) -> tuple[Tensor, None]:
            given = {**given, "module": module, "query": query, "key": key, "value": value}
            change(given)
            return paged_attention(attention_mask=mask, **given)

        monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, changed)

    return use


def without(name: str) -> Change:
    def change(given: dict[str, Any]) -> None:
        given[name] = None

    return change


def one_key_more(given: dict[str, Any]) -> None:
    if given["sliding_window"] is not None:
        given["sliding_window"] += 1


def another_scaling(given: dict[str, Any]) -> None:
    given["scaling"] *= 1.05


def the_neighbours_key(given: dict[str, Any]) -> None:
    given["key"] = given["key"].roll(1, dims=2)


MISTRAL: dict[str, Any] = {"kind": "mistral", "sliding_window": 16}
LONG_WINDOW: dict[str, Any] = {"kind": "mistral", "sliding_window": 400}
GEMMA2: dict[str, Any] = {"kind": "gemma2", "attn_logit_softcapping": 2.0}
GPT_OSS: dict[str, Any] = {"kind": "gpt_oss", "sliding_window": 400, "num_local_experts": 4}


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ({"kind": "llama"}, another_scaling),
        ({"kind": "llama"}, the_neighbours_key),
        (MISTRAL, without("sliding_window")),
        (MISTRAL, one_key_more),
        (LONG_WINDOW, without("sliding_window")),
        (LONG_WINDOW, one_key_more),
        (GPT_OSS, one_key_more),
        (GPT_OSS, without("s_aux")),
        (GEMMA2, without("softcap")),
    ],
    ids=lambda it: it["kind"] if isinstance(it, dict) else getattr(it, "__name__", None),
)
def test_a_model_is_refused_by_name_when_attention_is_not_what_it_asks_for(
    model: dict[str, Any],
    fault: Change,
    a_folder: Any,
    a_model_spec: Any,
    attend_otherwise: Callable[[Change], None],
) -> None:
    config = a_config(**model)
    folder = a_folder(config)
    load_runner(folder, model=a_model_spec(), engine=ENGINE).close()  # as it is, it is served
    attend_otherwise(fault)
    with pytest.raises(Mismatch, match=rf"(?i){model['kind'].replace('_', '')}\w* can't be served"):
        load_runner(folder, model=a_model_spec(), engine=ENGINE)


def test_a_window_past_the_tokens_of_the_test_is_told_in_keys(
    a_folder: Any, a_model_spec: Any, attend_otherwise: Callable[[Change], None]
) -> None:
    attend_otherwise(one_key_more)
    with pytest.raises(Mismatch, match=r"window of 400, .* sees 8\.0 of 16 .* 7 are right"):
        load_runner(a_folder(a_config(**LONG_WINDOW)), model=a_model_spec(), engine=ENGINE)


def test_a_request_that_looks_at_its_neighbours_is_refused(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nosy(*args: Any, **given: Any) -> tuple[Tensor, None]:
        out, none = paged_attention(*args, **given)
        return (out + 0.01 * out[:, -1:] if out.shape[1] > 2 else out), none

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, nosy)
    with pytest.raises(Mismatch, match="LlamaForCausalLM can't be served"):
        load_runner(a_folder(a_config("llama")), model=a_model_spec(), engine=ENGINE)


def test_a_model_that_goes_wrong_only_at_far_positions_is_refused(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(*args: Any, **given: Any) -> tuple[Tensor, None]:
        out, none = paged_attention(*args, **given)
        return out * (1 + 0.1 * (given["position_ids"] > 400)[..., None, None]), none

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, scaled)
    with pytest.raises(Mismatch, match="LlamaForCausalLM can't be served"):
        load_runner(a_folder(a_config("llama")), model=a_model_spec(), engine=ENGINE)


def test_a_model_that_asks_for_something_unknown_is_refused_by_its_name(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = LlamaAttention.forward

    def asking(self: LlamaAttention, *args: Any, **given: Any) -> Any:
        return plain(self, *args, **given, entmax_alpha=1.5)

    monkeypatch.setattr(LlamaAttention, "forward", asking)
    with pytest.raises(Unsupported, match=r"LlamaForCausalLM, layer 0: .* entmax_alpha"):
        load_runner(a_folder(a_config("llama")), model=a_model_spec(), engine=ENGINE)


def test_terms_are_read_from_what_transformers_passes() -> None:
    sinks = torch.zeros(4)
    given = {
        "scaling": 0.5,
        "dropout": 0.0,
        "sliding_window": 8,
        "softcap": 30.0,
        "s_aux": sinks,
        "position_ids": torch.zeros(1, 3),
        "is_causal": True,
        "use_cache": False,
        "position_bias": None,
        "whatever": False,
    }
    terms = read_terms(given, num_heads=4, key_size=16)
    assert (terms.scaling, terms.window, terms.softcap) == (0.5, 8, 30.0)
    assert terms.sinks is not None
    assert terms.sinks.shape == (4,)
    assert not terms.plain
    least = read_terms({"scaling": None, "sliding_window": None}, num_heads=4, key_size=16)
    assert (least.scaling, least.window, least.plain) == (0.25, None, True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
        ({"dropout": 0.1}, "dropout"),
        ({"indices": [1]}, "indices"),
        ({"scaling": torch.ones(4)}, r"scaling .* tensor of shape \(4,\)"),
        ({"sliding_window": 0}, "sliding_window that is 0"),
        ({"softcap": -1.0}, r"softcap that is -1\.0"),
        ({"s_aux": torch.zeros(4, 2)}, r"sinks .* shape \(4, 2\).* 4 heads"),
    ],
)
def test_terms_that_are_not_computed_here_are_refused_by_name(
    given: dict[str, object], told: str
) -> None:
    with pytest.raises(Unsupported, match=told):
        read_terms(given, num_heads=4, key_size=16)


def test_a_mask_of_the_models_own_is_refused(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masked(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **given: Any
    ) -> tuple[Tensor, None]:
        return paged_attention(module, query, key, value, torch.zeros(1, 1, 2, 2), **given)

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, masked)
    with pytest.raises(Unsupported, match=r"mixed batch fails: .* a mask that the model made"):
        load_runner(a_folder(a_config("llama")), model=a_model_spec(), engine=ENGINE)
