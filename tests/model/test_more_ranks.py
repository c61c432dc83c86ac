"""Four processes say what one says, and two say it in 16 bits as well as one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.parted import ENGINE, MODEL, VOCABULARY, a_config, saved
from torch import Tensor
from transformers import AutoModelForCausalLM

from sloserve.model.load import load_runner
from sloserve.model.parallel.ranks import Ranks

PROMPTS = ([7 + i % 40 for i in range(33)], [5, 9, 200, 31, 8])
NUM_OUTPUT = 12


@contextmanager
def spread(folder: Path, *, num_ranks: int, dtype: str) -> Iterator[Any]:
    """A runner of that model over so many processes."""
    ranks = Ranks(num_ranks, device=torch.device("cpu"), threads=1)
    try:
        ranks.join(timeout_s=120)
        engine = replace(ENGINE, dtype=dtype, threads=num_ranks, tensor_parallel_size=num_ranks)
        runner = load_runner(folder, model=MODEL, engine=engine, ranks=ranks)
        yield runner
        runner.close()
    finally:
        ranks.close()


def plain(folder: Path, dtype: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=getattr(torch, dtype)
    )


@torch.inference_mode()
def logits_of(model: Any, prompt: list[int], tokens: list[int]) -> Tensor:
    """(tokens, vocabulary): what each of `tokens` was drawn from."""
    ids = torch.tensor([prompt + tokens[:-1]])
    found: Tensor = model(ids).logits[0, len(prompt) - 1 :, :VOCABULARY].float()
    return found


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("llama", {}), ("mixtral", {"num_local_experts": 4})],
    ids=["llama", "mixtral"],
)
def test_four_ranks_say_what_one_says(
    kind: str, changes: dict[str, Any], tmp_path: Path, a_talk: Any, a_service: Any
) -> None:
    folder = saved(a_config(kind, num_key_value_heads=4, **changes), tmp_path)
    with spread(folder, num_ranks=4, dtype="float32") as runner:
        assert {shape.num_kv_heads for shape in runner.cache.shapes} == {1}
        service = a_service(runner, num_blocks=40, max_batch_tokens=27)
        heard = service.run(*(a_talk(list(p), num_output=NUM_OUTPUT) for p in PROMPTS))
    whole = plain(folder, "float32")
    for prompt, (tokens, logits) in zip(PROMPTS, heard, strict=True):
        expected = logits_of(whole, prompt, tokens)
        assert float((logits - expected).abs().max()) < 1e-4
        assert tokens == expected.argmax(-1).tolist()


def test_two_ranks_are_as_exact_in_bfloat16_as_one_process(
    tmp_path: Path, a_talk: Any, a_service: Any
) -> None:
    folder = saved(a_config("llama"), tmp_path)
    with spread(folder, num_ranks=2, dtype="bfloat16") as runner:
        service = a_service(runner, num_blocks=40, max_batch_tokens=27)
        heard = service.run(*(a_talk(list(p), num_output=NUM_OUTPUT) for p in PROMPTS))
    exact, rounded = plain(folder, "float32"), plain(folder, "bfloat16")
    for prompt, (tokens, logits) in zip(PROMPTS, heard, strict=True):
        assert len(tokens) == NUM_OUTPUT
        right = logits_of(exact, prompt, tokens)
        theirs = (logits_of(rounded, prompt, tokens) - right).square().mean().sqrt()
        ours = (logits.float() - right).square().mean().sqrt()
        assert 0.0 < float(ours) < 1.5 * float(theirs)
