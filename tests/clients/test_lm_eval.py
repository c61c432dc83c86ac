"""lm_eval against replica and gateway: the same numbers as transformers computes by itself."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

MAX_LENGTH = 258  # as told to lm_eval; it keeps a token for the answer and one for the context
WINDOW = MAX_LENGTH - 2
DOCUMENTS = [
    "Return a new list containing the items of the iterable, in their order.",
    "Größe, naïve café — “quotes”, 日本語 and 🦙: bytes are what is counted.",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
    " ".join(f"Item {i}: the method returns the value of key {i * 7 % 13}." for i in range(40)),
]  # the last has more than two windows of tokens
QUESTIONS = [
    {"text": "A list is a", "choices": [" sequence of items.", " qqq zzz.", " list"]},
    {"text": "The method returns", "choices": [" the value.", " banana 77", " None"]},
    {"text": "def f(x):", "choices": ["\n    return x", " 日本語"]},
]
TASKS = {
    "documents": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
    "questions": """
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "endings": """
output_type: generate_until
doc_to_text: text
doc_to_target: "."
target_delimiter: ""
generation_kwargs: {until: ["Q:", "</s>"], max_gen_toks: 12, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@dataclass
class Plain:
    """The model in transformers, float32, one sequence at a time."""

    model: Any
    tokenizer: Any

    def logprob(self, context: Sequence[int], tokens: Sequence[int]) -> float:
        """Of `tokens` after `context`."""
        ids = torch.tensor([[*context, *tokens]])
        with torch.inference_mode():
            logprobs = self.model(ids).logits[0].log_softmax(-1)
        rows = range(len(context) - 1, len(context) + len(tokens) - 1)
        return math.fsum(
            float(logprobs[row, token]) for row, token in zip(rows, tokens, strict=True)
        )

    def document_logprob(self, text: str) -> float:
        """In windows of at most WINDOW tokens, each after as much context as fits into one."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        sequence = [self.tokenizer.bos_token_id or self.tokenizer.eos_token_id, *tokens]
        total, done = 0.0, 1
        while done < len(sequence):
            end = min(done + WINDOW, len(sequence))
            total += self.logprob(sequence[max(0, end - WINDOW - 1) : done], sequence[done:end])
            done = end
        return total

    def ending(self, text: str, *, num_tokens: int) -> str:
        """The greedy continuation."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=False,
            )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def plain(service: Any) -> Plain:
    model: Any = AutoModelForCausalLM.from_pretrained(
        service.model_path, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(service.model_path, local_files_only=True)
    return Plain(model.eval(), tokenizer)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with three tasks, one for each kind of request that lm_eval makes."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = {"documents": [{"text": text} for text in DOCUMENTS]}
    rows |= {"questions": QUESTIONS, "endings": QUESTIONS}  # type: ignore[dict-item]
    for name, body in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        head = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        files = f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (folder / f"{name}.yaml").write_text(head + files + body)
    return folder


@pytest.mark.parametrize(
    ("through", "how"),
    [
        # lists of token-id lists; the tokenizer from the model's folder
        ("replica", "tokenizer_backend=huggingface,tokenizer={model}"),
        # token-id lists side by side; the tokenizer is asked for through the gateway
        ("gateway", "num_concurrent=3"),
    ],
)
def test_lm_eval_gets_the_numbers_that_plain_transformers_gives(
    lm_eval: Any,
    through: str,
    how: str,
    service: Any,
    plain: Plain,
    tasks: Path,
    tmp_path: Path,
) -> None:
    url = f"{service.url(through)}/v1/completions"
    words = f"model=assistant,base_url={url},max_length={MAX_LENGTH},{how}"
    said = lm_eval.run(
        "--model", "local-completions", "--model_args", words.format(model=service.model_path),
        "--batch_size", "4", "--include_path", str(tasks), "--tasks", ",".join(TASKS),
        "--output_path", "out", "--log_samples", folder=tmp_path,
    )  # fmt: skip
    assert ("remote tokenizer" in said) == (through == "gateway")
    (results,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(results.read_text())["results"]

    nats = math.fsum(plain.document_logprob(text) for text in DOCUMENTS)
    num_bytes = sum(len(text.encode()) for text in DOCUMENTS)
    expected = math.exp(-nats / num_bytes)
    assert told["documents"]["byte_perplexity,none"] == pytest.approx(expected, abs=1e-3)

    encode = plain.tokenizer
    for sample in _samples(results.parent, "questions"):
        question = QUESTIONS[sample["doc_id"]]
        context = encode(question["text"], add_special_tokens=False)["input_ids"]
        for ((logprob, _),), choice in zip(sample["resps"], question["choices"], strict=True):
            whole = encode(str(question["text"]) + choice, add_special_tokens=False)["input_ids"]
            rest = whole[len(context) :]
            assert float(logprob) == pytest.approx(plain.logprob(context, rest), abs=1e-3)

    for sample in _samples(results.parent, "endings"):
        text = str(QUESTIONS[sample["doc_id"]]["text"])
        assert sample["resps"] == [[plain.ending(text, num_tokens=12)]]


def _samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == len(QUESTIONS)
    return found
