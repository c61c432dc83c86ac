"""Whether kernels and graphs of a GPU say what the plain ones say."""

from dataclasses import replace

import torch
from bench.gpu_model import GREEDY, chunk_row

from sloserve.engine.runner import StepRow
from sloserve.errors import BadInput
from sloserve.model.batch import build_batch
from sloserve.model.choice import choose_path
from sloserve.model.cuda_runner import GraphRunner
from sloserve.model.kv import KvCache
from sloserve.model.runner import TorchRunner, forward


def same_logits(runner: TorchRunner) -> dict[str, float]:
    """
    The largest difference of a logit on one mixed step, against torch's kernels, by path; as a
    share of the largest logit.
    """
    cache, found = runner.cache, dict[str, float]()
    last = min(450, runner.facts.max_model_len - 1)
    logits: dict[str, torch.Tensor] = {}
    for name in ("torch", "triton", "flash-attn"):
        try:
            path = choose_path(
                name,
                device=cache.device,
                dtype=cache.dtype,
                layers=cache.shapes,
            )
        except BadInput as error:
            print(f"  not {name}: {error.message}")
            continue
        pages = -(-last // path.block_size)
        own = KvCache(
            cache.shapes,
            num_blocks=4 * pages,
            block_size=path.block_size,
            dtype=cache.dtype,
            device=cache.device,
            path=path,
        )
        kept: list[torch.Tensor] = []
        for ends in ((last - 1, last // 2, 20), (last, last, 21)):  # prompts, then a mixed step
            rows = [
                replace(
                    chunk_row(runner, end, 0),
                    start=start,
                    count=end - start,
                    tokens=[(5 * k + i) % runner.facts.vocab_size for k in range(last)],
                    block_table=range(i * pages, (i + 1) * pages),
                )
                for i, (start, end) in enumerate(
                    zip((0, 0, 0) if not kept else (last - 1, last // 2, 20), ends, strict=True)
                )
            ]
            batch = build_batch(rows, block_size=path.block_size, device=cache.device)
            with torch.inference_mode():
                kept.append(forward(runner.model, batch, own).float())
        logits[name] = torch.cat(kept)
        found[name] = float(
            (logits[name] - logits["torch"]).abs().max() / logits["torch"].abs().max()
        )
    return found


def answers(runner: TorchRunner, *, num_tokens: int) -> list[list[int]]:
    """Greedy answers to five prompts, side by side."""
    known = [[(11 * k + i) % runner.facts.vocab_size for k in range(20 + 30 * i)] for i in range(5)]
    pages = -(-(len(known[-1]) + num_tokens) // runner.facts.block_size)
    for number in range(num_tokens):
        rows = [
            StepRow(
                request_id=i,
                tokens=tokens,
                num_prompt=len(tokens) - number,
                start=len(tokens) - 1 if number else 0,
                count=1 if number else len(tokens),
                block_table=range(i * pages, (i + 1) * pages),
                sample=True,
                sampling=GREEDY,
            )
            for i, tokens in enumerate(known)
        ]
        for tokens, sampled in zip(known, runner.step(rows), strict=True):
            assert sampled.token_id is not None
            tokens.append(sampled.token_id)
    for i in range(len(known)):
        runner.forget(i)
    return [tokens[-num_tokens:] for tokens in known]


def same_answers(runner: TorchRunner, *, num_tokens: int = 32) -> tuple[int, int] | None:
    """
    Tokens up to the first difference, over all answers, with graphs against without, and how many
    there are. None without graphs. Random weights give logits close to each other: in 16 bits an
    answer may part from the other without being wrong.
    """
    graphs = runner.graphs if isinstance(runner, GraphRunner) else None
    if graphs is None or not graphs.sizes:
        return None
    plain = TorchRunner(runner.model, cache=runner.cache, facts=runner.facts)
    both = zip(answers(runner, num_tokens=num_tokens), answers(plain, num_tokens=num_tokens),
               strict=True)  # fmt: skip
    same = sum(next((k for k in range(num_tokens) if a[k] != b[k]), num_tokens) for a, b in both)
    return same, 5 * num_tokens
