"""What a layer asks of attention, read from what transformers passes to an attention function."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sloserve.errors import BadInput

WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)
"""Keywords that change neither scores nor weights: positions are in the keys already, the rest is
about what to return."""


class Unsupported(BadInput):
    """A model that can't be served right; the message names what stands in the way."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """
    How one layer turns queries and keys into weights.

        score(i, j) = cap(scaling * q(i) . k(j))  for 0 <= i - j < window, the rest is not seen
        cap(s) = softcap * tanh(s / softcap)
        weights = softmax over the scores and the head's sink, which has no value
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # (num_heads,)

    @property
    def plain(self) -> bool:
        """Whether fused kernels compute it: neither softcap nor sinks."""
        return self.softcap is None and self.sinks is None


def read_terms(given: Mapping[str, object], *, num_heads: int, key_size: int) -> Terms:
    """
    The terms in the keyword arguments of an attention call.

    Raises Unsupported, with the keyword's name, for one that asks for something else: a keyword
    nobody here knows may change what a model says, so it is never passed over.
    """
    scaling: object = None
    window: object = None
    softcap: object = None
    sinks: object = None
    for name, value in given.items():  # per layer and step: kept lean
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name == "scaling":
            scaling = value
        elif name == "sliding_window":
            window = value
        elif name == "softcap":
            softcap = value
        elif name == "s_aux":
            sinks = value
        elif name == "is_causal":
            if value is not True:
                raise Unsupported("attention is not causal (is_causal)")
        elif value is False or (name == "dropout" and value == 0):
            continue
        else:
            raise Unsupported(f"attention is asked for {name}, which is not known here")
    if scaling is None:
        scaling = key_size**-0.5
    if not isinstance(scaling, float | int):
        raise Unsupported(f"attention is asked for a scaling that is {_described(scaling)}")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise Unsupported(f"attention is asked for a sliding_window that is {_described(window)}")
    if softcap is not None and (not isinstance(softcap, float | int) or softcap <= 0):
        raise Unsupported(f"attention is asked for a softcap that is {_described(softcap)}")
    if sinks is not None:
        if not isinstance(sinks, Tensor) or sinks.numel() != num_heads:
            raise Unsupported(
                f"attention is asked for sinks (s_aux) that are {_described(sinks)}, not one "
                f"number for each of {num_heads} heads"
            )
        sinks = sinks.reshape(-1)
    return Terms(float(scaling), window, softcap, sinks)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)
