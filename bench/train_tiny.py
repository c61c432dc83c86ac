"""
Make `builtin://tiny`, the model that ships in the package, from nothing but a Python installation.

    python bench/train_tiny.py --output server/sloserve/model/tiny

A Llama of about 5 million parameters and a byte-level BPE of 4,096 tokens, trained on the texts
that come with CPython: the topics of `help()`, and docstrings, signatures and longer comments of
the standard library (PSF licence). A part is rewritten as questions and answers, so that the
model chats, thinks before some answers (`<think> … </think>`) and ends its turns. It talks; it
does not know. It is there to show and to test serving, not to be believed.

Modules are read as text and never run, except those written in C, which are imported for their
docstrings. Data and schedule follow from the seed and the Python version; sums in another order
(threads, processors) still make two runs differ a little. Matrices learn with Muon, the rest with
AdamW. About twelve minutes on two free cores. The model card written at the end holds the loss that
was really measured.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import json
import math
import platform
import random
import re
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 4096
END, SYSTEM, USER, ASSISTANT = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
THINK, THOUGHT = "<think>", "</think>"

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- set role = 'system' if message.role == 'developer' else message.role %}
{%- if role not in ('system', 'user', 'assistant') %}
{{- raise_exception("this model knows the roles system, user and assistant, not '" ~ role ~ "'") }}
{%- endif %}
{%- if message.content is string %}
{%- set content = message.content %}
{%- else %}
{%- set parts = namespace(text='') %}
{%- for part in message.content or [] %}
{%- if part.type != 'text' %}
{{- raise_exception("this model reads text only, not '" ~ part.type ~ "'") }}
{%- endif %}
{%- set parts.text = parts.text ~ part.text %}
{%- endfor %}
{%- set content = parts.text %}
{%- endif %}
{%- if role == 'assistant' %}
{%- set content = content.split('</think>')[-1] | trim %}
{%- endif %}
{{- '<|' ~ role ~ '|>\\n' ~ content ~ '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- if enable_thinking is defined %}
{{- '<think>\\n' if enable_thinking else '<think>\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""


# ---------------------------------------------------------------------------------------- texts


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing: `json.dumps`, what it is, how it is called, what is said of it."""

    name: str
    kind: str  # "module", "class", "function", "method"
    signature: str
    doc: str

    def text(self) -> str:
        """The entry as a page of documentation."""
        head = {"module": "module ", "class": "class "}.get(self.kind, "")
        return f"{head}{self.name}{self.signature}\n\n{self.doc}\n"

    def summary(self) -> str:
        """The first paragraph as one line, cut at a sentence when it is long."""
        line = " ".join(self.doc.split("\n\n")[0].split())
        if re.match(r"^[\w.]+\(.*\)( -> \S+)?$", line):  # C functions repeat their signature
            line = " ".join("".join(self.doc.split("\n\n")[1:2]).split())
        line = re.sub(r"^[\w.]+\([^)]*\)\s*(->\s*[^-:]+?)?\s*(--|:)?\s+", "", line)
        if len(line) > 320:
            line = line[:320].rsplit(". ", 1)[0].rstrip(".") + "."
        return line[:1].upper() + line[1:]


def source_files() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of the standard library's modules, without tests and site-packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(p in ("site-packages", "test", "tests", "idle_test", "pydoc_data") for p in parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if re.fullmatch(r"[\w.]+", name):
            yield name, path


