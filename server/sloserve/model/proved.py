"""The tests that every model goes through before it is served, and what comes out of them."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sloserve.model.choice import choose_path
from sloserve.model.cuda_load import out_of_memory_told
from sloserve.model.gathered import Gathered
from sloserve.model.kv import LayerShape
from sloserve.model.linear import can_pack, pack_linears
from sloserve.model.path import AttentionPath
from sloserve.model.selftest import Reference, check, reference
from sloserve.model.structure import AttentionLayer, attention_layers
from sloserve.model.terms import Unsupported
from sloserve.model.windowtest import check_windows
from sloserve.slo.service import EngineSpec

_log = logging.getLogger(__name__)

OnPhase = Callable[[str, int, int], None]
"""Called with a phase's name, bytes done and bytes in total (0: not counted)."""


@dataclass(frozen=True, slots=True)
class Proved:
    """A model that passed the load-time tests, on its device."""

    model: PreTrainedModel
    shapes: list[LayerShape]
    dtype: torch.dtype
    attention: AttentionPath
    worst: float  # the self-test's largest difference


def prove(
    network: PreTrainedModel,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
) -> Proved:
    """
    The model on its device, with the attention that passed the load-time tests.

    Raises BadInput for a model that must not be served here, with every path that may be taken
    (`Mismatch`: another dtype may hold), or too little memory for it.
    """
    network.train(False).requires_grad_(False)
    with out_of_memory_told(network, device):
        network.to(device)  # type: ignore[arg-type]
        return _tested(network, engine, dtype, device, max_model_len, on_phase)


def _tested(
    network: PreTrainedModel,
    engine: EngineSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    on_phase: OnPhase,
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
    on_phase("testing the model", 0, 0)
    expected = reference(network, max_model_len=max_model_len)
    if device.type == "cpu" and can_pack(dtype):
        pack_linears(network)
        gc.collect()
    try:
        worst = _test(network, layers, expected, attention, max_model_len=max_model_len)
    except Unsupported as error:  # also where the kernel can't be run
        if engine.attention != "auto" or isinstance(attention, Gathered):
            raise
        worst = _test(network, layers, expected, Gathered(), max_model_len=max_model_len)
        _log.warning(
            "attention by torch's kernels, the %s one does not hold here: %s",
            attention.name,
            error.message,
        )
        attention = Gathered()
    return Proved(network, shapes, dtype, attention, worst)


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
