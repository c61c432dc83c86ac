"""From a folder of weights to a runner that has proved itself."""

import gc
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sloserve.engine.runner import ModelFacts
from sloserve.errors import BadInput
from sloserve.model import hardware
from sloserve.model.attention import NAME
from sloserve.model.choice import choose_path
from sloserve.model.cuda_load import cuda_runner, out_of_memory_told
from sloserve.model.drafting import DraftModel
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache, LayerShape, bytes_per_token, num_blocks_for, readable
from sloserve.model.linear import can_pack, pack_linears
from sloserve.model.parallel.cut import reading_part, settle
from sloserve.model.parallel.loading import (
    load_over_ranks,
    same_everywhere,
    settle_together,
    whole_reference,
)
from sloserve.model.parallel.ranks import Ranks
from sloserve.model.parallel.seat import Seat
from sloserve.model.path import AttentionPath
from sloserve.model.recommended import default_sampling, end_tokens
from sloserve.model.runner import TorchRunner
from sloserve.model.selftest import Mismatch, Reference, check, reference
from sloserve.model.structure import AttentionLayer, attention_layers, use_attention
from sloserve.model.terms import Unsupported
from sloserve.model.tokenizer import HfTokenizer
from sloserve.model.windowtest import check_windows
from sloserve.slo.service import EngineSpec, ModelSpec

_log = logging.getLogger(__name__)

OnPhase = Callable[[str, int, int], None]
"""Called with a phase's name, bytes done and bytes in total (0: not counted)."""


def load_model(
    path: Path,
    *,
    model: ModelSpec,
    engine: EngineSpec,
    on_phase: OnPhase = lambda phase, done, total: None,
    drafter: Path | None = None,
) -> tuple[TorchRunner, HfTokenizer]:
    """
    The model in folder `path`, tested and with its KV memory, and its tokenizer.

    `drafter` is the folder of a model that writes drafts for it. Raises BadInput when it does
    not share the tokenizer, besides what `load_runner` raises.
    """
    on_phase("loading the tokenizer", 0, 0)
    tokenizer = HfTokenizer(path, chat_template=model.chat_template)
    if drafter is not None and not tokenizer.same_tokens(HfTokenizer(drafter)):
        raise BadInput(
            f"{drafter} has another tokenizer than {path}: its tokens can't be drafts; give a "
            "model of the same family, or ngram",
            field="engine.speculation.drafter",
        )
    runner = load_runner(
        path,
        model=model,
        engine=engine,
        on_phase=on_phase,
        tokenizer_eos=tokenizer.eos_id,
        drafter=drafter,
    )
    return runner, tokenizer


def load_runner(
    path: Path,
    *,
    model: ModelSpec,
    engine: EngineSpec,
    on_phase: OnPhase = lambda phase, done, total: None,
    tokenizer_eos: int | None = None,
    drafter: Path | None = None,
    ranks: Ranks | None = None,
    seat: Seat | None = None,
) -> TorchRunner:
    """
    The model in folder `path` alone, and the one that drafts for it, if any; `tokenizer_eos` ends
    answers beside its own tokens.

    With `engine.tensor_parallel_size` > 1 this starts the other ranks (or takes `ranks`), which
    load their parts meanwhile; a rank itself is given its `seat` and loads its part alone.

    Raises BadInput for a folder that holds no model, a model that can't be served right, a length
    past what it was made for, or too little memory for its KV cache. Sets torch's thread count.
    """
    config = _read_config(path)
    if engine.tensor_parallel_size > 1 and seat is None:
        return load_over_ranks(
            path,
            config=config,
            model=model,
            engine=engine,
            ranks=ranks,
            load=lambda seat: load_runner(
                path,
                model=model,
                engine=engine,
                on_phase=on_phase,
                tokenizer_eos=tokenizer_eos,
                drafter=drafter,
                seat=seat,
            ),
        )
    device = _device(engine)
    num_threads = engine.threads or hardware.num_cores()
    if seat is not None:
        num_threads = seat.share(num_threads)
    torch.set_num_threads(num_threads)
    max_model_len = _model_len(config, model.max_model_len)
    num_bytes = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    dtype = _dtype(engine.dtype, device)
    try:
        loaded = _load(path, engine, dtype, device, max_model_len, on_phase, num_bytes, seat)
    except Mismatch as error:
        if engine.dtype != "auto" or dtype is torch.float32:
            raise
        _log.warning("%s does not hold here, taking float32: %s", dtype, error.message)
        gc.collect()
        dtype = torch.float32
        loaded = _load(path, engine, dtype, device, max_model_len, on_phase, num_bytes, seat)
    drafting: _Loaded | None = None
    draft_len = 0
    if drafter is not None:
        draft_len = min(max_model_len, _model_len(_read_config(drafter), None))
        num_bytes = sum(file.stat().st_size for file in drafter.glob("*.safetensors"))
        drafting = _load(drafter, engine, loaded.dtype, device, draft_len, on_phase, num_bytes)
    on_phase("allocating the KV cache", 0, 0)
    return _runner(
        loaded,
        drafting,
        draft_len=draft_len,
        model=model,
        engine=engine,
        max_model_len=max_model_len,
        device=device,
        num_threads=num_threads,
        tokenizer_eos=tokenizer_eos,
        on_phase=on_phase,
        seat=seat,
    )


