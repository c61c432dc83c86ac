"""Adapters served beside each other say what plain transformers with PEFT says of each alone."""

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput, NotFound
from sloserve.frontend.loading import load
from sloserve.model.cuda_graphs import DecodeGraphs
from sloserve.model.cuda_runner import GraphRunner
from sloserve.model.load import load_runner
from sloserve.model.lora import adapters, product, step
from sloserve.model.lora.config import checked_adapter
from sloserve.model.selftest import Mismatch
from sloserve.model.sources import resolve_source
from sloserve.slo import EngineSpec, LoraSpec, ModelSpec, parse_service

pytest.importorskip("peft", reason="adapters are compared with PEFT: pip install peft")
from peft import LoraConfig, PeftModel, get_peft_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-4
VOCABULARY = 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}, ALL),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}, ["q_proj", "v_proj", "lm_head"]),
    "opt": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        ["q_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"],
    ),
    "gpt2": ("gpt2", {}, ["c_attn", "c_proj", "c_fc"]),
    "phi3": ("phi3", {"sliding_window": 8}, ["qkv_proj", "gate_up_proj"]),
}
ENGINE = EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000)


def a_config(family: str) -> PreTrainedConfig:
    kind, changes, _ = FAMILIES[family]
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(**{**SIZES, **changes})
    return config


def an_adapter(base: Path, folder: Path, *, seed: int, **config: Any) -> Path:
    """An adapter as PEFT saves it, with weights that change every answer."""
    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(plain, LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, **config}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of embeddings it saves
        adapted.save_pretrained(str(folder))
    return folder


