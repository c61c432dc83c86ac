"""The folder that is shipped: weights, tokenizer, card with samples."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

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
