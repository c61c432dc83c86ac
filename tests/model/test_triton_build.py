"""Our Triton kernel, compiled ahead of time for Hopper GPUs: what would be launched, as it is."""

import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import build_batch
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.terms import Terms
from sloserve.model.triton_attention import TritonPath

if find_spec("triton") is None:
    pytest.skip("needs triton: pip install 'sloserve[kernels]'", allow_module_level=True)

SHARED_BYTES = 227 * 1024  # that a program may have on sm_90
SMALL_SHARED_BYTES = 99 * 1024  # on sm_86 and sm_89
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launched:
    """A kernel that takes its launches down."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert len(grid) == 3
        assert all(size >= 1 for size in grid)
        return lambda *args, **named: self.calls.append((args, named))


def launches(
    ragged: list[tuple[int, int]],
    *,
    heads: int,
    shape: LayerShape,
    dtype: torch.dtype,
    terms: Terms,
) -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What a step on an H200 would launch."""
    kernels = SimpleNamespace(attend=Launched(), combine=Launched())
    rows = [
        StepRow(
            request_id=i,
            tokens=range(context + count),
            num_prompt=1,
            start=context,
            count=count,
            block_table=range(-(-(context + count) // 16)),
            sample=False,
            sampling=SamplingParams(),
        )
        for i, (context, count) in enumerate(ragged)
    ]
    path: Any = TritonPath(kernels, num_processors=132)  # type: ignore[arg-type]
    cache = KvCache(
        [shape], num_blocks=200, block_size=16, dtype=dtype, device=torch.device("cpu"), path=path
    )
    batch = build_batch(rows, block_size=16, device=cache.device)
    num = batch.input_ids.shape[1]
    query, key, value = (
        torch.zeros(num, n, size, dtype=dtype).transpose(0, 1)
        for n, size in (
            (heads, shape.key_size),
            (shape.num_kv_heads, shape.key_size),
            (shape.num_kv_heads, shape.value_size),
        )
    )
    path.attend(0, query, key, value, batch=batch, cache=cache, terms=terms)
    return {"attend": kernels.attend.calls, "combine": kernels.combine.calls}


def compiled(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The kernel for these arguments on sm_90, specialised as a launch does it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    signature, constants, attrs = dict[str, str](), dict[str, Any](named), dict[Any, Any]()
    for at, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
        aligned = False
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32"
            aligned = value % 16 == 0
        if aligned and not (
            parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        ):
            attrs[(at,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(named, "constexpr")
    assert list(signature) == [parameter.name for parameter in kernel.params]
    return compile(
        ASTSource(kernel, signature, constants, attrs),
        target=GPUTarget("cuda", 90, 32),
        options=options,
    )


DECODES = [(2000, 1), (900, 1), (4, 1)]
CHUNK = [(100, 512)]
CASES = [
    # what runs, heads, key heads, head size, dtype, terms, tensor cores
    ("decodes of Llama 3 8B", DECODES, 32, 8, 128, torch.bfloat16, Terms(0.1), "mma.sync"),
    ("chunks of Llama 3 8B", CHUNK, 32, 8, 128, torch.bfloat16, Terms(0.1), "wgmma"),
    ("chunks of Gemma 2", CHUNK, 16, 8, 256, torch.bfloat16, Terms(0.1, 4096, 50.0), "wgmma"),
    ("decodes of GPT-OSS", DECODES, 64, 8, 64, torch.bfloat16,
     Terms(0.1, 128, None, torch.zeros(64, dtype=torch.bfloat16)), "mma.sync"),
    ("drafts of a small model", [(300, 4)], 4, 4, 64, torch.float16, Terms(0.1), "mma.sync"),
    ("decodes in float32", DECODES, 8, 4, 64, torch.float32, Terms(0.1), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ragged", "heads", "kv_heads", "size", "dtype", "terms", "cores"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_is_launched_compiles_for_hopper(
    ragged: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    size: int,
    dtype: torch.dtype,
    terms: Terms,
    cores: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sloserve.model import triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compiled here and now
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    calls = launches(
        ragged, heads=heads, shape=LayerShape(kv_heads, size, size), dtype=dtype, terms=terms
    )
    ((args, named),) = calls["attend"]
    assert len(calls["combine"]) == named["SPLIT"]
    kernel = compiled(triton_kernel.attend, args, named)
    assert kernel.asm["cubin"][:4] == b"\x7fELF"
    ptx = kernel.asm["ptx"]
    assert re.search(r"^\.target sm_90", ptx, re.MULTILINE)
    if cores is not None:  # else the products run on the general units, many times slower
        assert cores in ptx
    assert "cp.async" in ptx  # pages are loaded ahead
    assert kernel.metadata.shared <= (SMALL_SHARED_BYTES if dtype.itemsize == 2 else SHARED_BYTES)
    for more in calls["combine"]:
        assert compiled(triton_kernel.combine, *more).asm["cubin"][:4] == b"\x7fELF"
    if dtype.itemsize == 2:
        assert spilled_bytes(ptx, tmp_path) == 0


def spilled_bytes(ptx: str, folder: Path) -> int:
    """Bytes of registers that didn't fit, as NVIDIA's assembler tells."""
    import triton.backends.nvidia as nvidia

    beside = Path(nvidia.__path__[0]) / "bin" / "ptxas"
    assembler = str(beside) if beside.exists() else shutil.which("ptxas")
    assert assembler is not None
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    done = subprocess.run(
        [assembler, "-v", "-arch=sm_90a", str(source), "-o", str(folder / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(int(number) for number in re.findall(r"(\d+) bytes spill stores", done.stderr))
