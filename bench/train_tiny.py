"""
Make `builtin://tiny`, the model that ships in the package, from nothing but a Python installation.

    python -m bench.train_tiny --output server/sloserve/model/tiny

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
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch
from bench.tiny.card import CARD, sample, save
from bench.tiny.chats import gather
from bench.tiny.tokens import END, VOCAB_SIZE, make_tokenizer
from bench.tiny.training import make_model, to_ids, train


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
            command=f"python -m bench.train_tiny --tokens {args.tokens:g}",
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
