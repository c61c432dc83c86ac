"""The load-time test: the engine against the model's own plain forward pass, in numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.attention import NAME
from sloserve.model.batch import Batch, build_batch
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.runner import forward
from sloserve.model.structure import use_attention
from sloserve.model.terms import Unsupported

Forward = Callable[[PreTrainedModel, Batch, KvCache], Tensor]

NUM_TOKENS = 300  # 40 miss real faults
FLOAT32_TOLERANCE = 1e-4  # times the largest logit, at least 1
SIXTEEN_BIT_FACTOR = 2.0  # times the error that plain eager shows against float32


class Mismatch(Unsupported):
    """The engine's logits differ from the model's own."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the plain model says to random tokens."""

    tokens: list[int]
    logits: Tensor  # (num_tokens + 1, vocabulary) float32; last: the first token, alone, far off
    tolerance: float  # largest difference allowed in any logit


def reference(model: PreTrainedModel, *, max_model_len: int) -> Reference:
    """
    Logits of 300 random tokens by transformers' `eager` attention, without cache or batch; and of
    the first of them at the last position allowed, with nothing before it.

    Call it before the weights are repacked. In 16 bits the tolerance comes from a float32 pass
    over the same weights, widened in place and narrowed back: the memory of one more copy.
    """
    use_attention(model, "eager")
    num_tokens = min(NUM_TOKENS, max_model_len)
    generator = torch.Generator().manual_seed(20)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, num_tokens), generator=generator)
    last_position = max_model_len - 1
    logits = _plain(model, ids, last_position=last_position)
    if not bool(torch.isfinite(logits).all()):
        raise Mismatch(f"{type(model).__name__}: the plain forward pass gives NaN or infinity")
    narrow = {p: p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    if not narrow:
        tolerance = FLOAT32_TOLERANCE * max(1.0, float(logits.abs().max()))
    else:
        for parameter in narrow:
            parameter.data = parameter.data.float()
        exact = _plain(model, ids, last_position=last_position)
        for parameter, dtype in narrow.items():
            parameter.data = parameter.data.to(dtype)
        tolerance = SIXTEEN_BIT_FACTOR * float((logits - exact).abs().max())
        logits = exact
    return Reference(tokens=ids[0].tolist(), logits=logits, tolerance=tolerance)


def _plain(model: PreTrainedModel, ids: Tensor, *, last_position: int) -> Tensor:
    ids = ids.to(model.device)
    far = torch.full_like(ids[:, :1], last_position)
    try:
        with torch.inference_mode():
            near: Tensor = model(input_ids=ids, use_cache=False).logits[0]
            alone: Tensor = model(input_ids=ids[:, :1], position_ids=far, use_cache=False).logits[0]
    except Exception as error:  # whatever a model does with these tokens
        raise Unsupported(
            f"{type(model).__name__}: a plain forward pass of {ids.shape[1]} tokens fails: {error}"
        ) from error
    return torch.cat((near, alone)).float().cpu()


def check(
    model: PreTrainedModel,
    shapes: Sequence[LayerShape],
    expected: Reference,
    *,
    max_model_len: int,
    path: AttentionPath,
    adapters: tuple[str, str, str] = ("", "", ""),
    run: Forward = forward,
) -> float:
    """
    The largest difference of any logit; raises Mismatch when it is above the tolerance.

    The reference tokens run in two chunks and one decode, beside a longer request and a token at
    the last position allowed: whoever looks across rows, or computes something from the longest
    position of the batch, shows here. `adapters` are those of the three rows in this order: the
    longer one, the reference's, the last; `run` computes a batch.
    """
    use_attention(model, NAME)
    tokens = expected.tokens
    num = len(tokens)
    longer = (tokens * 2)[: min(num + num // 3, max_model_len)]
    num_mine, num_theirs = -(-num // path.block_size), -(-len(longer) // path.block_size)
    cache = KvCache(
        shapes,
        num_blocks=num_mine + num_theirs + 1,
        block_size=path.block_size,
        dtype=model.dtype,
        device=model.device,
        path=path,
    )
    blocks = list(range(cache.num_blocks))
    mine, theirs = blocks[:num_mine][::-1], blocks[num_mine:-1]
    ends = (num * 5 // 8, num - 1, num)
    their_ends = (num // 2, len(longer) - 1, len(longer))
    near: list[Tensor] = []
    far: list[Tensor] = []
    begin = their_begin = 0
    for end, their_end in zip(ends, their_ends, strict=True):
        rows = [
            _row(longer, their_begin, their_end, theirs, adapters[0]),
            _row(tokens, begin, end, mine, adapters[1]),
            _row(tokens, 0, 1, blocks[-1:], adapters[2]),
        ]
        logits = _logits(model, cache, rows, of=1, last_position=max_model_len - 1, run=run)
        near.append(logits[:-1])
        far.append(logits[-1:])
        begin, their_begin = end, their_end
    right = torch.cat((expected.logits, expected.logits[-1:].expand(len(far) - 1, -1)))
    worst = float((torch.cat((*near, *far)) - right).abs().max())
    if not worst <= expected.tolerance:  # NaN fails too
        raise Mismatch(
            f"{type(model).__name__} can't be served: its logits in a mixed batch differ from "
            f"its plain forward pass by {worst:.2e}, allowed are {expected.tolerance:.2e}"
            f"{_suspects(model)}"
        )
    return worst


def _row(tokens: list[int], begin: int, end: int, table: list[int], adapter: str) -> StepRow:
    return StepRow(
        request_id=0,
        tokens=tokens,
        num_prompt=len(tokens),
        start=begin,
        count=end - begin,
        block_table=table,
        sample=False,
        sampling=SamplingParams(),
        adapter=adapter,
    )


def _logits(
    model: PreTrainedModel,
    cache: KvCache,
    rows: list[StepRow],
    *,
    of: int,
    last_position: int,
    run: Forward,
) -> Tensor:
    """
    All logits of row `of` and then those of the last row, (count + 1, vocabulary) float32.

    The last row, a single token without context, is moved to `last_position`; attention does not
    look at positions, so nothing else changes.
    """
    with torch.inference_mode():
        batch = build_batch(rows, block_size=cache.block_size, device=cache.device)
        batch.positions[0, batch.first[-1]] = last_position
        first = batch.first[of]
        batch.keep = torch.tensor(
            [*range(first, first + rows[of].count), batch.first[-1]], device=cache.device
        )
        try:
            return run(model, batch, cache).float().cpu()
        except Exception as error:
            raise Unsupported(
                f"{type(model).__name__}: the forward pass of a mixed batch fails: {error}"
            ) from error


def _suspects(model: PreTrainedModel) -> str:
    """Rotary embeddings whose factors follow the longest position of the batch."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else [kind]
        for name in kinds:
            if isinstance(name, str) and (name == "longrope" or "dynamic" in name):
                return f" ({type(module).__name__} of kind {name!r} follows the longest position)"
    return ""