class World:
    """A runner with adapters, and what PEFT makes of each."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        self._base, self._adapters = base, adapters
        self.runner = load_runner(
            base,
            model=ModelSpec(source="file:///model", served_name="m"),
            engine=ENGINE,
            adapters=adapters,
        )
        self._plain: dict[str, Any] = {}

    def greedy(self, adapter: str, prompt: list[int], num_output: int) -> Any:
        if adapter not in self._plain:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._base, attn_implementation="eager"
            )
            if adapter:
                model = PeftModel.from_pretrained(model, self._adapters[adapter])
            self._plain[adapter] = model
        ids = torch.tensor([prompt])
        out = self._plain[adapter].generate(
            input_ids=ids,
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


@pytest.fixture(scope="session")
def the_adapted(
    tmp_path_factory: pytest.TempPathFactory, weights: Callable[..., Path]
) -> Callable[[str], World]:
    """Three adapters over a model: other ranks, other layers, other scales; built once."""
    built: dict[str, World] = {}

    def build(family: str) -> World:
        if family not in built:
            base = weights(a_config(family), tmp_path_factory.mktemp(family) / "model")
            targets = FAMILIES[family][2]
            like: Callable[..., Path] = lambda name, **more: an_adapter(  # noqa: E731
                base, base.parent / name, seed=len(name), fan_in_fan_out=family == "gpt2", **more
            )
            built[family] = World(
                base,
                {
                    "polite": like("polite", target_modules=targets, lora_alpha=8),
                    "terse": like("terse", target_modules=targets[:2], r=6, use_rslora=True),
                    "rude one": like(
                        "rude", target_modules=targets, rank_pattern={targets[0]: 2},
                        alpha_pattern={targets[-1]: 3},
                    ),
                },
            )  # fmt: skip
        return built[family]

    return build


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


def assert_same(own: Any, expected: Any, *, where: str) -> None:
    for n, (token, right) in enumerate(zip(own[0], expected[0], strict=True)):
        difference = float((own[1][n] - expected[1][n]).abs().max())
        assert difference < TOLERANCE, f"{where}: logits of token {n} differ by {difference:.1e}"
        assert token == right, where


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_several_adapters_say_what_peft_says_through_joins_and_preemptions(
    family: str, the_adapted: Callable[[str], World], a_talk: Any, a_service: Any
) -> None:
    world = the_adapted(family)
    head, *rest = prompts(33, 5, 17, 8, 23)
    asked = [
        ("", rest[0]),
        ("polite", head + rest[1]),
        ("terse", head + rest[1]),
        ("polite", head + rest[2]),
        ("rude one", head + rest[1]),
        ("", head + rest[1]),
    ]
    talks = [
        a_talk(tokens, num_output=12, joins=joins, adapter=adapter)
        for (adapter, tokens), joins in zip(asked, (0, 0, 2, 3, 4, 5), strict=True)
    ]
    service = a_service(world.runner, num_blocks=8, max_batch_tokens=27)
    heard = service.run(*talks)
    assert service.runner.num_mixed >= 3
    assert service.runner.num_padded >= 3
    assert service.scheduler.counters.num_preemptions >= 2
    answers = set()
    for (adapter, prompt), own in zip(asked, heard, strict=True):
        assert_same(own, world.greedy(adapter, prompt, 12), where=adapter or "the model")
        answers.add((tuple(prompt), tuple(own[0])))
    assert len(answers) == len(asked), "an adapter changes nothing: this test proves nothing"


def test_one_prompt_under_two_adapters_shares_no_keys_and_under_one_it_does(
    the_adapted: Callable[[str], World], a_talk: Any, a_service: Any
) -> None:
    world = the_adapted("llama")
    (prompt,) = prompts(80)
    turns = [
        ("polite", ""), ("", ""), ("terse", ""), ("polite", ""), ("", "6:polite"),
        ("", "polite"), ("polite", "x"), ("", ""),
    ]  # fmt: skip
    talks = [
        a_talk(prompt, num_output=4, joins=8 * i, adapter=adapter, salt=salt)
        for i, (adapter, salt) in enumerate(turns)
    ]
    service = a_service(world.runner, num_blocks=40, max_batch_tokens=128)
    heard = service.run(*talks)
    assert service.num_cached == [0, 0, 0, 64, 0, 0, 0, 64]
    for (adapter, _), own in zip(turns, heard, strict=True):
        assert_same(own, world.greedy(adapter, prompt, 4), where=adapter)


@pytest.fixture
def base(weights: Callable[..., Path], tmp_path: Path) -> Path:
    return weights(a_config("llama"), tmp_path / "model")


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    return an_adapter(base, tmp_path / "polite", seed=1, target_modules=["q_proj", "v_proj"])


def loaded(base: Path, adapter: Path, **engine: Any) -> Any:
    return load_runner(
        base,
        model=ModelSpec(source="file:///model", served_name="m"),
        engine=replace(ENGINE, **engine),
        adapters={"polite": adapter},
    )


def test_facts_name_the_adapters_and_their_memory_is_counted(
    base: Path, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner = loaded(base, saved)
    assert runner.facts.adapters == ("polite",)
    per_layer = 4 * (32 + 32) + 4 * (32 + 16)  # rank x (in + out) of queries and values
    assert runner.adapters.num_bytes == 3 * per_layer * 4
    assert "LoRA adapters: polite (5.2 KiB)" in caplog.text
    runner.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is True .*; served is nothing: train without it, or merge"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "all"}, "bias is 'all' in its adapter_config.json; served is 'none'"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_next_year": {"a": 1}}, "use_next_year is"),
        ({"r": 8}, r"rank 8 needs lora_A \(8, 32\) and lora_B \(32, 8\); it has \(4, 32\)"),
        ({"r": 0}, "a rank is below 1"),
        ({"r": "many"}, "adapter_config.json: invalid literal"),
        ({"rank_pattern": {"(": 2}}, "adapter_config.json"),
    ],
)
def test_what_would_be_computed_wrong_is_refused_by_name(
    changes: dict[str, Any], words: str, base: Path, saved: Path
) -> None:
    config = saved / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(BadInput, match=rf"adapter 'polite'.*{words}") as refused:
        loaded(base, saved)
    assert refused.value.field == "model.lora"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("layers.0.self_attn.q_proj", "lacks lora_A of 'model.layers.0.self_attn.q_proj'"),
        ("layers.9.self_attn.q_proj", "'model.layers.9.self_attn.q_proj', which is no linear"),
        ("embed_tokens", "holds 'base_model.model.model.embed_tokens.lora_embedding_A'"),
        ("norm", "holds 'base_model.model.model.norm.weight'; served are changes of linear layers"),
        ("nan", "holds NaN"),
        ("nothing", "holds no weights"),
        ("torn", "adapter_model.safetensors"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused_with_what_was_seen(
    changed: str, words: str, base: Path, saved: Path
) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    match changed:
        case "layers.0.self_attn.q_proj":
            del tensors[key]
        case "layers.9.self_attn.q_proj":
            tensors[key.replace("layers.0", "layers.9")] = tensors[key].clone()
        case "embed_tokens":
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.ones(4, 128)
        case "norm":
            tensors["base_model.model.model.norm.weight"] = torch.zeros(32)
        case "nan":
            tensors[key][0, 0] = torch.nan
        case "nothing":
            tensors = {}
    save_file(tensors, path)
    if changed == "torn":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=f"adapter 'polite'.*{words}"):
        loaded(base, saved)


def test_an_adapter_of_another_model_tells_which_it_was_made_for(
    saved: Path, weights: Callable[..., Path], tmp_path: Path
) -> None:
    build: Any = CONFIG_MAPPING["llama"]
    wider = weights(build(**{**SIZES, "hidden_size": 64}), tmp_path / "wider")
    with pytest.raises(BadInput, match=r"does not fit this LlamaForCausalLM.*made for .*/model"):
        loaded(wider, saved)


def test_adapters_over_several_devices_are_refused_with_the_reason(base: Path, saved: Path) -> None:
    with pytest.raises(BadInput, match=r"engine.tensorParallelSize.*cut like the layers"):
        loaded(base, saved, tensor_parallel_size=2)


def test_a_folder_that_is_no_adapter_says_what_it_holds(base: Path, saved: Path) -> None:
    with pytest.raises(NotFound, match="'/nowhere' does not exist"):
        checked_adapter(Path("/nowhere"), "/nowhere")
    with pytest.raises(BadInput, match=r"holds a whole model: there is no adapter_config.json"):
        checked_adapter(base, "x")
    assert checked_adapter(saved, "x") == saved
    weights = saved / "adapter_model.safetensors"
    weights.rename(saved / "adapter_model.bin")
    with pytest.raises(BadInput, match=r"adapter_model\.bin is a pickle"):
        checked_adapter(saved, "x")


def test_a_batch_without_adapter_rows_runs_the_layers_as_they_are(
    base: Path, saved: Path, a_driver: Any, a_talk: Any
) -> None:
    runner = loaded(base, saved)
    seen: set[bool] = set()
    layer = runner.model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.register_forward_pre_hook(lambda module, given: seen.add("forward" in vars(module)))
    a_driver(runner).run(a_talk([5, 6, 7, 8], num_output=3))
    assert seen == {False}
    a_driver(runner).run(a_talk([5, 6, 7, 8], num_output=3, adapter="polite"))
    assert seen == {False, True}
    assert "forward" not in vars(layer)
    runner.close()


@pytest.mark.parametrize("limit", [0, 1_000_000])
def test_both_ways_to_multiply_agree_with_peft(
    limit: int, the_adapted: Any, a_driver: Any, a_talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "MASKED_PRODUCTS", limit)
    world = the_adapted("llama")
    names = ["", "polite", "terse", "polite", "rude one"]
    talks = [
        a_talk(prompt, num_output=8, adapter=name)
        for name, prompt in zip(names, prompts(9, 14, 21, 6, 17), strict=True)
    ]
    a_driver(world.runner).run(*talks)
    for talk in talks:
        assert talk.output == world.greedy(talk.adapter, talk.prompt, 8)[0]


def test_the_self_test_catches_rows_that_get_another_rows_adapter(
    base: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = step.adapted_step

    def wrong(batch: Any, numbers: Any) -> Any:
        batch.adapters = batch.adapters[::-1]
        return right(batch, numbers)

    monkeypatch.setattr(adapters, "adapted_step", wrong)
    with pytest.raises(Mismatch, match=r"adapter 'polite' can't be served: .* differ"):
        loaded(base, saved)


def test_a_draft_model_without_the_adapter_changes_no_answer_of_it(
    base: Path, saved: Path, a_talk: Any, a_service: Any
) -> None:
    plain = loaded(base, saved)
    drafted = load_runner(
        base,
        model=ModelSpec(source="file:///model", served_name="m"),
        engine=ENGINE,
        adapters={"polite": saved},
        drafter=base,
    )
    tried = kept = 0
    for seed, adapter in ((None, "polite"), (3, "polite"), (None, "")):
        sampling = SamplingParams(temperature=0.0 if seed is None else 1.0, seed=seed)
        told = []
        for runner, num_drafts in ((plain, 0), (drafted, 3)):
            tokens = list(prompts(20)[0])
            table = list(range(8))
            computed, out = 0, []
            while len(out) < 12:
                row = StepRow(
                    request_id=7, tokens=tokens, num_prompt=20, start=computed,
                    count=len(tokens) - computed, block_table=table, sample=True,
                    sampling=sampling, adapter=adapter, num_drafts=num_drafts * (computed > 0),
                )  # fmt: skip
                (one,) = runner.step([row])
                new = [*(a.token_id for a in one.accepted), one.token_id]
                computed = len(tokens) + len(one.accepted)
                tokens += new
                out += new
                tried, kept = tried + one.num_drafted, kept + len(one.accepted)
            runner.forget(7)
            told.append(out[:12])
        assert told[0] == told[1]
    assert tried > kept > 0, "the model itself is drafted for well, its adapter is not"


@pytest.mark.parametrize("drafts", [[0, 0], None])
def test_drafts_are_verified_by_the_adapter_of_their_row(
    drafts: list[int] | None, the_adapted: Any, a_talk: Any, a_driver: Any
) -> None:
    runner = the_adapted("llama").runner
    right, says = prompts(12)[0], []
    for adapter in ("", "polite"):
        talk = a_talk(right, num_output=3, adapter=adapter)
        a_driver(runner).run(talk)
        says.append(talk.output)
    assert says[0] != says[1]
    rows = [
        StepRow(
            request_id=90 + i, tokens=right, num_prompt=12, start=0, count=12,
            block_table=[2 * i], sample=True, sampling=SamplingParams(temperature=0.0),
            adapter=adapter,
        )
        for i, adapter in enumerate(("", "polite"))
    ]  # fmt: skip
    first = runner.step(rows)
    rows = [
        replace(
            row, tokens=[*right, sampled.token_id], start=12, count=1, num_drafts=2,
            drafts=drafts or said[1:3],
        )
        for row, sampled, said in zip(rows, first, says, strict=True)
    ]  # fmt: skip
    for sampled, said in zip(runner.step(rows), says, strict=True):
        kept = [one.token_id for one in sampled.accepted]
        assert [*kept, sampled.token_id][:2] == (said[1:3] if drafts is None else said[1:2])[:2]
        assert len(kept) == (2 if drafts is None else 0)


def test_a_manifest_with_adapters_loads_through_its_sources_in_the_dtype_of_this_machine(
    tmp_path: Path,
) -> None:
    tiny = resolve_source("builtin://tiny")
    folder = an_adapter(tiny, tmp_path / "polite", seed=2, target_modules=ALL)
    spec = parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {
                    "source": "builtin://tiny",
                    "maxModelLen": 512,
                    "lora": [{"name": "polite", "source": folder.as_uri()}],
                },
                "engine": {"threads": 1, "kvCache": {"size": "16Mi"}},
                "sloClasses": [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}],
            },
        }
    )
    phases: list[str] = []
    found = load(spec, profile="tiny-cpu", on_phase=lambda phase, *_: phases.append(phase))
    assert found.facts.adapters == ("polite",)
    assert "loading weights" in phases
    found.runner.close()
    wrong = replace(spec, model=replace(spec.model, lora=(LoraSpec("x", "builtin://tiny"),)))
    with pytest.raises(BadInput, match="'builtin://tiny' holds a whole model"):
        load(wrong, profile="tiny-cpu", on_phase=lambda *_: None)


def test_decode_graphs_are_of_the_model_without_adapters(
    base: Path, saved: Path, a_talk: Any, a_driver: Any
) -> None:
    class Graphs:
        asked: list[str] = []  # noqa: RUF012

        def step(self, rows: Any) -> None:
            self.asked += [row.adapter for row in rows]

    plain, graphs = loaded(base, saved), Graphs()
    runner = GraphRunner(
        plain.model,
        cache=plain.cache,
        facts=plain.facts,
        graphs=cast("DecodeGraphs", graphs),
        adapters=plain.adapters,
    )
    mixed = [a_talk([5, 6, 7], num_output=4, adapter=name) for name in ("polite", "")]
    a_driver(runner).run(*mixed)
    assert graphs.asked == []
    a_driver(runner).run(a_talk([5, 6, 7], num_output=4))
    assert graphs.asked == [""] * 4
    assert mixed[0].output != mixed[1].output