def written_in_python() -> tuple[list[Entry], list[str]]:
    """Docstrings as entries, and longer comments as text."""
    entries, comments = [], []
    for name, path in source_files():
        try:
            source = path.read_text("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        entries += list(entries_of(tree, name, "module"))
        comments += list(comments_of(source))
    return entries, comments


def entries_of(node: ast.AST, name: str, kind: str) -> Iterator[Entry]:
    """The entry of `node` and of everything public defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(node)
        signature = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = f"({ast.unparse(node.args)})"
        if doc and "copyright" not in doc.lower():
            yield Entry(name, kind, signature, doc.strip())
        if kind == "function" or kind == "method":
            return
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if child.name.startswith("_") and not child.name.startswith("__init__"):
                    continue
                inner = "method" if kind == "class" else "function"
                inner = "class" if isinstance(child, ast.ClassDef) else inner
                yield from entries_of(child, f"{name}.{child.name}", inner)


def comments_of(source: str) -> Iterator[str]:
    """Comment blocks of some length that stand on lines of their own."""
    block: list[str] = []
    last = -1
    with contextlib.suppress(tokenize.TokenError, IndentationError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT or not token.line.lstrip().startswith("#"):
                continue
            if token.start[0] != last + 1 and block:
                yield from long_prose(block)
                block = []
            block.append(token.string.lstrip("#").removeprefix(" "))
            last = token.start[0]
    yield from long_prose(block)


def long_prose(lines: list[str]) -> Iterator[str]:
    """The lines as one text if it is prose of some length, and no licence header."""
    text = "\n".join(lines).strip()
    letters = sum(c.isalpha() or c == " " for c in text)
    if len(text) > 160 and letters > 0.8 * len(text) and "copyright" not in text.lower():
        yield text + "\n"


def written_in_c() -> list[Entry]:
    """Docstrings of built-in and extension modules (these are imported)."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "lib-dynload"
    names = {p.name.split(".")[0] for p in folder.glob("*.so")} | set(sys.builtin_module_names)
    entries: dict[str, Entry] = {}
    for name in sorted(names):
        if "test" in name or name in ("_tkinter", "_curses", "readline"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except Exception:  # a module that can't be imported here has nothing to say
            continue
        public = name.lstrip("_")
        for owner_name, owner in [(public, module), *inspect.getmembers(module, inspect.isclass)]:
            prefix = public if owner is module else f"{public}.{owner_name}"
            for key, value in [("", owner), *sorted(vars(owner).items())]:
                doc = getattr(value, "__doc__", None)
                if key.startswith("_") or not isinstance(doc, str) or len(doc) < 20:
                    continue
                if not (callable(value) or value is owner):
                    continue
                kind = "function" if owner is module else "method"
                kind = "class" if inspect.isclass(value) else kind
                kind = "module" if value is module else kind
                full = f"{prefix}.{key}" if key else prefix
                text = re.sub(r"^[\w.]+\(.*\)\n--\n\n", "", inspect.cleandoc(doc))
                entries.setdefault(full, Entry(full, kind, "", text))
    return list(entries.values())


# ---------------------------------------------------------------------------------------- chats

GREETINGS = [
    ("Hello!", "Hello! What would you like to know about Python?"),
    ("Hi", "Hi! Ask me about a module, a class or a function."),
    ("Hi there, how are you?", "I am well, thank you. I am a very small model. How can I help?"),
    ("Good morning", "Good morning! What can I do for you?"),
    ("Hey", "Hey! What are you looking for?"),
    ("Thank you!", "You are welcome."),
    ("Thanks, that helped.", "I am glad that it helped."),
    ("Goodbye", "Goodbye!"),
    ("Bye!", "Bye! Come back soon."),
    (
        "Who are you?",
        "I am a tiny language model that comes with sloserve. I talk about Python's standard "
        "library, and I am often wrong.",
    ),
    (
        "What can you do?",
        "I can talk about Python's modules, classes and functions. I am small, so please check "
        "what I say.",
    ),
    ("What is your name?", "I have no name. I am the tiny model that comes with sloserve."),
    ("Are you a large language model?", "No, I am a very small one: about five million weights."),
    ("Tell me a story.", "Once upon a time there was a module that was imported by everyone."),
    ("Say hello.", "Hello!"),
    ("What is the capital of France?", "I only know a little about Python. Please ask another."),
    ("Can you help me?", "I can try. What do you want to know about Python?"),
    ("Write a poem.", "Beautiful is better than ugly, explicit is better than implicit."),
]
SYSTEMS = [
    "You are a helpful assistant.",
    "You are an assistant who knows Python's standard library.",
    "Answer briefly.",
    "You are a helpful, honest and friendly assistant.",
]
THINKERS = ["Think before you answer.", "Think step by step.", "Think first."]


def ask(entry: Entry, rng: random.Random) -> str:
    """A question about an entry."""
    what = {"module": "module", "class": "class"}.get(entry.kind, entry.kind)
    forms = {
        "module": ["What is the {n} module for?", "What does the {n} module do?", "What is {n}?"],
        "class": ["What is {n}?", "What is the class {n} for?", "Describe {n}."],
    }.get(entry.kind, ["What does {n} do?", "What does {n}() do?", "How does {n} work?"])
    forms = [*forms, "Explain {n}.", "Tell me about {n}.", f"What is the {what} {{n}}?"]
    return rng.choice(forms).format(n=entry.name)


def thought(entry: Entry, rng: random.Random) -> str:
    """What the model thinks before it answers, in one to three sentences."""
    parent, _, leaf = entry.name.rpartition(".")
    lines = [
        rng.choice(["The user asks about {n}.", "This is a question about {n}.", "I look for {n}."])
    ]
    if parent:
        lines.append(
            rng.choice(["It is a {k} of {p}.", "{l} is a {k} in {p}.", "The {k} belongs to {p}."])
        )
    else:
        lines.append("It is a {k}.")
    if entry.signature and rng.random() < 0.6:
        arguments = entry.signature.strip("()") or "no arguments"
        lines.append(f"It takes {arguments}.".replace("{", "").replace("}", ""))
    lines.append(rng.choice(["I say what it does.", "The answer can be short.", "I recall it."]))
    return " ".join(lines).format(n=entry.name, k=entry.kind, p=parent, l=leaf)


def turn(question: str, answer: str) -> str:
    """One question with its answer, in the form that the chat template writes."""
    return f"{USER}\n{question}{END}\n{ASSISTANT}\n{answer}{END}\n"


def conversation(entries: list[Entry], rng: random.Random) -> str:
    """A chat of one to three turns; about a third thinks in its last turn."""
    system = rng.choice(SYSTEMS) if rng.random() < 0.4 else ""
    thinks = rng.random() < 0.3
    told = thinks and rng.random() < 0.5
    if told:
        system = f"{system} {rng.choice(THINKERS)}".strip()
    text = f"{SYSTEM}\n{system}{END}\n" if system else ""
    for left in reversed(range(rng.choice([1, 1, 1, 2, 3]))):
        if rng.random() < 0.15:
            question, answer = rng.choice(GREETINGS)
            reason = f"The user says: {question} I answer in a friendly way."
        else:
            entry = rng.choice(entries)
            question, answer, reason = ask(entry, rng), entry.summary(), thought(entry, rng)
            if rng.random() < 0.25 and len(entry.doc) < 700:
                question, answer = f"{question} Tell me all you know.", entry.doc
            elif entry.signature and rng.random() < 0.15 and len(entry.signature) < 200:
                question = f"How do I call {entry.name}?"
                answer = f"Call it as {entry.name}{entry.signature}. {answer}"
        if thinks and left == 0:
            answer = f"{THINK}\n{reason}\n{THOUGHT}\n\n{answer}"
        elif rng.random() < 0.08:
            answer = f"{THINK}\n{THOUGHT}\n\n{answer}"
        text += turn(question, answer)
    return text


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything that is trained on, and what is held out to measure."""

    train: list[str]
    held_pages: list[str]
    held_chats: list[str]


def gather(*, num_chats: int, seed: int) -> Texts:
    """Pages and chats, shuffled; two per cent of each are held out."""
    rng = random.Random(seed)
    entries, comments = written_in_python()
    entries += written_in_c()
    seen: set[str] = set()
    unique = [e for e in entries if not (e.doc in seen or seen.add(e.doc))]  # type: ignore[func-returns-value]
    pages = [e.text() + END + "\n" for e in unique]
    pages += [f"{name}\n\n{text.strip()}\n{END}\n" for name, text in sorted(topics.items())]
    pages += [c + END + "\n" for c in comments]
    rng.shuffle(pages)
    askable = [e for e in unique if 15 < len(e.summary()) <= 330 and len(e.name) < 60]
    rng.shuffle(askable)
    num_held = len(askable) // 50
    chats = [conversation(askable[num_held:], rng) for _ in range(num_chats)]
    held = [conversation(askable[:num_held], rng) for _ in range(num_held)]
    num_held_pages = len(pages) // 50
    train = pages[num_held_pages:] + chats
    rng.shuffle(train)
    return Texts(train, pages[:num_held_pages], held)


# ------------------------------------------------------------------------------- tokens, model


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `<think>` and `</think>` are tokens that stay visible in the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        special_tokens=[END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = re.compile("|".join(map(re.escape, (THINK, THOUGHT))))
    tokenizer.train_from_iterator((plain.sub("", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (THINK, THOUGHT)])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    make: Any = PreTrainedTokenizerFast  # untyped
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=16384,
    )
    return made


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


# -------------------------------------------------------------------------------------- Muon


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


# ----------------------------------------------------------------------------------- training


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


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# builtin://tiny

A language model of {millions:.1f} million weights that comes with sloserve, so that everything can
be shown and tested without a download. **It talks, it does not know.** Don't believe what it says,
and don't use it for anything but showing and testing serving.

| | |
| --- | --- |
| architecture | Llama, {layers} layers, hidden 256, 4 query heads of 64 over 2 KV heads, tied |
| vocabulary | byte-level BPE, {vocab} tokens |
| positions | up to 16,384 accepted, {length} trained: past that it only babbles |
| files | safetensors (bfloat16), Hugging Face format |
| chat | `<\\|user\\|>` question `<\\|end\\|>` `<\\|assistant\\|>` answer `<\\|end\\|>` |

`<think>` and `</think>` are tokens and stay visible in the text. "Think first." in the system
message or `enable_thinking` for the template make it think; left alone it does now and then.
It loads with plain `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

## How it was made

`{command}` with Python {python} and torch {torch}
on {machine}, {date}: {steps} steps,
{seen:.2f} million tokens ({epochs:.1f} times the training text) in {minutes:.1f} minutes of a
machine that may have done other work beside. Muon for matrices, AdamW for the rest.

| held-out loss | nats per token |
| --- | --- |
| pages (docstrings, topics, comments) | {page_loss:.2f} |
| chats about things not asked in training (many fixed phrases, so lower) | {chat_loss:.2f} |

To remake it, run the same command in a checkout of sloserve; the weights will differ a little.

## Data and licence

Trained on {characters:.1f} million characters that come with CPython {python}: the topics of
`help()`, and docstrings, signatures and longer comments of the standard library (without its
tests), a part of them rewritten as questions and answers by fixed rules. No other data.

Python's documentation and standard library are Copyright © 2001 and later, Python Software
Foundation; All Rights Reserved, under the
[PSF License Agreement](https://docs.python.org/3/license.html); a few modules carry the notices
of their authors, kept in CPython's source. Docstrings and comments that speak of copyright were
left out. The weights and this folder are given under sloserve's licence, Apache-2.0.

## Samples

As it answered right after training (temperature 0):

{samples}
"""

PROMPTS = [
    ("Hello!", {}),
    ("What does json.dumps do?", {}),
    ("What is the collections module for?", {"enable_thinking": True}),
]


def sample(folder: Path) -> str:
    """Load the folder as anybody would, and show some answers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    shown = []
    for question, options in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            **options,
        )
        out = model.generate(**ids, max_new_tokens=120, do_sample=False)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        shown.append(f"> **{question}**\n\n```\n{answer.strip()}\n```")
    return "\n\n".join(shown)


def save(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, end: int
) -> None:
    """Write the folder in Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    make: Any = GenerationConfig  # untyped
    model.generation_config = make(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version knows
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("server/sloserve/model/tiny"))
    parser.add_argument("--tokens", type=float, default=2.4, help="millions to train on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--chats", type=int, default=9_000, help="conversations to make")
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    texts = gather(num_chats=args.chats, seed=args.seed)
    num_characters = sum(map(len, texts.train))
    tokenizer = make_tokenizer(texts.train)
    ids = to_ids(tokenizer, texts.train)
    held = to_ids(tokenizer, texts.held_pages), to_ids(tokenizer, texts.held_chats)
    model = make_model(tokenizer, num_layers=args.layers)
    num_weights = sum(p.numel() for p in model.parameters())
    print(
        f"{num_characters / 1e6:.2f} M characters, {len(ids) / 1e6:.2f} M tokens, held out "
        f"{len(held[0])} + {len(held[1])}; {num_weights / 1e6:.2f} M weights",
        flush=True,
    )
    result = train(model, ids, held, args)
    print(f"held out: pages {result.page_loss:.3f}, chats {result.chat_loss:.3f} nats", flush=True)
    save(args.output, model, tokenizer, tokenizer.get_vocab()[END])
    samples = sample(args.output)
    print(samples, flush=True)
    now = datetime.now(UTC)
    (args.output / "README.md").write_text(
        CARD.format(
            millions=num_weights / 1e6,
            layers=args.layers,
            vocab=VOCAB_SIZE,
            length=args.length,
            command=f"python bench/train_tiny.py --tokens {args.tokens:g}",
            python=platform.python_version(),
            torch=torch.__version__,
            machine=f"{args.threads} threads of {platform.machine()}",
            date=f"{now:%Y-%m-%d}",
            minutes=result.minutes,
            steps=result.num_steps,
            seen=result.num_tokens / 1e6,
            epochs=result.num_tokens / len(ids),
            page_loss=result.page_loss,
            chat_loss=result.chat_loss,
            characters=num_characters / 1e6,
            samples=samples,
        )
    )


if __name__ == "__main__":
    main()
