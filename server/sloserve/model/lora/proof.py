"""The load-time test of adapters: each beside another row's, against the plain forward pass."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedModel

from sloserve.model.kv import LayerShape, readable
from sloserve.model.lora.adapters import Adapters
from sloserve.model.path import AttentionPath
from sloserve.model.selftest import Mismatch, Reference, check, reference
from sloserve.model.terms import Unsupported

_log = logging.getLogger(__name__)

References = dict[str, Reference]


def references(
    adapters: Adapters | None, model: PreTrainedModel, *, max_model_len: int
) -> References:
    """What the plain model with each adapter says to random tokens, by the adapters' names."""
    found: References = {}
    for name in adapters.names if adapters is not None else ():
        assert adapters is not None
        try:
            with adapters.plainly(model, name):
                found[name] = reference(model, max_model_len=max_model_len)
        except Unsupported as error:
            raise _told(name, error) from error
    return found


def prove_adapters(
    adapters: Adapters | None,
    model: PreTrainedModel,
    shapes: Sequence[LayerShape],
    expected: References,
    *,
    max_model_len: int,
    path: AttentionPath,
) -> None:
    """Raises Unsupported for an adapter whose rows, beside others, differ from its reference."""
    if adapters is None:
        return
    adapters.bind(model)
    names = adapters.names
    for number, name in enumerate(names):
        beside = names[number - 1] if len(names) > 1 else ""
        try:
            check(
                model,
                shapes,
                expected[name],
                max_model_len=max_model_len,
                path=path,
                adapters=(beside, name, name),
                run=adapters.forward,
            )
        except Unsupported as error:
            raise _told(name, error) from error
    _log.info("LoRA adapters: %s (%s)", ", ".join(names), readable(adapters.num_bytes))


def _told(name: str, error: Unsupported) -> Unsupported:
    kind = Mismatch if isinstance(error, Mismatch) else Unsupported  # another dtype may hold
    return kind(f"adapter '{name}' can't be served: {error.message}")
