"""Llamas with random weights, and steps to give them."""

from typing import Any, cast

import torch
from bench.roofline import Work
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.runner import TorchRunner

GREEDY = SamplingParams(temperature=0.0)


def config_of(size: str) -> PreTrainedConfig:
    """Llama 3.1 8B and 3.2 1B in shape, and one for tests."""
    shapes: dict[str, dict[str, Any]] = {
        "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
               "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
        "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
               "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
        "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256},
    }  # fmt: skip
    return LlamaConfig(
        **shapes[size],
        max_position_embeddings=8448 if size != "tiny" else 512,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
    )


def random_model(size: str, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Weights from transformers' own initialisation, the same at every run."""
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config_of(size), dtype=dtype
        )
    return model


def work_of(model: PreTrainedModel, *, kv_bytes_per_token: int) -> Work:
    """What its steps move and compute."""
    config = model.config
    head, embeddings = (
        module.weight.numel()
        for module in (
            model.get_output_embeddings(),  # type: ignore[no-untyped-call]
            cast("torch.nn.Embedding", model.get_input_embeddings()),
        )
    )
    return Work(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        head_size=getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        matrix_parameters=sum(p.numel() for p in model.parameters()) - head - embeddings,
        head_parameters=head,
        itemsize=model.dtype.itemsize,
        kv_bytes_per_token=kv_bytes_per_token,
    )


def decode_rows(runner: TorchRunner, num_rows: int, context: int) -> list[StepRow]:
    """Decodes that see `context` keys, their own among them, on pages of their own."""
    pages = -(-context // runner.facts.block_size)
    return [
        StepRow(
            request_id=i,
            tokens=[(7 * k + i) % runner.facts.vocab_size for k in range(context)],
            num_prompt=1,
            start=context - 1,
            count=1,
            block_table=range(i * pages, (i + 1) * pages),
            sample=True,
            sampling=GREEDY,
        )
        for i in range(num_rows)
    ]


def chunk_row(runner: TorchRunner, num_tokens: int, prior: int) -> StepRow:
    """A prefill chunk after `prior` tokens, whose last token is followed by a drawn one."""
    known = prior + num_tokens
    return StepRow(
        request_id=0,
        tokens=[(5 * k) % runner.facts.vocab_size for k in range(known)],
        num_prompt=known,
        start=prior,
        count=num_tokens,
        block_table=range(-(-known // runner.facts.block_size)),
        sample=True,
        sampling=GREEDY,
    )
