"""Quantised checkpoints: widened and served right, or refused by name before their weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from sloserve.errors import BadInput
from sloserve.model import quantised
from sloserve.model.checkpoint import read_weights
from sloserve.model.load import load_runner
from sloserve.model.sources import checked
from sloserve.slo.service import EngineSpec

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENGINE = EngineSpec(threads=1, dtype="float32", kv_bytes=2_000_000)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def declare(folder: Path, **config: Any) -> None:
    """Write the quantisation into the checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))


def as_fp8(folder: Path, *, block: int) -> dict[str, torch.Tensor]:
    """Quantise the projections of a checkpoint in place; what they are worth now, by name."""
    worth, out = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        worth[name] = out[name] = weight
        if not name.endswith("proj.weight"):
            continue
        rows, columns = weight.shape
        blocks = weight.view(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / 448
        small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        out[name], out[f"{name}_scale_inv"] = small.view(rows, columns), scale
        worth[name] = (small.float() * scale[:, None, :, None]).view(rows, columns)
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    declare(
        folder, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[block, block]
    )
    return worth


def as_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """The experts of a GPT-OSS checkpoint as blocks of 32 four-bit numbers with a scale each."""
    worth, out = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        worth[name] = out[name] = weight
        if not name.endswith(("gate_up_proj", "down_proj")):
            continue
        experts, rows, columns = weight.transpose(1, 2).shape  # stored the other way round
        codes = torch.randint(16, (experts, rows, columns // 32, 32))
        scales = torch.randint(121, 125, (experts, rows, columns // 32), dtype=torch.uint8)
        del out[name]
        out[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        out[f"{name}_scales"] = scales
        numbers = torch.tensor(E2M1 + [-x for x in E2M1])[codes]
        wide = numbers * torch.exp2(scales.float() - 127)[..., None]
        worth[name] = wide.view(experts, rows, columns).transpose(1, 2).contiguous()
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    declare(folder, quant_method="mxfp4", modules_to_not_convert=["lm_head"])
    return worth


def a_checkpoint(a_folder: Callable[..., Path], kind: str, **changes: Any) -> Path:
    build: Any = CONFIG_MAPPING[kind]
    return a_folder(build(**{**SIZES, **changes}))


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_widened_weights_are_worth_what_their_format_says_and_are_served(
    method: str, a_folder: Callable[..., Path], a_model_spec: Any, a_driver: Any, a_talk: Any
) -> None:
    if method == "fp8":
        pytest.importorskip("accelerate", reason="needs pip install 'sloserve[quantised]'")
        folder = a_checkpoint(a_folder, "llama")
        worth = as_fp8(folder, block=32)
    else:
        folder = a_checkpoint(
            a_folder, "gpt_oss", head_dim=16, num_local_experts=4, num_experts_per_tok=2
        )
        worth = as_mxfp4(folder)
    network = read_weights(folder, dtype=torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    own = network.state_dict()
    for name, right in worth.items():
        torch.testing.assert_close(own[name], right, rtol=2**-8, atol=1e-6, msg=name)
    runner = load_runner(folder, model=a_model_spec(), engine=ENGINE)
    prompt = [5, 9, 33, 7, 64, 2, 90, 17, 28]
    talk = a_talk(prompt, num_output=6)
    a_driver(runner).run(talk)
    plain: Any = network.train(False)
    expected = plain.generate(torch.tensor([prompt]), do_sample=False, min_new_tokens=6,
                              max_new_tokens=6, eos_token_id=None)  # fmt: skip
    assert talk.output == expected[0, len(prompt) :].tolist()
    facts = runner.facts
    assert facts.kv_bytes_per_token == 2 * 2 * (16 + 16) * 4  # of the widened model's float32
    runner.close()


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "next-year"}, "next-year"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_any_other_format_is_refused_by_name_before_there_are_weights(
    declared: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    declare(tmp_path, **declared)
    with pytest.raises(BadInput, match=rf"quantised by {named}, which are not served") as refused:
        checked(tmp_path, "hf://org/small")
    assert "fp8 or mxfp4" in refused.value.message
    assert refused.value.field == "model.source"


def test_fp8_without_what_transformers_needs_for_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    declare(tmp_path, quant_method="fp8")
    monkeypatch.setattr(quantised, "find_spec", lambda package: None)
    with pytest.raises(BadInput, match=r"accelerate: pip install 'sloserve\[quantised\]'"):
        checked(tmp_path, "x")


def test_a_nested_declaration_counts_and_none_is_none() -> None:
    nested = {"text_config": {"quantization_config": {"quant_method": "awq"}}}
    assert quantised.method_of(nested) == "awq"
    assert quantised.method_of({"compression_config": {"quant_method": "x"}}) == "x"
    assert quantised.method_of({"quantization_config": None, "text_config": None}) is None
