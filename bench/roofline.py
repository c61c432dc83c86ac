"""What a GPU could do at best: bytes and operations of a step, peaks, and shares of them."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a device moves and computes, by its data sheet or as measured."""

    bytes_per_s: float
    flops_per_s: float  # dense, 16 bits


PEAKS = {
    "H200": Peak(4.8e12, 989e12),
    "H100 NVL": Peak(3.9e12, 835e12),
    "H100 PCIe": Peak(2.0e12, 756e12),
    "H100": Peak(3.35e12, 989e12),
    "A100-SXM4-40GB": Peak(1.555e12, 312e12),
    "A100-PCIE-40GB": Peak(1.555e12, 312e12),
    "A100 80GB PCIe": Peak(1.935e12, 312e12),
    "A100": Peak(2.039e12, 312e12),
    "L40S": Peak(0.864e12, 362e12),
    "L4": Peak(0.3e12, 121e12),
    "A10": Peak(0.6e12, 125e12),
}
"""By a part of the name that CUDA tells, the longest match counts. NVIDIA's data sheets, without
sparsity."""


def peak_of(hardware: str) -> Peak | None:
    """The data sheet's figures for a device's name, None where we have none."""
    words = [name for name in PEAKS if name in hardware]
    exact = [name for name in words if name != "L4" or "L40" not in hardware]
    return PEAKS[max(exact, key=len)] if exact else None


@dataclass(frozen=True, slots=True)
class Work:
    """What a dense decoder moves and computes."""

    num_layers: int
    num_heads: int
    head_size: int
    matrix_parameters: int  # of all layers: each is read once a step and used once a token
    head_parameters: int  # of the output layer: read once a step, used once a logits row
    itemsize: int  # bytes of a parameter
    kv_bytes_per_token: int

    def decode_bytes(self, num_rows: int, *, context: int) -> float:
        """
        Bytes that a step of decodes must read: the weights once, every row's keys and values.

        What it writes, and the embeddings of `num_rows` tokens, are less than a thousandth.
        """
        weights = (self.matrix_parameters + self.head_parameters) * self.itemsize
        return float(weights + num_rows * context * self.kv_bytes_per_token)

    def prefill_flops(self, num_tokens: int, *, prior: int = 0) -> float:
        """
        Operations of one chunk whose last token gets logits: 2 per parameter and token, and for
        every query and key that it sees 2 per number of the key and 2 of the value.
        """
        pairs = num_tokens * prior + num_tokens * (num_tokens + 1) / 2
        attention = 4 * self.num_layers * self.num_heads * self.head_size * pairs
        return 2.0 * (self.matrix_parameters * num_tokens + self.head_parameters) + attention


def busy_share(spans: Iterable[tuple[float, float]]) -> float:
    """
    The share of the time from the first start to the last end in which something ran; `spans` are
    (start, end), in any order, and may overlap.
    """
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("nothing ran")
    busy, reached = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - ordered[0][0]
    return busy / whole if whole > 0 else 1.0
