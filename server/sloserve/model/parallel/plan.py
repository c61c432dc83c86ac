"""Whether a model can be shared out over ranks, by the plan that transformers gives its family."""

import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from sloserve.errors import BadInput
from sloserve.slo.service import EngineSpec

FIELD = "engine.tensorParallelSize"

PARTED = "colwise"
JOINED = frozenset({"colwise_gather_output", "colwise_rep"})
SUMMED = frozenset({"rowwise", "rowwise_split_input", "rowwise_rep"})
WHOLE_INPUT = frozenset({"rowwise_split_input", "rowwise_rep"})
EMBEDDING = "embedding_rowwise"
EXPERTS = "moe_tp_experts"
PACKED = frozenset({"packed_colwise", "packed_rowwise"})
NOTHING_TO_DO = frozenset({"replicate", "replicated_with_grad_allreduce", "local_params"})
KNOWN = JOINED | SUMMED | PACKED | NOTHING_TO_DO | {PARTED, EMBEDDING, EXPERTS}
"""Styles of plan rules that are carried out here; a model with another is refused by its name."""

_HEADS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")


def generic(name: str) -> str:
    """A module's or parameter's name as plans write it: layer numbers are `*`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def check_request(engine: EngineSpec, *, adapters: Collection[str]) -> None:
    """Refuse what this machine, or `adapters` over the model, rule out. Raises BadInput."""
    size = engine.tensor_parallel_size
    if find_spec("transformers.distributed.tensor_parallel") is None:
        raise BadInput(
            "needs a newer transformers (5.23 is tested), which loads a model in parts; this one "
            "has no transformers.distributed; allowed here: 1",
            field=FIELD,
        )
    if not torch.distributed.is_available():
        raise BadInput("this build of torch has no torch.distributed; allowed here: 1", field=FIELD)
    if adapters:
        raise BadInput(
            f"{size} ranks and LoRA adapters (model.lora) don't go together yet: an adapter's "
            "matrices are not cut as the plan cuts the model's. Take 1, or merge one into it",
            field=FIELD,
        )
    num_seen = torch.cuda.device_count()
    if engine.device == "cuda" and size > num_seen:
        raise BadInput(
            f"{size} GPUs are asked for and torch sees {num_seen}; allowed here: 1 to {num_seen}. "
            "Lower it, or show the replica more GPUs (CUDA_VISIBLE_DEVICES, resources)",
            field=FIELD,
        )
    if engine.device == "cpu" and num_seen:
        raise BadInput(
            f"{size} ranks on CPU where torch sees GPUs: transformers would load the parts there. "
            "Set engine.device to cuda, or hide the GPUs (CUDA_VISIBLE_DEVICES=)",
            field=FIELD,
        )


def check_model(config: PreTrainedConfig, *, size: int) -> None:
    """Refuse a model that can't be cut into `size` equal parts. Raises BadInput with the reason."""
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput(
            f"the checkpoint is quantised, and such weights are not cut into {size} parts yet; "
            "take 1, or a checkpoint in bfloat16",
            field=FIELD,
        )
    with torch.device("meta"):
        network: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    name = type(network).__name__
    plan: Mapping[str, str] = getattr(network, "tp_plan", None) or {}
    if not plan:
        raise BadInput(
            f"transformers has no tensor parallel plan for {name} (no base_model_tp_plan); "
            "allowed for this model: 1",
            field=FIELD,
        )
    if strange := sorted({f"{key} ({style})" for key, style in plan.items() if style not in KNOWN}):
        raise BadInput(
            f"the tensor parallel plan of {name} cuts {strange[0]} in a way that is not known "
            f"here (known: {', '.join(sorted(KNOWN))}); allowed for this model: 1",
            field=FIELD,
        )
    _check_heads(config.get_text_config(), plan, size=size, name=name)
    _check_packed(network, plan, size=size, name=name)


def _check_heads(
    config: PreTrainedConfig, plan: Mapping[str, str], *, size: int, name: str
) -> None:
    """Every rank gets the same number of query heads, and of key/value heads."""
    if not any(k.endswith(_HEADS) and style == PARTED for k, style in plan.items()):
        return  # every rank attends with all heads
    heads: int = config.num_attention_heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    if heads % size or kv_heads % size:
        fitting = [n for n in range(1, kv_heads + 1) if heads % n == 0 and kv_heads % n == 0]
        raise BadInput(
            f"{name} has {heads} attention heads over {kv_heads} key/value heads, which {size} "
            "ranks can't share equally (a key/value head is not cut, nor held twice); allowed for "
            f"this model: {', '.join(map(str, fitting))}",
            field=FIELD,
        )


def _check_packed(network: nn.Module, plan: Mapping[str, str], *, size: int, name: str) -> None:
    """Halves that lie in one matrix are cut one by one, into equal parts."""
    for where, parameter in network.named_parameters():
        if plan.get(generic(where)) in PACKED:
            at = -1 if plan[generic(where)] == "packed_rowwise" else -2
            half = parameter.shape[at] // 2
            if half % size:
                raise BadInput(
                    f"{name}: the {half} features of each half of {where} can't be cut into {size} "
                    "equal parts; take a size that divides them",
                    field=FIELD,
                )
