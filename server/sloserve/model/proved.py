"""The tests that every model goes through before it is served, and what comes out of them."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sloserve.model.choice import choose_path
from sloserve.model.compiled import Compiled
from sloserve.model.compiler import NotCompiled
from sloserve.model.cuda_load import out_of_memory_told
from sloserve.model.gathered import Gathered
from sloserve.model.kv import LayerShape
from sloserve.model.lean.convert import make_lean
from sloserve.model.lean.kernels import load_kernels
from sloserve.model.linear import can_pack, pack_linears
from sloserve.model.lora.adapters import NO_ADAPTERS, Adapters, load_adapters
from sloserve.model.lora.proof import prove_adapters, references
from sloserve.model.parallel.loading import same_everywhere, settle_together
from sloserve.model.parallel.seat import Seat
from sloserve.model.path import AttentionPath
from sloserve.model.profile import cache_folder
from sloserve.model.selftest import Reference, check, reference
from sloserve.model.structure import AttentionLayer, attention_layers
from sloserve.model.terms import Unsupported
from sloserve.model.windowtest import check_windows
from sloserve.slo.service import EngineSpec

_log = logging.getLogger(__name__)

OnPhase = Callable[[str, int, int], None]
"""Called with a phase's name, bytes done and bytes in total (0: not counted)."""


class NotLean(Unsupported):
    """A model fails its tests with lean layers; its weights are to be read once more."""


@dataclass(frozen=True, slots=True)
class Proved:
    """A model that passed the load-time tests, on its device."""

    model: PreTrainedModel
    shapes: list[LayerShape]
    dtype: torch.dtype
    attention: AttentionPath
    worst: float  # the self-test's largest difference
    adapters: Adapters | None = None


def prove(
    network: PreTrainedModel,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    adapters: Mapping[str, Path] = NO_ADAPTERS,
    expected: Reference | None = None,
    seat: Seat | None = None,
    lean: bool = True,
) -> Proved:
    """
    The model on its device, with the attention that passed the load-time tests, and the adapters
    in the folders `adapters`, by name. `expected` is what it must say where the model here is only
    the part of rank `seat`; all ranks then prove theirs together. `lean`: with lean layers where
    they can be had (CPU, our kernels, whole models without adapters).

    Raises BadInput for a model that must not be served here, with every path that may be taken
    (`Mismatch`: another dtype may hold; `NotLean`: it may hold without lean layers), or too little
    memory for it.
    """
    network.train(False).requires_grad_(False)
    with out_of_memory_told(network, device):
        network.to(device)  # type: ignore[arg-type]
        return _tested(
            network, engine, dtype, device, max_model_len, on_phase, adapters, expected, seat, lean
        )


def _tested(
    network: PreTrainedModel,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
    folders: Mapping[str, Path],
    expected: Reference | None,
    seat: Seat | None,
    lean: bool,
) -> Proved:
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
    adapters = load_adapters(folders, model=network, dtype=dtype)
    adapted = references(adapters, network, max_model_len=max_model_len)
    replaced = {}
    if device.type == "cpu" and can_pack(dtype):
        if lean and isinstance(attention, Compiled) and adapters is None and seat is None:
            replaced = _lean(network, layers, dtype, max_model_len=max_model_len)
        pack_linears(network)
        gc.collect()

    def tested(path: AttentionPath) -> float:
        return _test(network, layers, expected, path, max_model_len=max_model_len)

    try:
        worst = settle_together(seat, lambda: tested(attention))
    except Unsupported as error:  # also where the kernel can't be run
        if replaced:
            raise NotLean(error.message) from error
        if engine.attention != "auto" or isinstance(attention, Gathered):
            raise
        worst = settle_together(seat, lambda: tested(Gathered()))
        _log.warning(
            "attention by torch's kernels, the %s one does not hold here: %s",
            attention.name,
            error.message,
        )
        attention = Gathered()
    prove_adapters(adapters, network, shapes, adapted, max_model_len=max_model_len, path=attention)
    return Proved(network, shapes, dtype, attention, worst, adapters)


def _lean(
    network: PreTrainedModel,
    layers: Sequence[AttentionLayer],
    dtype: torch.dtype,
    *,
    max_model_len: int,
) -> dict[str, int]:
    """What was replaced by lean modules; nothing where their kernels can't be had."""
    try:
        kernels = load_kernels(dtype, folder=cache_folder("kernels"))
    except NotCompiled as error:
        _log.info("layers as transformers computes them: %s", error)
        return {}
    replaced = make_lean(network, layers, kernels, max_model_len=max_model_len)
    told = ", ".join(f"{num} {kind}" for kind, num in replaced.items()) or "none"
    _log.info("%s: lean modules: %s", type(network).__name__, told)
    return replaced


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
