"""One model over two processes says what the whole model says."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.model.parted import ENGINE, MODEL, VOCABULARY, a_config, saved
from torch import Tensor
from transformers import AutoModelForCausalLM

from sloserve.engine.ngram import NgramDrafter
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.grammar.compiler import Compiler, Vocabulary
from sloserve.grammar.constraint import Constraint, Kind
from sloserve.model.drafting import DraftModel
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache
from sloserve.model.load import load_runner
from sloserve.model.parallel.ranks import Ranks
from sloserve.model.structure import attention_layers, use_attention
from sloserve.scheduler import RunnerDrafts, Speculating

TOLERANCE = 1e-4
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-biased": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2": ("qwen2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen3-moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "mlp_only_layers": [1],
        },
    ),
    "phi3": ("phi3", {}),  # every rank attends with all heads
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A plain model and the runner over two ranks with the same weights."""

    plain: Any
    runner: Any

    def greedy(self, prompt: list[int], num_output: int) -> tuple[list[int], Tensor]:
        """Tokens and logits by transformers' own `generate`."""
        ids = torch.tensor([prompt])
        out = self.plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_output,
            max_new_tokens=num_output,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """The second process, for all models of this module."""
    ranks = Ranks(2, device=torch.device("cpu"), threads=1)
    ranks.join(timeout_s=120)
    yield ranks
    ranks.close()
    assert all(other.process.returncode is not None for other in ranks._others)


@pytest.fixture(scope="module")
def pair(
    ranks: Ranks, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Pair]:
    kind, changes = FAMILIES[request.param]
    folder = saved(a_config(kind, **changes), tmp_path_factory.mktemp("family"))
    runner = load_runner(folder, model=MODEL, engine=ENGINE, ranks=ranks)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    yield Pair(plain, runner)
    runner.close()


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(3, 250) for _ in range(n)] for n in lengths]


@pytest.mark.parametrize("pair", FAMILIES, indirect=True)
def test_tokens_and_logits_equal_plain_generate_through_joins_and_preemptions(
    pair: Pair, a_talk: Any, a_service: Any
) -> None:
    head, *rest = prompts(33, 5, 17, 8, 23, 30)
    talks = [
        a_talk(tokens, num_output=num_output, joins=joins)
        for tokens, num_output, joins in zip(
            [rest[0], head + rest[1], head + rest[2], rest[3], rest[4]],
            (14, 16, 14, 12, 8),
            (0, 0, 3, 4, 5),
            strict=True,
        )
    ]
    service = a_service(pair.runner, num_blocks=7, max_batch_tokens=27)
    before = pair.runner.ranks.num_steps
    heard = service.run(*talks)
    assert pair.runner.ranks.num_steps - before >= 14  # every one of them was computed by both
    assert service.runner.num_mixed >= 3
    assert service.scheduler.counters.num_preemptions >= 2
    assert service.scheduler.blocks.num_hit_tokens >= 32
    for talk, (tokens, logits) in zip(talks, heard, strict=True):
        right, expected = pair.greedy(talk.prompt, talk.num_output)
        assert float((logits - expected).abs().max()) < TOLERANCE
        assert tokens == right


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_a_rank_holds_half_of_the_weights_and_of_the_keys(pair: Pair) -> None:
    whole = dict(pair.plain.named_parameters())
    cache, facts = pair.runner.cache, pair.runner.facts
    assert {shape.num_kv_heads for shape in cache.shapes} == {1}
    assert facts.kv_bytes_per_token == 2 * 2 * (8 + 8) * 4  # layers, heads, sizes, float32
    assert facts.num_blocks == 2_000_000 // (facts.kv_bytes_per_token * 16)
    assert facts.tensor_parallel_size == 2
    assert facts.hardware.startswith("2 x ")
    embedding = dict(pair.runner.model.named_parameters())["model.embed_tokens.weight"]
    assert embedding.shape[0] == 131 < whole["model.embed_tokens.weight"].shape[0]


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
@pytest.mark.parametrize("by_model", [False, True], ids=["out of the text", "by a model"])
def test_drafts_change_no_word(pair: Pair, by_model: bool, a_talk: Any, a_service: Any) -> None:
    repeating = [[5 + i % 7 for i in range(23)], [9, 4] * 5, [60 + i % 4 for i in range(31)]]
    drafter = None
    if by_model:  # the whole model, on rank 0 alone
        layers = attention_layers(pair.plain, max_model_len=512)
        cache = KvCache(
            [layer.shape for layer in layers],
            num_blocks=40,
            block_size=16,
            dtype=torch.float32,
            device=torch.device("cpu"),
            path=Gathered(),
        )
        use_attention(pair.plain, "sloserve_paged")
        drafter = DraftModel(pair.plain, cache=cache, vocab_size=VOCABULARY, max_len=512)
    service = a_service(pair.runner, num_blocks=40, max_batch_tokens=48)
    drafts = RunnerDrafts() if by_model else NgramDrafter()
    service.scheduler.speculating = Speculating(drafts, max_draft_tokens=4, fixed=4)
    service.runner.drafter = drafter
    talks = [a_talk(p, num_output=20, joins=2 * i) for i, p in enumerate(repeating)]
    heard = service.run(*talks)
    assert service.scheduler.counters.accepted_drafts > 0
    use_attention(pair.plain, "eager")
    for talk, (tokens, _) in zip(talks, heard, strict=True):
        assert tokens == pair.greedy(talk.prompt, talk.num_output)[0]


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_a_grammar_is_followed_with_and_without_drafts(
    pair: Pair, a_talk: Any, a_service: Any
) -> None:
    tokenizer = ByteTokenizer()
    compiler = Compiler(
        Vocabulary(tokenizer.definition(), tokenizer.special_ids, (256,), VOCABULARY)
    )
    grammar = compiler.compile(Constraint(Kind.REGEX, r"(la|lo)( (la|lo)){6,8}\.", "x"))
    sampling = SamplingParams(temperature=0.0, grammar=grammar)
    texts = []
    for drafts in (None, Speculating(NgramDrafter(), max_draft_tokens=4, fixed=4)):
        service = a_service(pair.runner, num_blocks=40, max_batch_tokens=48)
        service.scheduler.speculating = drafts
        ((tokens, _),) = service.run(a_talk(list(b"la la lo"), num_output=40, sampling=sampling))
        texts.append(bytes(token for token in tokens if token < 256))
    assert texts[0] == texts[1]
    matcher = grammar.matcher()
    for token in texts[0]:
        matcher.accept(token)
    assert not matcher.failure
    assert 7 <= len(texts[0].split()) <= 9
