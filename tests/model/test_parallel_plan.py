"""What can't be shared out over ranks is refused with the reason, before anything is loaded."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model.batch import lay_out, place
from sloserve.model.load import _kv_budget, load_runner
from sloserve.model.parallel.orders import Leave, Step, as_bytes, from_bytes
from sloserve.model.parallel.plan import check_model, check_request
from sloserve.model.parallel.seat import Seat
from sloserve.model.parallel.wire import packed, unpacked
from sloserve.model.profile import cache_path
from sloserve.slo.service import EngineSpec, ModelSpec

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODEL = ModelSpec(source="file:///model", served_name="m")
PAIR = EngineSpec(tensor_parallel_size=2)


def a_config(kind: str, **changes: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**{**SIZES, **changes})
    return config


def test_models_with_a_plan_whose_heads_can_be_shared_are_taken() -> None:
    for kind in ("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2", "phi3", "olmo2"):
        check_model(a_config(kind), size=2)


@pytest.mark.parametrize(
    ("kind", "changes", "size", "why"),
    [
        ("opt", {}, 2, "no tensor parallel plan for OPTForCausalLM .* allowed for this model: 1"),
        ("gpt2", {}, 2, "no tensor parallel plan for GPT2LMHeadModel"),
        ("llama", {}, 4, r"4 attention heads over 2 key/value heads, which 4 .*model: 1, 2"),
        ("llama", {"num_attention_heads": 6, "hidden_size": 48, "num_key_value_heads": 6}, 4,
         "which 4 ranks can't share equally .* allowed for this model: 1, 2, 3, 6"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, 2, "checkpoint is quantised"),
        ("mixtral", {"intermediate_size": 49, "num_local_experts": 2}, 2,
         "the 49 features of each half of .*gate_up_proj can't be cut into 2 equal parts"),
        ("deepseek_v2", {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                         "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 8}, 2,
         "in a way that is not known here .known: colwise"),
    ],
)  # fmt: skip
def test_a_model_that_can_not_be_cut_is_refused_with_the_reason(
    kind: str, changes: dict[str, Any], size: int, why: str
) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        check_model(a_config(kind, **changes), size=size)
    assert caught.value.field == "engine.tensorParallelSize"


def test_more_gpus_than_there_are_and_adapters_are_refused(monkeypatch: Any) -> None:
    check_request(PAIR, adapters=())
    with pytest.raises(BadInput, match=r"LoRA adapters .* don't go together yet"):
        check_request(PAIR, adapters=["polite"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match=r"2 GPUs are asked for and torch sees 1; .*: 1 to 1"):
        check_request(replace(PAIR, device="cuda"), adapters=())
    with pytest.raises(BadInput, match="2 ranks on CPU where torch sees GPUs"):
        check_request(PAIR, adapters=())


def test_a_model_without_a_plan_is_refused_before_any_process_is_started(
    a_folder: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sloserve.model.parallel.loading.Ranks", None)
    folder = a_folder(a_config("opt", ffn_dim=48, word_embed_proj_dim=32))
    with pytest.raises(BadInput, match="no tensor parallel plan for OPTForCausalLM"):
        load_runner(folder, model=MODEL, engine=PAIR)


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_a_quantised_checkpoint_is_refused_before_any_process_is_started(
    method: str, a_folder: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sloserve.model.parallel.loading.Ranks", None)
    folder = a_folder(a_config("llama"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    said = r"checkpoint is quantised, .* not cut into 2 parts yet; take 1, or .* in bfloat16"
    with pytest.raises(BadInput, match=said) as caught:
        load_runner(folder, model=MODEL, engine=PAIR)
    assert caught.value.field == "engine.tensorParallelSize"


def test_the_other_ranks_compute_the_batch_that_rank_0_computes() -> None:
    sampling = SamplingParams()
    rows = [
        StepRow(1, list(range(40)), 40, 16, 24, [7, 2, 5], True, sampling),
        StepRow(2, list(range(20)), 9, 19, 1, [1, 3], True, sampling, None, 2, (50, 51)),
        StepRow(3, list(range(5)), 9, 4, 1, [0], True, sampling),
    ]
    layout = lay_out(rows, block_size=16)
    order = from_bytes(as_bytes(Step(packed(layout))))
    assert isinstance(order, Step)
    cpu = torch.device("cpu")
    own, other = place(layout, device=cpu), place(unpacked(order.body), device=cpu)
    for name in ("input_ids", "positions", "slots", "keep"):
        assert torch.equal(getattr(own, name), getattr(other, name))
    for name in ("begins", "contexts", "page_begins", "page_list", "num_decodes"):
        assert getattr(own, name) == getattr(other, name)
    assert from_bytes(as_bytes(Leave())) == Leave()


def test_parts_are_those_that_torch_makes_of_a_tensor() -> None:
    for whole, size in ((10, 2), (261, 2), (7, 4), (3, 4), (5, 4)):
        chunks = [len(chunk) for chunk in torch.arange(whole).chunk(size)]
        bounds = [Seat(rank, size).bounds(whole) for rank in range(size)]
        sizes = [end - begin for begin, end in bounds]
        assert sizes == chunks + [0] * (size - len(chunks))


def test_memory_and_threads_of_the_machine_are_shared_by_its_ranks() -> None:
    cpu = torch.device("cpu")
    alone, _ = _kv_budget(EngineSpec(), cpu, num_ranks=1)
    shared, note = _kv_budget(PAIR, cpu, num_ranks=2)
    assert shared < alone / 2
    assert "memory / 2 ranks - " in note
    assert _kv_budget(replace(PAIR, kv_bytes=1000), cpu, num_ranks=2)[0] == 500
    assert Seat(0, 2).share(5) == 2
    assert Seat(1, 2).share(1) == 1


def test_step_times_are_kept_by_the_number_of_ranks(a_world: Any) -> None:
    facts = a_world(a_config("llama")).runner.facts
    paths = {
        cache_path(replace(facts, tensor_parallel_size=n), model="m", threads=2) for n in (1, 2, 4)
    }
    assert len(paths) == 3