def runner_over(
    network: PreTrainedModel,
    *,
    model: ModelSpec,
    engine: EngineSpec,
    on_phase: OnPhase = lambda phase, done, total: None,
) -> TorchRunner:
    """The runner over weights that are in memory already, tested like those of a folder."""
    device, max_model_len = _device(engine), _model_len(network.config, model.max_model_len)
    loaded = _proved(network, engine, network.dtype, device, max_model_len, on_phase)
    return _runner(
        loaded,
        None,
        draft_len=0,
        model=model,
        engine=engine,
        max_model_len=max_model_len,
        device=device,
        num_threads=torch.get_num_threads(),
        tokenizer_eos=None,
        on_phase=on_phase,
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: PreTrainedModel
    shapes: list[LayerShape]
    dtype: torch.dtype
    attention: AttentionPath
    worst: float  # the self-test's largest difference


def _load(
    path: Path,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    num_bytes: int,
    seat: Seat | None = None,
) -> _Loaded:
    on_phase("loading weights", 0, num_bytes)
    expected = None
    if seat is not None:
        expected = whole_reference(
            path, seat=seat, dtype=dtype, max_model_len=max_model_len, num_bytes=num_bytes
        )
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        answer = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **({} if seat is None else reading_part(seat)),
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{path} can't be loaded: {error}", field="model.source") from error
    network, notes = cast("tuple[PreTrainedModel, dict[str, set[str]]]", answer)
    if lost := sorted(notes["missing_keys"]):  # transformers would leave them random
        raise BadInput(
            f"{path} lacks {len(lost)} of the model's weights, among them {lost[0]}",
            field="model.source",
        )
    if seat is not None:
        settle(network, seat=seat)
    on_phase("loading weights", num_bytes, num_bytes)
    return _proved(network, engine, dtype, device, max_model_len, on_phase, expected, seat)


def _proved(
    network: PreTrainedModel,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    expected: Reference | None = None,
    seat: Seat | None = None,
) -> _Loaded:
    """The model on its device, with the attention that passed the load-time tests."""
    network.train(False).requires_grad_(False)
    with out_of_memory_told(network, device):
        network.to(device)  # type: ignore[arg-type]
        return _tested(network, engine, dtype, device, max_model_len, on_phase, expected, seat)


def _tested(
    network: PreTrainedModel,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    expected: Reference | None,
    seat: Seat | None,
) -> _Loaded:
    on_phase("preparing attention", 0, 0)
    layers = attention_layers(network, max_model_len=max_model_len)
    shapes = [layer.shape for layer in layers]
    attention = choose_path(
        engine.attention,
        device=device,
        dtype=dtype,
        layers=shapes,
        terms=[layer.terms for layer in layers],
    )
    same_everywhere(seat, "attention path", attention.name)
    on_phase("testing the model", 0, 0)
    expected = expected or reference(network, max_model_len=max_model_len)
    if device.type == "cpu" and can_pack(dtype):
        pack_linears(network)
        gc.collect()

    def tested(path: AttentionPath) -> float:
        return _test(network, layers, expected, path, max_model_len=max_model_len)

    try:
        worst = settle_together(seat, lambda: tested(attention))
    except Unsupported as error:  # also where the kernel can't be run
        if engine.attention != "auto" or isinstance(attention, Gathered):
            raise
        worst = settle_together(seat, lambda: tested(Gathered()))
        _log.warning(
            "attention by torch's kernels, the %s one does not hold here: %s",
            attention.name,
            error.message,
        )
        attention = Gathered()
    return _Loaded(network, shapes, dtype, attention, worst)


def _test(
    network: PreTrainedModel,
    layers: Sequence[AttentionLayer],
    expected: Reference,
    attention: AttentionPath,
    *,
    max_model_len: int,
) -> float:
    """The largest difference of any logit; raises Mismatch when the model must not be served so."""
    worst = check(
        network,
        [layer.shape for layer in layers],
        expected,
        max_model_len=max_model_len,
        path=attention,
    )
    check_windows(
        type(network).__name__,
        layers,
        max_model_len=max_model_len,
        dtype=network.dtype,
        device=network.device,
        path=attention,
    )
    return worst


def _runner(
    loaded: _Loaded,
    drafting: _Loaded | None,
    *,
    draft_len: int,
    model: ModelSpec,
    engine: EngineSpec,
    max_model_len: int,
    device: torch.device,
    num_threads: int,
    tokenizer_eos: int | None,
    on_phase: OnPhase,
    seat: Seat | None = None,
) -> TorchRunner:
    use_attention(loaded.model, NAME)
    block_size = loaded.attention.block_size
    num_ranks = 1 if seat is None else seat.size
    budget, note = _kv_budget(engine, device, num_ranks=num_ranks)
    layers = [*loaded.shapes, *(drafting.shapes if drafting is not None else ())]
    num_blocks = num_blocks_for(
        budget,
        layers=layers,
        dtype=loaded.dtype,
        block_size=block_size,
        max_model_len=max_model_len,
        budget_note=note,
    )
    # more than every running request at its full length is never of use
    num_blocks = min(num_blocks, engine.max_running * -(-max_model_len // block_size))
    if seat is not None:
        num_blocks = seat.least(num_blocks)  # a page is at the same place everywhere
    cache = KvCache(
        loaded.shapes,
        num_blocks=num_blocks + (device.type == "cuda"),  # one for the padding of graphs
        block_size=block_size,
        dtype=loaded.dtype,
        device=device,
        path=loaded.attention,
    )
    per_token = bytes_per_token(layers, loaded.dtype)
    machine = hardware.hardware_name(device, num_threads=num_threads)
    vocab_size = loaded.model.config.get_text_config().vocab_size
    drafter: DraftModel | None = None
    if drafting is not None:
        use_attention(drafting.model, NAME)
        same_pages = drafting.attention.block_size == block_size
        drafter = DraftModel(
            drafting.model,
            cache=KvCache(
                drafting.shapes,
                num_blocks=num_blocks,
                block_size=block_size,
                dtype=drafting.dtype,
                device=device,
                path=drafting.attention if same_pages else Gathered(),
            ),
            vocab_size=vocab_size,
            max_len=draft_len,
        )
    facts = ModelFacts(
        name=model.served_name,
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        eos_ids=end_tokens(loaded.model, tokenizer_eos=tokenizer_eos),
        block_size=block_size,
        num_blocks=num_blocks,
        kv_bytes_per_token=per_token * num_ranks,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=device.type,
        hardware=machine if seat is None else f"{num_ranks} x {machine}",
        attention=loaded.attention.name,
        steps_aside=device.type == "cuda",
        tensor_parallel_size=num_ranks,
    )
    _log.info(
        "%s: %s on %s, attention: %s; KV cache of %d blocks x %d tokens = %s (%s); "
        "self-test within %.1e",
        facts.name,
        facts.dtype,
        facts.hardware,
        loaded.attention.name,
        num_blocks,
        block_size,
        readable(num_blocks * block_size * per_token) + (" per rank" if seat is not None else ""),
        note,
        loaded.worst,
    )
    defaults = default_sampling(loaded.model)
    if device.type == "cuda":
        on_phase("capturing CUDA graphs", 0, 0)
        return cuda_runner(
            loaded.model,
            cache=cache,
            facts=facts,
            defaults=defaults,
            max_rows=engine.max_running,
            drafter=drafter,
            in_graphs=seat is None,
        )
    return TorchRunner(loaded.model, cache=cache, facts=facts, defaults=defaults, drafter=drafter)


def _device(engine: EngineSpec) -> torch.device:
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("cuda is asked for, but torch sees no GPU here", field="engine.device")
    return torch.device(engine.device)


def _read_config(path: Path) -> PreTrainedConfig:
    if not path.is_dir():
        raise BadInput(f"{path} is no folder", field="model.source")
    if (path / "adapter_config.json").exists():
        raise BadInput(f"{path} holds a LoRA adapter, not a model", field="model.source")
    if not (path / "config.json").exists():
        raise BadInput(f"{path} has no config.json", field="model.source")
    if not any(path.glob("*.safetensors")):
        raise BadInput(
            f"{path} has no *.safetensors; other weight formats can run code and are not read",
            field="model.source",
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise BadInput(f"{path}/config.json: {error}", field="model.source") from error
    return config


def _model_len(config: PreTrainedConfig, asked: int | None) -> int:
    """The longest request: what is asked for, never past what the model was made for."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    long_rope = _long_rope_limit(text)
    if long_rope is not None and (limit is None or long_rope < limit):
        if asked is None:
            _log.warning("longrope: requests end at %d tokens (the short factors)", long_rope)
        limit = long_rope
        why = (
            f"past {limit} tokens its rotary embedding (longrope) follows the longest request of "
            f"the batch and would change all others"
        )
    else:
        why = f"the model was made for {limit} positions (max_position_embeddings)"
    if asked is None:
        if limit is None:
            raise BadInput(
                "the model names no longest position; set one", field="model.maxModelLen"
            )
        return int(limit)
    if limit is not None and asked > limit:
        raise BadInput(f"{asked} is too long: {why}", field="model.maxModelLen")
    return asked


def _long_rope_limit(config: PreTrainedConfig) -> int | None:
    """Up to here a longrope model uses its short factors only."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(v for v in parameters.values() if isinstance(v, dict))]
    limits = [
        int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(limits) if limits else None


def _dtype(asked: str, device: torch.device) -> torch.dtype:
    """
    `auto`: bfloat16 where the device computes it natively, else float32.

    Natively it is faster at every size: 5M parameters on one Zen 4 core, decode of 1, 8 and 32
    rows 10-15 % and prefill 25 %; larger models gain more, being bound by reading weights.
    """
    if asked != "auto":
        named: torch.dtype = getattr(torch, asked)
        return named
    return torch.bfloat16 if hardware.computes_bfloat16(device) else torch.float32


def _kv_budget(engine: EngineSpec, device: torch.device, *, num_ranks: int) -> tuple[int, str]:
    """This rank's bytes for the KV cache, and the arithmetic behind it."""
    if engine.kv_bytes is not None:
        shared = "" if num_ranks == 1 else f" / {num_ranks} ranks"
        return engine.kv_bytes // num_ranks, f"engine.kvCache.size{shared}"
    total, used = hardware.memory_bytes(device), hardware.used_bytes(device)
    share, shared = engine.kv_memory_fraction, ""
    if num_ranks > 1 and device.type == "cpu":  # one memory for all; a GPU is a rank's own
        share, shared = share / num_ranks, f" / {num_ranks} ranks"
    return int(share * total) - used, (
        f"memoryFraction {engine.kv_memory_fraction:g} x {readable(total)} of {device.type} "
        f"memory{shared} - {readable(used)} in use"
    )
