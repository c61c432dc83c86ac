"""The model and how it learns: Muon for matrices, AdamW for the rest."""

import argparse
import math
import time
from dataclasses import dataclass

import torch
from bench.tiny.tokens import END, VOCAB_SIZE
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make_model(tokenizer: PreTrainedTokenizerFast, *, num_layers: int) -> LlamaForCausalLM:
    """Hidden 256, four query heads of 64 over two KV heads."""
    end: int = tokenizer.get_vocab()[END]
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LlamaForCausalLM(config)


def orthogonal(update: Tensor) -> Tensor:
    """
    The nearest (semi-)orthogonal matrices, roughly: five Newton-Schulz steps.

    X <- a X + b (X Xt) X + c (X Xt)^2 X on X scaled to norm 1; singular values end in 0.7 .. 1.2.
    (..., rows, columns) -> the same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.size(-2) > update.size(-1)
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon:
    """Nesterov momentum, made orthogonal: every direction of a matrix learns at the same rate."""

    def __init__(self, parameters: list[nn.Parameter], *, momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}  # one batched call per shape
        for parameter in parameters:
            self.groups.setdefault(parameter.shape, []).append(parameter)
        self.buffers = {s: torch.zeros(len(g), *s) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients that lie on the parameters."""
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group])  # type: ignore[misc]
            buffer = self.buffers[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(buffer, self.momentum))
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - rate * 0.05).sub_(change, alpha=scale)


def to_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """All texts as one row of token ids."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.tensor([i for e in encoded for i in e.ids], dtype=torch.long)


def loss_of(model: LlamaForCausalLM, window: Tensor) -> Tensor:
    """Mean nats per token of windows [batch, length + 1]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(window[:, :-1], use_cache=False).logits
    loss: Tensor = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
    return loss


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, ids: Tensor, length: int) -> float:
    """Mean nats per token over held-out text."""
    rows = ids[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)[:64]
    total = 0.0
    for i in range(0, len(rows), 8):
        total += loss_of(model, rows[i : i + 8]).item() * len(rows[i : i + 8])
    return total / len(rows)


@dataclass(frozen=True, slots=True)
class Result:
    """What the model card tells of the training."""

    num_steps: int
    num_tokens: int
    minutes: float
    page_loss: float
    chat_loss: float


def train(
    model: LlamaForCausalLM, ids: Tensor, held: tuple[Tensor, Tensor], args: argparse.Namespace
) -> Result:
    """Train on `args.tokens` million tokens; rates rise for 2 % of them, fall in the last half."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(args.seed)
    span = args.length + 1
    order = torch.empty(0, dtype=torch.long)
    begun, step, mean = time.monotonic(), 0, math.log(VOCAB_SIZE)
    while (done := step * args.batch * args.length / (args.tokens * 1e6)) < 1:
        if len(order) < args.batch:  # a new epoch, cut at another offset
            offset = int(torch.randint(span, (1,), generator=generator))
            starts = torch.arange(offset, len(ids) - span, span)
            order = starts[torch.randperm(len(starts), generator=generator)]
        take, order = order[: args.batch], order[args.batch :]
        loss = loss_of(model, torch.stack([ids[s : s + span] for s in take.tolist()]))
        torch.autograd.backward(loss)
        factor = min(1.0, done / 0.02 + 0.05, 2 * (1 - done))
        muon.step(args.muon_rate * factor)
        for group in adam.param_groups:
            group["lr"] = args.adam_rate * factor
        adam.step()
        model.zero_grad(set_to_none=True)
        step += 1
        mean += (loss.item() - mean) * max(0.02, 1 / step)
        if step % 10 == 0:
            seconds = time.monotonic() - begun
            rate = step * args.batch * args.length / seconds
            print(
                f"{seconds:6.0f} s  step {step:5d}  loss {mean:.3f}  {rate:.0f} tokens/s",
                flush=True,
            )
    minutes = (time.monotonic() - begun) / 60
    losses = [held_out_loss(model, h, args.length) for h in held]
    return Result(step, step * args.batch * args.length, minutes, losses[0], losses[1])
