"""The small kernels between the matrix products of a layer (`layer_ops.cpp`), for one dtype."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from sloserve.model.compiler import NotCompiled, compiled

SOURCE = Path(__file__).with_name("layer_ops.cpp")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
SMALL = 60_000
"""Numbers of a call that is over before another thread could use the interpreter's lock."""


class NormCall(ctypes.Structure):
    """`SloserveNorm`."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("source", "to", "weight")),
        *((n, ctypes.c_int64) for n in ("rows", "size", "source_row")),
        ("epsilon", ctypes.c_float),
        ("round_first", ctypes.c_int32),
    )


class TurnCall(ctypes.Structure):
    """`SloserveTurn`."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("heads", "cosine", "sine", "query_weight", "key_weight")),
        *(
            (n, ctypes.c_int64)
            for n in ("tokens", "token_stride", "num_queries", "num_keys", "size", "turned")
        ),
        ("epsilon", ctypes.c_float),
        ("round_first", ctypes.c_int32),
    )


class GateCall(ctypes.Structure):
    """`SloserveGate`."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("source", "to")),
        *((n, ctypes.c_int64) for n in ("rows", "size")),
        ("gelu", ctypes.c_int32),
    )


class LayerKernels:
    """
    `norm`, `turn` and `gate`: each takes a call structure and how many numbers it goes over. Small
    calls keep the interpreter's lock, since handing it over takes longer than they do.
    """

    def __init__(self, library: Path, dtype: torch.dtype) -> None:
        name = NAMES[dtype]
        loaded = (ctypes.PyDLL(str(library)), ctypes.CDLL(str(library)))
        self.dtype = dtype
        self.longest_head = int(loaded[0].sloserve_longest_turned_head())
        self.norm = _either(*(getattr(lib, f"sloserve_norm_{name}") for lib in loaded))
        self.turn = _either(*(getattr(lib, f"sloserve_turn_{name}") for lib in loaded))
        self.gate = _either(*(getattr(lib, f"sloserve_gate_{name}") for lib in loaded))


def _either(
    keeping: Callable[..., None], releasing: Callable[..., None]
) -> Callable[[ctypes.Structure, int], None]:
    """One of two functions, that keep the interpreter's lock or release it, by a call's size."""
    for function in (keeping, releasing):
        function.restype = None  # type: ignore[attr-defined]
        function.argtypes = (ctypes.c_void_p, ctypes.c_int)  # type: ignore[attr-defined]

    def call(structure: ctypes.Structure, num: int) -> None:
        function = keeping if num <= SMALL else releasing
        function(ctypes.addressof(structure), torch.get_num_threads())

    return call


def load_kernels(dtype: torch.dtype, *, folder: Path) -> LayerKernels:
    """
    The kernels, compiled into `folder` if they are not there. Raises NotCompiled where they can't
    be had, or not for this dtype.
    """
    if dtype not in NAMES:
        raise NotCompiled(f"they take float32 and bfloat16, not {dtype}")
    library = compiled(SOURCE, folder=folder)
    try:
        return LayerKernels(library, dtype)
    except (OSError, AttributeError) as error:
        raise NotCompiled(f"{library} can't be loaded: {error}") from error
