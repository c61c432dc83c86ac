"""
llama.cpp's server on one of our benchmark models; run by a Python that has xllamacpp and gguf.

    VENV/bin/python bench/peers_llama.py FOLDER PORT SLOTS THREADS float32|bfloat16

FOLDER holds a Llama checkpoint in float32 with a byte-level BPE tokenizer. It is converted to
GGUF beside its weights, in the dtype that is asked for, unless that was done before.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import xllamacpp  # type: ignore[import-not-found, unused-ignore]

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
CONTEXT_TOKENS = 256  # of a slot


def tensors(path: Path) -> dict[str, Any]:
    """The float32 arrays of a safetensors file: a length, a JSON header, raw bytes."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, told in header.items():
        begin, end = (8 + size + offset for offset in told["data_offsets"])
        found[name] = np.frombuffer(raw[begin:end], dtype=np.float32).reshape(told["shape"])
    return found


def gguf_name(name: str) -> str:
    """transformers' name of a weight in llama.cpp's words."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permuted(weight: Any, heads: int) -> Any:
    """Rotary pairs side by side, as llama.cpp has them, instead of half a head apart."""
    rows, columns = weight.shape
    by_half = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(by_half.swapaxes(1, 2).reshape(rows, columns))


def convert(folder: Path, dtype: str) -> Path:
    """The model as GGUF."""
    target = folder / f"model-{dtype}.gguf"
    if target.exists():
        return target
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    for name, weight in tensors(folder / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, heads if "q_proj" in name else kv_heads)
        if dtype == "bfloat16" and weight.ndim > 1:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_tokenizer(writer: Any, told: dict[str, Any]) -> None:
    special = {token["id"]: token["content"] for token in told["added_tokens"]}
    by_id = {number: text for text, number in told["model"]["vocab"].items()} | special
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id[number] for number in range(len(by_id))])
    writer.add_token_types([3 if number in special else 1 for number in range(len(by_id))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def main() -> None:
    folder, port, slots, threads, dtype = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = str(convert(Path(folder), dtype))
    params.port, params.n_parallel = int(port), int(slots)
    params.n_ctx = CONTEXT_TOKENS * int(slots)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.warmup = True
    server = xllamacpp.Server(params)
    print("listening at", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
