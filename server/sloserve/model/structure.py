"""What a model's layers really call, found by one tiny forward pass that computes no attention."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from random import Random

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from sloserve.model.kv import LayerShape
from sloserve.model.terms import Terms, Unsupported, read_terms

_NAME = "sloserve_probe"
_NUM_TOKENS = 4

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One layer's attention, as seen in a real call."""

    shape: LayerShape
    num_heads: int
    terms: Terms


@dataclass(frozen=True, slots=True)
class _Call:
    layer: int | None
    shape: LayerShape
    num_heads: int
    mask: Tensor | None
    given: dict[str, object]


@dataclass(slots=True)
class _Probe:
    """Calls of attention and of the mask builder while the probe runs."""

    calls: list[_Call] = field(default_factory=list)
    masks: list[MaskFunction] = field(default_factory=list)


_probe = _Probe()


def _record_mask(
    batch_size: int, q_length: int, kv_length: int, mask_function: MaskFunction, **_: object
) -> Tensor:
    """A mask that holds nothing but the number of its function, to be found again."""
    _probe.masks.append(mask_function)
    return torch.full((batch_size, 1, q_length, kv_length), float(len(_probe.masks)))


def _record_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **given: object,
) -> tuple[Tensor, None]:
    layer = getattr(module, "layer_idx", None)
    shape = LayerShape(key.shape[1], key.shape[3], value.shape[3])
    mask = None if attention_mask is None else attention_mask.clone()
    batch, heads, length, _ = query.shape
    _probe.calls.append(_Call(layer, shape, heads, mask, given))
    return query.new_zeros(batch, length, heads, value.shape[3]), None


AttentionInterface.register(_NAME, _record_attention)
AttentionMaskInterface.register(_NAME, _record_mask)


def attention_layers(model: PreTrainedModel, *, max_model_len: int) -> list[AttentionLayer]:
    """
    What each layer asks of attention, from real calls, once the structure is one that we serve.

    Raises Unsupported, naming the layer type, when layers don't call attention through the
    interface exactly once each, keep other state, ask for what is not known here, or mask keys in
    a way other than causal and sliding window. A few hundred tokens may not show such faults.
    """
    name = type(model).__name__
    for needed in ("position_ids", "logits_to_keep"):
        if needed not in signature(model.forward).parameters:
            raise Unsupported(f"{name} takes no {needed}: requests can't share a forward pass")
    use_attention(model, _NAME)
    _probe.calls.clear()
    _probe.masks.clear()
    ids = torch.arange(_NUM_TOKENS, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=ids, use_cache=False)
    except Exception as error:  # whatever a model does with four tokens
        raise Unsupported(f"{name}: a plain forward pass fails: {error}") from error
    else:
        calls, masks = list(_probe.calls), list(_probe.masks)
    finally:
        _probe.calls.clear()
        _probe.masks.clear()
    _check_calls(model, calls)
    layers = []
    for call in sorted(calls, key=lambda call: call.layer or 0):
        where = f"{name}, layer {call.layer}"
        try:
            terms = read_terms(call.given, num_heads=call.num_heads, key_size=call.shape.key_size)
        except Unsupported as error:
            raise Unsupported(f"{where}: {error.message}") from error
        _check_mask(call, masks, where=where, window=terms.window, max_model_len=max_model_len)
        layers.append(AttentionLayer(call.shape, call.num_heads, terms))
    return layers


def use_attention(model: PreTrainedModel, implementation: str) -> None:
    """Select an attention by name; raises Unsupported where the family has its own, old-style."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(implementation)
    config = model.config.get_text_config()
    if config._attn_implementation != implementation:
        raise Unsupported(
            f"{type(model).__name__} computes attention in its own way and offers no attention "
            f"interface (layers: {', '.join(_layer_types(model)) or 'unknown'})"
        )


def _check_calls(model: PreTrainedModel, calls: list[_Call]) -> None:
    """Exactly one call of attention per layer, numbered from 0."""
    num_layers: int = model.config.get_text_config().num_hidden_layers
    counted = Counter(call.layer for call in calls)
    if counted == Counter(range(num_layers)):
        return
    silent = [i for i in range(num_layers) if counted[i] == 0]
    types = sorted({kind for i in silent for kind in _layer_types(model, i)})
    if silent:
        found = f"layers {silent} ({', '.join(types) or 'unknown'}) don't call attention"
    else:
        found = f"attention is called {len(calls)} times for {num_layers} layers"
    raise Unsupported(
        f"{type(model).__name__}: {found}; a layer must keep keys and values and nothing else"
    )


def _layer_types(model: PreTrainedModel, layer: int = 0) -> list[str]:
    """Class names inside one decoder layer that are no plain building blocks."""
    num_layers = model.config.get_text_config().num_hidden_layers
    names: list[str] = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            names = [type(child).__name__ for child in module[layer].children()]
            break
    kinds = [n for n in names if not n.endswith(("Norm", "MLP", "Dropout")) and n != "Linear"]
    declared = getattr(model.config.get_text_config(), "layer_types", None)
    return kinds + ([declared[layer]] if declared else [])


def _check_mask(
    call: _Call,
    masks: list[MaskFunction],
    *,
    where: str,
    window: int | None,
    max_model_len: int,
) -> None:
    """The mask is causal, with the window that the call names."""
    if call.mask is None:
        return  # the model leaves it to the attention function, whose rule is causal
    number = int(call.mask.flatten()[0].item())
    if not (1 <= number <= len(masks)) or bool((call.mask != number).any()):
        raise Unsupported(f"{where}: the model changes its attention mask")
    queries, keys = _pairs(max_model_len, window)
    zero = torch.zeros_like(queries)
    visible = masks[number - 1](zero, zero, queries, keys)
    expected = keys <= queries
    if window is not None:
        expected &= queries - keys < window
    wrong = (visible != expected).nonzero()
    if wrong.numel():
        i = int(wrong[0])
        with_window = "" if window is None else f" with a window of {window}"
        raise Unsupported(
            f"{where}: the mask is not causal{with_window}: key {int(keys[i])} should "
            f"{'' if bool(expected[i]) else 'not '}be visible to query {int(queries[i])} "
            f"(chunked and other masks are not supported)"
        )


def _pairs(max_model_len: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Pairs of query and key positions: random ones of all sizes, neighbours, window edges."""
    random = Random(0)
    queries: list[int] = []
    distances: list[int] = []
    near = [0, 1, 2] + ([] if window is None else [window - 1, window, window + 1])
    for _ in range(1024):
        query = random.randrange(1 + int(max_model_len ** random.random()))
        query = min(query, max_model_len - 1)
        queries += [query] * (len(near) + 2)
        distances += [*near, random.randrange(query + 1), -random.randrange(1, 9)]
    pairs = [(q, q - d) for q, d in zip(queries, distances, strict=True) if q - d >= 0]
    return torch.tensor([q for q, _ in pairs]), torch.tensor([k for _, k in pairs])
