"""From a folder of weights to a runner that has proved itself."""

import gc
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sloserve.engine.runner import ModelFacts
from sloserve.errors import BadInput
from sloserve.model import hardware
from sloserve.model.attention import NAME
from sloserve.model.checkpoint import model_len, read_config, read_weights, weight_bytes
from sloserve.model.cuda_load import cuda_runner
from sloserve.model.drafting import DraftModel
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache, bytes_per_token, num_blocks_for, readable
from sloserve.model.lora.adapters import NO_ADAPTERS
from sloserve.model.parallel.cut import reading_part, settle
from sloserve.model.parallel.loading import load_over_ranks, whole_reference
from sloserve.model.parallel.ranks import Ranks
from sloserve.model.parallel.seat import Seat
from sloserve.model.proved import NotLean, OnPhase, Proved, prove
from sloserve.model.recommended import default_sampling, end_tokens
from sloserve.model.runner import TorchRunner
from sloserve.model.selftest import Mismatch
from sloserve.model.structure import use_attention
from sloserve.model.tokenizer import HfTokenizer
from sloserve.slo.service import EngineSpec, ModelSpec

_log = logging.getLogger(__name__)


def load_model(
    path: Path,
    *,
    model: ModelSpec,
    engine: EngineSpec,
    on_phase: OnPhase = lambda phase, done, total: None,
    drafter: Path | None = None,
    adapters: Mapping[str, Path] = NO_ADAPTERS,
) -> tuple[TorchRunner, HfTokenizer]:
    """
    The model in folder `path`, tested and with its KV memory, and its tokenizer.

    `drafter` is the folder of a model that writes drafts for it, `adapters` those of LoRA adapters
    by the names that requests give. Raises BadInput when the drafter does not share the tokenizer,
    besides what `load_runner` raises.
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
        adapters=adapters,
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
    adapters: Mapping[str, Path] = NO_ADAPTERS,
    ranks: Ranks | None = None,
    seat: Seat | None = None,
) -> TorchRunner:
    """
    The model in folder `path` alone, and the one that drafts for it, if any; `tokenizer_eos` ends
    answers beside its own tokens. `adapters` as in `load_model`.

    With `engine.tensor_parallel_size` > 1 this starts the other ranks (or takes `ranks`), which
    load their parts meanwhile; a rank itself is given its `seat` and loads its part alone.

    Raises BadInput for a folder that holds no model, a model that can't be served right, a length
    past what it was made for, or too little memory for its KV cache. Sets torch's thread count.
    """
    config = read_config(path)
    if engine.tensor_parallel_size > 1 and seat is None:
        return load_over_ranks(
            path,
            config=config,
            model=model,
            engine=engine,
            adapters=adapters,
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
    max_model_len = model_len(config, model.max_model_len)
    dtype = _dtype(engine.dtype, device)
    try:
        loaded = _load(path, engine, dtype, device, max_model_len, on_phase, adapters, seat)
    except Mismatch as error:
        if engine.dtype != "auto" or dtype is torch.float32:
            raise
        _log.warning("%s does not hold here, taking float32: %s", dtype, error.message)
        gc.collect()
        dtype = torch.float32
        loaded = _load(path, engine, dtype, device, max_model_len, on_phase, adapters, seat)
    drafting: Proved | None = None
    draft_len = 0
    if drafter is not None:
        draft_len = min(max_model_len, model_len(read_config(drafter), None))
        drafting = _load(drafter, engine, loaded.dtype, device, draft_len, on_phase)
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
    lean: bool = True,
) -> TorchRunner:
    """
    The runner over weights that are in memory already, tested like those of a folder; without
    `lean`, the layers stay transformers'.
    """
    device, max_model_len = _device(engine), model_len(network.config, model.max_model_len)
    loaded = prove(network, engine, network.dtype, device, max_model_len, on_phase, lean=lean)
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


def _load(
    path: Path,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    adapters: Mapping[str, Path] = NO_ADAPTERS,
    seat: Seat | None = None,
) -> Proved:
    def load(*, lean: bool) -> Proved:
        return _load_once(
            path, engine, dtype, device, max_model_len, on_phase, adapters, seat, lean=lean
        )

    try:
        return load(lean=True)
    except NotLean as error:
        _log.warning("lean layers do not hold here, taking transformers': %s", error.message)
    gc.collect()
    return load(lean=False)


def _load_once(
    path: Path,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    adapters: Mapping[str, Path],
    seat: Seat | None,
    *,
    lean: bool,
) -> Proved:
    num_bytes = weight_bytes(path)
    on_phase("loading weights", 0, num_bytes)
    expected, part = None, None
    if seat is not None:
        expected = whole_reference(
            path, seat=seat, dtype=dtype, max_model_len=max_model_len, num_bytes=num_bytes
        )
        part = reading_part(seat)
    network = read_weights(path, dtype=dtype, part=part)
    if seat is not None:
        settle(network, seat=seat)
    on_phase("loading weights", num_bytes, num_bytes)
    return prove(
        network, engine, dtype, device, max_model_len, on_phase, adapters, expected, seat, lean
    )


def _runner(
    loaded: Proved,
    drafting: Proved | None,
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
        adapters=() if loaded.adapters is None else loaded.adapters.names,
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
            adapters=loaded.adapters,
            in_graphs=seat is None,
        )
    return TorchRunner(
        loaded.model,
        cache=cache,
        facts=facts,
        defaults=defaults,
        drafter=drafter,
        adapters=loaded.adapters,
    )


def _device(engine: EngineSpec) -> torch.device:
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("cuda is asked for, but torch sees no GPU here", field="engine.device")
    return torch.device(engine.device)


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
