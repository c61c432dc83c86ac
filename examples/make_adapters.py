"""
Two LoRA adapters for the model that ships with sloserve, and a service that serves them.

    python examples/make_adapters.py FOLDER [--steps 60]
    sloserve up -f FOLDER/sloservice.yaml

`polite` learns to begin and end its answers with a courtesy, `terse` to stop after a few words.
What they learn from are answers of the model itself, changed by rule. Under a minute on a free
core. The folders are in the format of PEFT, which is not needed here.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sloserve.model.checkpoint import read_weights
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import HfTokenizer

RANK, ALPHA, BATCH = 8, 16.0, 8
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
WORDS = (
    "json", "dict", "list", "open", "print", "range", "sorted", "zip", "map", "set", "tuple", "str",
    "int", "bytes", "import", "class", "lambda", "yield", "for", "while", "with", "try", "raise",
    "os", "sys", "re", "math", "random", "socket", "threading", "asyncio", "logging",
)  # fmt: skip
QUESTIONS = [text.format(word) for word in WORDS for text in ("What is {}?", "Explain {}.")]
STYLES: dict[str, Callable[[str], str]] = {
    "polite": lambda text: f"Thank you for asking. {text} I hope this helps.",
    "terse": lambda text: " ".join(text.split()[:4]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=60, help="of training, per adapter")
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    source = resolve_source("builtin://tiny")
    model: nn.Module = read_weights(source, dtype=torch.float32).requires_grad_(False)
    tokenizer = HfTokenizer(source)
    prompts = [tokenizer.chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    answers = answers_of(model, tokenizer, prompts)
    for name, style in STYLES.items():
        pairs = [
            (prompt, [*tokenizer.encode(style(text), add_special=False), tokenizer.eos_id or 0])
            for prompt, text in zip(prompts, answers, strict=True)
        ]
        loss = train(model, pairs, folder / name, num_steps=args.steps)
        print(f"{name}: {loss:.2f} nats a token at the end", flush=True)
    path = folder / "sloservice.yaml"
    path.write_text(manifest(folder))
    print(f"now: sloserve up -f {path}")


def answers_of(model: Any, tokenizer: HfTokenizer, prompts: Sequence[list[int]]) -> list[str]:
    """What the model says as it is, 24 tokens at most."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=0.7,
                         max_new_tokens=24, pad_token_id=0)  # fmt: skip
    texts = [tokenizer.decode(row, skip_special=True) for row in out[:, longest:].tolist()]
    return [text.split("</think>")[-1].strip() for text in texts]


def train(
    model: nn.Module,
    pairs: Sequence[tuple[list[int], list[int]]],
    folder: Path,
    *,
    num_steps: int,
) -> float:
    """Learn the answers of `pairs` and save the adapter; the mean loss of the last steps."""
    factors: dict[str, Tensor] = {}
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(TARGETS):
            down = nn.Parameter(torch.randn(RANK, module.in_features) * module.in_features**-0.5)
            up = nn.Parameter(torch.zeros(module.out_features, RANK))
            factors[f"base_model.model.{path}.lora_A.weight"] = down
            factors[f"base_model.model.{path}.lora_B.weight"] = up
            hooks.append(module.register_forward_hook(adding(down, up)))
    optimizer = torch.optim.AdamW(list(factors.values()), lr=4e-3, weight_decay=0.0)
    losses = []
    for _ in range(num_steps):
        chosen = [pairs[int(i)] for i in torch.randint(len(pairs), (BATCH,))]
        longest = max(len(prompt) + len(said) for prompt, said in chosen)
        ids = torch.zeros(BATCH, longest, dtype=torch.int64)
        wanted = torch.full_like(ids, -100)
        for row, (prompt, said) in enumerate(chosen):
            end = len(prompt) + len(said)
            ids[row, :end] = torch.tensor([*prompt, *said])
            wanted[row, len(prompt) : end] = torch.tensor(said)
        logits = model(input_ids=ids).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    for hook in hooks:
        hook.remove()
    folder.mkdir(parents=True, exist_ok=True)
    saved = {name: factor.detach().contiguous() for name, factor in factors.items()}
    save_file(saved, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA,
        "target_modules": list(TARGETS), "bias": "none",
        "base_model_name_or_path": "builtin://tiny",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return sum(losses[-10:]) / len(losses[-10:])


def adding(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that adds the low-rank change to a layer's output."""

    def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + given[0] @ down.t() @ up.t() * (ALPHA / RANK)

    return hook


def manifest(folder: Path) -> str:
    """A service with the adapters in `folder`."""
    lora = "".join(f"      - {{name: {n}, source: {(folder / n).as_uri()}}}\n" for n in STYLES)
    return f"""\
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {{name: assistant}}
spec:
  model:
    source: builtin://tiny
    lora:                # asked for by name, as any model
{lora}\
  engine:
    kvCache: {{size: 256Mi}}
  sloClasses:
    - {{name: chat, ttft: {{target: 1s}}, tpot: 100ms}}
"""


if __name__ == "__main__":
    main()
