"""
Attention by a kernel of our own, compiled on this machine: decodes and chunks, without gathers.

The kernel (`paged_attention.cpp`) reads keys and values where they lie. What a token gets depends
on its own request alone, to the last bit: other rows, threads and chunk sizes change nothing.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sloserve.model.batch import Batch
from sloserve.model.compiler import NotCompiled, compiled
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.terms import Terms

SOURCE = Path(__file__).with_name("paged_attention.cpp")
DTYPES = (torch.float32, torch.bfloat16)


class _Step(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("num_rows", "num_tokens", "num_padded", "block_size")),
        *((n, ctypes.c_void_p) for n in ("begins", "contexts", "page_begins", "pages", "slots")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("keys", "values")),
        *((n, ctypes.c_int64) for n in ("heads", "kv_heads", "key_size", "value_size", "window")),
        ("sinks", ctypes.c_void_p),
        *((n, ctypes.c_float) for n in ("scaling", "softcap")),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("query", "key", "value", "out")),
        *(
            (n, ctypes.c_int64)
            for n in (
                "query_head",
                "query_token",
                "key_head",
                "key_token",
                "value_head",
                "value_token",
            )
        ),
    )


class Compiled:
    """The path through our kernel. One thread at a time may attend over a cache."""

    name = "compiled"
    block_size = 16

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {
            torch.float32: library.sloserve_attend_float32,
            torch.bfloat16: library.sloserve_attend_bfloat16,
        }
        for function in self._functions.values():
            function.restype = None
            function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        batch: Batch,
        cache: KvCache,
        terms: Terms,
    ) -> Tensor:
        """As `AttentionPath.attend`."""
        query, key, value = (t if t.stride(2) == 1 else t.contiguous() for t in (query, key, value))
        heads, num_padded, key_size = query.shape
        keys, values = cache.layers[layer]
        _, block_size, kv_heads, value_size = values.shape
        out = query.new_empty(num_padded, heads, value_size)
        step = batch.kept.get(self.name)
        if not isinstance(step, _Step):
            step = batch.kept[self.name] = _step(batch, block_size)
        sinks = terms.sinks
        if sinks is not None:
            sinks = sinks.float().contiguous()
        of_layer = _Layer(
            keys.data_ptr(),
            values.data_ptr(),
            heads,
            kv_heads,
            key_size,
            value_size,
            terms.window or 0,
            None if sinks is None else sinks.data_ptr(),
            terms.scaling,
            terms.softcap or 0.0,
        )
        call = _Call(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            *query.stride()[:2],
            *key.stride()[:2],
            *value.stride()[:2],
        )
        self._functions[cache.dtype](
            ctypes.addressof(step),
            ctypes.addressof(of_layer),
            ctypes.addressof(call),
            torch.get_num_threads(),
        )
        return out


def _step(batch: Batch, block_size: int) -> _Step:
    tables = batch.tables
    return _Step(
        len(batch.contexts),
        batch.slots.shape[0],
        batch.input_ids.shape[1],
        block_size,
        *(
            t.data_ptr()
            for t in (
                tables.begins,
                tables.contexts,
                tables.page_begins,
                tables.pages,
                batch.slots,
            )
        ),
    )


def load_compiled(*, dtype: torch.dtype, layers: Sequence[LayerShape], folder: Path) -> Compiled:
    """
    The path for such layers; compiles the kernel into `folder` if it is not there.

    Raises NotCompiled where it can't be had, or does not take this dtype or these heads.
    """
    if dtype not in DTYPES:
        raise NotCompiled(f"it takes float32 and bfloat16, not {dtype}")
    library_path = compiled(SOURCE, folder=folder)
    try:
        library = ctypes.CDLL(str(library_path))
        most = int(library.sloserve_largest_head())
    except (OSError, AttributeError) as error:
        raise NotCompiled(f"{library_path} can't be loaded: {error}") from error
    largest = max(max(shape.key_size, shape.value_size) for shape in layers)
    if largest > most:
        raise NotCompiled(f"it takes heads of at most {most} numbers, not {largest}")
    return Compiled(library)
