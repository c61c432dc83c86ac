"""
One run on a GPU: is it right, how long are steps, how near to what the device could do.

    python -m bench.gpu [--size 8b] [--profile FILE] [--json FILE]

Needs no network: a Llama of the asked size gets random weights. In this order: the load-time tests
(attention equals transformers' eager one); every attention path against torch's on one mixed step;
answers with graphs against answers without; decode steps against the bandwidth roofline; prefill
chunks against peak operations; gaps between the kernels of a replayed graph; the fit of the
step-time model, written as a profile. The last lines set the figures beside the bars.

`--device cpu --size tiny` runs all of it that needs no GPU, to test this very file.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from bench.gpu_model import chunk_row, decode_rows, random_model, work_of
from bench.gpu_parity import same_answers, same_logits
from bench.roofline import Peak, Work, busy_share, peak_of

from sloserve.engine.runner import StepRow
from sloserve.model.cuda_runner import GraphRunner
from sloserve.model.load import runner_over
from sloserve.model.profile import FULL, QUICK, measure
from sloserve.model.runner import TorchRunner
from sloserve.perf import BadFit, save_profile
from sloserve.slo.service import EngineSpec, ModelSpec

BARS = {"decode": 0.70, "prefill": 0.50, "gaps": 0.05}
WIDTHS, CONTEXTS = (1, 8, 32, 64, 128, 256), (512, 2048)
CHUNKS = ((512, 0), (2048, 0), (8192, 0), (2048, 6000))


@dataclass(frozen=True, slots=True)
class Timed:
    """Medians of one batch, repeated: the step as the loop sees it, and its forward pass."""

    what: str
    step_s: float
    forward_s: float
    share: float  # of what the device could do, by the whole step


def times(runner: TorchRunner, rows: Sequence[StepRow], *, repeats: int) -> tuple[float, float]:
    """Median seconds of a step and of its forward pass, after two that are not counted."""
    step_s, forward_s = [], []
    for number in range(repeats + 2):
        start_s = time.perf_counter()
        runner.step(rows)
        end_s = time.perf_counter()
        if number >= 2:
            step_s.append(end_s - start_s)
            forward_s.append(runner.last_forward_s)
    for row in rows:
        runner.forget(row.request_id)
    return statistics.median(step_s), statistics.median(forward_s)


def fits(runner: TorchRunner, held_tokens: Sequence[int]) -> bool:
    """Whether rows that hold so many tokens have room in the cache, and in a request."""
    facts = runner.facts
    blocks = sum(-(-held // facts.block_size) for held in held_tokens)
    return blocks <= facts.num_blocks and max(held_tokens) <= facts.max_model_len


def decodes(runner: TorchRunner, work: Work, peak: Peak, *, repeats: int) -> list[Timed]:
    """Decode steps against the time that reading their bytes takes at least."""
    return [
        Timed(
            f"{width} decodes at {context}",
            *(both := times(runner, decode_rows(runner, width, context), repeats=repeats)),
            share=work.decode_bytes(width, context=context) / peak.bytes_per_s / both[0],
        )
        for context in CONTEXTS
        for width in WIDTHS
        if fits(runner, [context] * width)
    ]


def prefills(runner: TorchRunner, work: Work, peak: Peak, *, repeats: int) -> list[Timed]:
    """Prefill chunks against the time that their operations take at least."""
    return [
        Timed(
            f"a chunk of {count} after {prior}",
            *(both := times(runner, [chunk_row(runner, count, prior)], repeats=repeats)),
            share=work.prefill_flops(count, prior=prior) / peak.flops_per_s / both[0],
        )
        for count, prior in CHUNKS
        if fits(runner, [count + prior])
    ]


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """What a plain copy and a plain square matrix product reach here."""
    on_gpu = device.type == "cuda"
    num, side = (2**29, 8192) if on_gpu else (2**22, 512)
    source = torch.ones(num, dtype=dtype, device=device)
    target = torch.empty_like(source)
    square = torch.ones(side, side, dtype=dtype, device=device)

    def best_s(act: Callable[[], object]) -> float:
        taken = []
        for _ in range(8):
            wait(device)
            start_s = time.perf_counter()
            act()
            wait(device)
            taken.append(time.perf_counter() - start_s)
        return min(taken)

    return Peak(
        bytes_per_s=2 * num * dtype.itemsize / best_s(lambda: target.copy_(source)),
        flops_per_s=2 * side**3 / best_s(lambda: square @ square),
    )


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def gaps(runner: TorchRunner, *, num_rows: int, context: int) -> float | None:
    """The share of time without a kernel, over ten replays one after the other."""
    graphs = runner.graphs if isinstance(runner, GraphRunner) else None
    if graphs is None or num_rows not in graphs.sizes:
        return None
    runner.step(decode_rows(runner, num_rows, context))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(10):
            graphs.replay(num_rows)
        torch.cuda.synchronize()
    events: Any = profiler.profiler.kineto_results.events()
    return 1 - busy_share(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type().name == "CUDA"
    )


@dataclass(slots=True)
class Findings:
    """All that a run finds, as JSON keeps it."""

    hardware: str
    size: str
    dtype: str
    attention: str
    torch: str
    triton: str
    data_sheet: Peak | None
    measured: Peak
    same_logits: dict[str, float]
    same_answers: tuple[int, int] | None
    graph_sizes: tuple[int, ...]
    decodes: list[Timed]
    prefills: list[Timed]
    gaps: float | None
    profile_mape: float | None = None
    notes: list[str] = field(default_factory=list)


def verdicts(found: Findings) -> list[str]:
    """The figures beside the bars; the best of each kind counts, and a missing one is said."""
    lines = []
    for name, timed in (("decode", found.decodes), ("prefill", found.prefills)):
        best = max(timed, key=lambda t: t.share, default=None)
        what = "no batch fitted" if best is None else f"{best.share:.0%} ({best.what})"
        kept = best is not None and best.share >= BARS[name]
        lines.append(f"{name}: {what}; bar {BARS[name]:.0%}: {'met' if kept else 'NOT MET'}")
    gap = "not measured: no graphs" if found.gaps is None else f"{found.gaps:.1%}"
    kept = found.gaps is not None and found.gaps <= BARS["gaps"]
    lines.append(f"gaps: {gap}; bar {BARS['gaps']:.0%}: {'met' if kept else 'NOT MET'}")
    return lines


def run(args: argparse.Namespace) -> Findings:
    """Everything, printed as it goes."""
    device = torch.device(args.device)
    dtype: torch.dtype = getattr(torch, args.dtype)
    print(f"a Llama of size {args.size} with random weights, {args.dtype}, on {args.device}")
    measured = measured_peak(device, dtype)
    runner = runner_over(
        random_model(args.size, device=device, dtype=dtype),
        model=ModelSpec(source=f"random://{args.size}", served_name=args.size),
        engine=EngineSpec(
            device=args.device,
            dtype=args.dtype,
            attention=args.attention,
            kv_bytes=4_000_000 if device.type == "cpu" else None,
        ),
    )
    facts = runner.facts
    work = work_of(runner.model, kv_bytes_per_token=facts.kv_bytes_per_token)
    peak = peak_of(facts.hardware) or measured
    source = "unknown, so measured" if peak is measured else "by its data sheet"
    print(
        f"{facts.hardware}, attention: {facts.attention}, {facts.num_blocks} blocks x "
        f"{facts.block_size} tokens\npeak {source}: "
        f"{peak.bytes_per_s / 1e12:.2f} TB/s, {peak.flops_per_s / 1e12:.0f} TFLOP/s (measured: "
        f"{measured.bytes_per_s / 1e12:.2f}, {measured.flops_per_s / 1e12:.0f})"
    )
    graphs = runner.graphs if isinstance(runner, GraphRunner) else None
    found = Findings(
        hardware=facts.hardware,
        size=args.size,
        dtype=facts.dtype,
        attention=facts.attention,
        torch=torch.__version__,
        triton=version("triton"),
        data_sheet=peak_of(facts.hardware),
        measured=measured,
        same_logits=same_logits(runner),
        same_answers=same_answers(runner),
        graph_sizes=() if graphs is None else graphs.sizes,
        decodes=decodes(runner, work, peak, repeats=args.repeats),
        prefills=prefills(runner, work, peak, repeats=args.repeats),
        gaps=gaps(runner, num_rows=32, context=CONTEXTS[-1]),
    )
    for name, worst in found.same_logits.items():
        print(f"logits by {name}: off from torch's by {worst:.1e} of the largest at most")
    print(f"answers with and without graphs, tokens alike: {found.same_answers or 'no graphs'}")
    for timed in (*found.decodes, *found.prefills):
        print(
            f"  {timed.what:<28} {1e3 * timed.step_s:8.2f} ms a step, {1e3 * timed.forward_s:8.2f} "
            f"ms of it the forward pass, {timed.share:6.1%} of what the device could do"
        )
    fitted(runner, found, args)
    runner.close()
    return found


def fitted(runner: TorchRunner, found: Findings, args: argparse.Namespace) -> None:
    """The step-time model, into `found` and its file; a bad fit is told, the rest stands."""
    grid = QUICK if args.quick else FULL
    try:
        profile = measure(runner, model=f"random://{args.size}", threads=0, grid=grid)
    except BadFit as error:
        found.notes.append(error.message)
        print(f"no profile: {error.message}")
        return
    found.profile_mape = profile.mape
    print(f"step-time model: off by {profile.mape:.1%} on average, {profile.p95:.1%} at the 95th")
    if args.profile:
        save_profile(profile, args.profile)
        print(f"written to {args.profile}")


def version(package: str) -> str:
    """As installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--size", default="8b", choices=["8b", "1b", "tiny"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--attention", default="auto", help="auto, triton, flash-attn or torch")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="fit the step model on fewer batches")
    parser.add_argument("--profile", type=Path, help="where to write the step-time profile")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parsed(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; --device cpu --size tiny tries the script", file=sys.stderr)
        return 2
    found = run(args)
    print("\n".join(verdicts(found)))
    if args.json:
        args.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
