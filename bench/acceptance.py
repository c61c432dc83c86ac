"""
How often n-gram drafts are right in answers of the small model: what `--acceptance` is given.

    python -m bench.acceptance [--answers 24] [--output 256] [--texts trace,copying,prose,code]

Prompts are those that `sloserve bench` makes for the conversation trace (random common words of the
trace's lengths) and those of bench/speculation.py (a passage said three times, Python's
documentation, its library), at temperature 0 and 0.7, each with a seed. They are answered without
drafts; then the drafter that serves is asked at every place of every answer, and what it proposes
is compared with what follows. That is what verification does, to the token: a certain proposal is
verified by drawing as ever. One file per text and temperature in bench/acceptance/, and a table.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench.replay_plan import SEED, options_of
from bench.speculation import KINDS, run, texts

from sloserve.engine.clock import RealClock
from sloserve.engine.ngram import NgramDrafter
from sloserve.load.endpoint import WORDS, Prompts
from sloserve.load.options import read_service
from sloserve.load.report import provenance, write_json
from sloserve.model.load import load_model
from sloserve.model.runner import TorchRunner
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import HfTokenizer
from sloserve.perf import load_profile
from sloserve.simulate.acceptance import DIGITS, MAX_RIGHT, Recorded
from sloserve.slo import EngineSpec, ModelSpec

HERE = Path(__file__).parent
FOLDER = HERE / "acceptance"
TEXTS = ("trace", *KINDS)
TEMPERATURES = (0.0, 0.7)
MODEL = "builtin://tiny"
WINDOW_S = 120.0
SHOWN = 4
AT_ONCE = 8


def prompts_of(text: str, num: int, tokenizer: HfTokenizer) -> list[list[int]]:
    """`num` prompts of one kind of text."""
    if text != "trace":
        return texts(text, num, tokenizer)
    spec = read_service(HERE / "targets.yaml")
    options = options_of("conversation", spec=spec, duration_s=WINDOW_S)
    arrivals = options.prepare({c.name: c for c in spec.classes}, default_class=spec.default_class)
    pool = sorted(set(tokenizer.encode(" ".join(WORDS), add_special=False)))
    prompts = Prompts(pool, 0.0, True, SEED)
    found = []
    for number, arrival in enumerate(arrivals.arrivals[:num]):
        body = prompts.body(
            model=MODEL, number=number, prompt_tokens=arrival.prompt_tokens, output_tokens=1
        )
        found.append(json.loads(body)["prompt"])
    return found


def recorded(prompt: Sequence[int], answer: Sequence[int]) -> Recorded:
    """What the n-gram drafter comes to at each place of `answer`, from its first token on."""
    drafter = NgramDrafter()
    tokens = [*prompt, *answer]
    grades, rights = "", ""
    for place in range(1, len(answer)):
        known = len(prompt) + place
        left = tokens[known:]
        proposal = drafter.propose(0, tokens[:known], most=MAX_RIGHT)
        right = 0
        while right < min(proposal.num, len(left)) and proposal.tokens[right] == left[right]:
            right += 1
        grades, rights = grades + str(proposal.grade), rights + DIGITS[right]
    return Recorded(grades, rights)


def alphas(records: Sequence[Recorded], num: int) -> list[float]:
    """Per draft 0..num-1: how often it was right where one was proposed and those before were."""
    found = []
    rights = [
        DIGITS.index(right)
        for record in records
        for grade, right in zip(record.grades, record.rights, strict=True)
        if grade != "0"
    ]
    for draft in range(num):
        tried = sum(right >= draft for right in rights)
        found.append(sum(right > draft for right in rights) / tried if tried else 0.0)
    return found


def tokens_per_step(records: Sequence[Recorded], *, most: int) -> float:
    """Of answers that are always given `most` drafts where any are proposed."""
    num_tokens, num_steps = 0, 0
    for record in records:
        place = 1
        while place <= len(record.grades):
            right = DIGITS.index(record.rights[place - 1])
            place += 1 + min(most, right)
            num_steps += 1
        num_tokens += len(record.grades)
    return num_tokens / max(1, num_steps)


def answers(
    runner: TorchRunner,
    tokenizer: HfTokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    num_output: int,
) -> list[list[int]]:
    """What the model says, without drafts, a few at a time."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), AT_ONCE):
        found += run(
            runner,
            tokenizer,
            load_profile("tiny-cpu").step,
            prompts[start : start + AT_ONCE],
            temperature=temperature,
            num_output=num_output,
            clock=RealClock(),
            speculating=None,
        ).tokens
    return found


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--output", type=int, default=256)
    parser.add_argument("--texts", default=",".join(TEXTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    runner, tokenizer = load_model(
        resolve_source(MODEL),
        model=ModelSpec(source=MODEL, served_name="bench", max_model_len=4096),
        engine=EngineSpec(threads=args.threads, kv_bytes=200_000_000),
    )
    print(
        "| text | temperature | places with a proposal | right, by position | tokens a step of 8 |"
    )
    print("| --- | --- | --- | --- | --- |")
    for text in args.texts.split(","):
        prompts = prompts_of(text, args.answers, tokenizer)
        for temperature in TEMPERATURES:
            said = answers(
                runner, tokenizer, prompts, temperature=temperature, num_output=args.output
            )
            records = [recorded(p, a) for p, a in zip(prompts, said, strict=True)]
            shares = alphas(records, SHOWN)
            places = [grade for record in records for grade in record.grades]
            offered = sum(grade != "0" for grade in places) / len(places)
            write_json(
                args.folder / f"{text}-{temperature:g}.json",
                {
                    "made": provenance(),
                    "model": f"{MODEL}, {runner.facts.dtype}",
                    "temperature": temperature,
                    "answers": f"{len(said)} of {args.output} tokens",
                    "offered": offered,
                    "alphas": alphas(records, 8),
                    "requests": {"": [{"grades": r.grades, "rights": r.rights} for r in records]},
                },
            )
            by_position = " ".join(f"{alpha:.2f}" for alpha in shares)
            print(
                f"| {text} | {temperature:g} | {offered:.0%} | {by_position} |"
                f" {tokens_per_step(records, most=8):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
