"""
Tokens per second through HTTP, side by side with what else serves the same model on this CPU.

    python -m bench.peers [--llama VENV] [--sizes 5m,50m] [--dtypes float32,bfloat16]
                          [--transformers PYTHON] [--streams 1,8,32,64] [--rounds 2] [--json FILE]

Llama models with random weights are made on the fly. Three servers get the same streamed
completions, all streams at once: sloserve (one replica, patient promises), `transformers serve`
with continuous batching (`PYTHON` has transformers[serving] and accelerate) and llama.cpp
(`VENV` is a virtual environment with xllamacpp and gguf). Static `generate` gets them as one batch
in a process of its own, without HTTP, and so does sloserve's engine once more: what the HTTP of
server and client costs on the same cores. They take turns within each round, everybody else is
stopped (SIGSTOP) meanwhile, and the first round is not counted. Figures are medians over the
rounds, ratios are those of one round, and their median.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from bench.ports import free_port

from sloserve.model.allocator import malloc_environment
from sloserve.model.hardware import num_cores
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import HfTokenizer

SIZES: dict[str, dict[str, int]] = {
    "5m": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "50m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}
READY_S = 300.0
IN_PROCESS = "sloserve, no HTTP"
MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {{name: bench}}
spec:
  model: {{source: "file://{folder}"}}
  engine:
    {{dtype: {dtype}, threads: {threads}, kvCache: {{size: 1Gi}}, speculation: {{mode: Never}}}}
  sloClasses: [{{name: patient, ttft: {{target: 10m}}, tpot: 60s}}]
"""
GENERATE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM
folder, dtype, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
print("ready", flush=True)
for line in sys.stdin:
    prompts, num_output = json.loads(line)
    ids = torch.tensor(prompts)
    start_s = time.perf_counter()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                         min_new_tokens=num_output, max_new_tokens=num_output,
                         eos_token_id=None, pad_token_id=0)
    wall_s = time.perf_counter() - start_s
    print(json.dumps([out.shape[0] * (out.shape[1] - ids.shape[1]), wall_s]), flush=True)
"""
ENGINE = """
import json, sys
from pathlib import Path
from bench.engine import by_engine
from sloserve.model.load import load_model
from sloserve.slo import EngineSpec, ModelSpec
folder, dtype, threads = sys.argv[1:]
runner, tokenizer = load_model(
    Path(folder),
    model=ModelSpec(source=f"file://{folder}", served_name="bench"),
    engine=EngineSpec(dtype=dtype, threads=int(threads), kv_bytes=1 << 30),
)
print("ready", flush=True)
for line in sys.stdin:
    prompts, num_output = json.loads(line)
    run = by_engine(runner, tokenizer, prompts, num_output)
    print(json.dumps([sum(len(tokens) for tokens in run.tokens), run.wall_s]), flush=True)
"""


def make_model(folder: Path, size: str) -> None:
    """A Llama checkpoint with random weights, in float32, and the tokenizer that ships."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],  # type: ignore[arg-type]
        head_dim=64,
        vocab_size=4096,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    num_parameters = sum(p.numel() for p in model.parameters())
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_source("builtin://tiny") / name, folder)
    print(f"{size}: {num_parameters / 1e6:.1f} M parameters", flush=True)


@dataclass(slots=True)
class Way:
    """One way to generate: a process, and how to ask it."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    port: int = 0  # 0: static generate
    extra: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> None:
        """No processor time for it or its children until `go`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go(self) -> None:
        """On again."""
        os.killpg(self.process.pid, signal.SIGCONT)


def start(
    name: str, command: list[str], *, log: Path, threads: int, port: int = 0, **extra: Any
) -> Way:
    """A process in a group of its own; told to be ready by `wait_ready`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name == IN_PROCESS:
        environment |= malloc_environment()  # as a replica sets them for itself
    environment["OMP_NUM_THREADS"] = str(threads)  # whoever has no flag for it
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if not port else file,
            stderr=file,
            text=True,
            start_new_session=True,
            env=environment,
        )
    return Way(name, process, log, port, extra)


def wait_ready(way: Way, url: str) -> None:
    """Until it answers. Raises RuntimeError with its last words when it does not."""
    until_s = time.monotonic() + READY_S
    if not way.port:
        assert way.process.stdout is not None
        if way.process.stdout.readline().strip() == "ready":
            return
    while way.port and time.monotonic() < until_s and way.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            if response.status == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"{way.name} did not start: {way.log.read_text()[-1500:]}")


@contextlib.contextmanager
def ways(folder: Path, dtype: str, args: argparse.Namespace) -> Iterator[list[Way]]:
    """All of them, started and stopped (SIGSTOP)."""
    threads, most = str(args.threads), max(args.streams)
    manifest = folder / f"manifest-{dtype}.yaml"
    manifest.write_text(MANIFEST.format(folder=folder, dtype=dtype, threads=threads))
    ports = [free_port() for _ in range(3)]
    commands: list[tuple[str, list[str], int, str, dict[str, Any]]] = [
        (
            "sloserve",
            [
                *(sys.executable, "-m", "sloserve.cli", "replica"),
                *("--config", str(manifest), "--listen", f"127.0.0.1:{ports[0]}"),
                *("--profile", "tiny-cpu"),  # instead of a minute of measuring; it is corrected
            ],
            ports[0],
            "/ready",
            {"ignore_eos": True, "stream_options": {"include_usage": True}},
        ),
        (
            "static generate",
            [sys.executable, "-c", GENERATE, str(folder), dtype, threads],
            0,
            "",
            {},
        ),
        (
            IN_PROCESS,
            [sys.executable, "-c", ENGINE, str(folder), dtype, threads],
            0,
            "",
            {},
        ),
        (
            "transformers serve, cb",
            [
                *(str(args.transformers), "-m", "transformers.cli.transformers", "serve"),
                *("--host", "127.0.0.1", "--port", str(ports[1]), "--device", "cpu"),
                *("--dtype", dtype, "--continuous-batching", "--attn-implementation", "sdpa"),
                *("--cb-max-batch-tokens", "2048", "--cb-num-blocks", str(most)),
            ],
            ports[1],
            "/health",
            {"model": str(folder)},
        ),
    ]
    if args.llama is not None:
        commands.append(
            (
                "llama.cpp",
                [
                    *(str(args.llama / "bin" / "python"), "bench/peers_llama.py"),
                    *(str(folder), str(ports[2]), str(most), threads, dtype),
                ],
                ports[2],
                "/health",
                {
                    "ignore_eos": True,
                    "cache_prompt": False,
                    "stream_options": {"include_usage": True},
                },
            )
        )
    started: list[Way] = []
    try:
        for name, command, port, path, extra in commands:
            log = folder / f"{name.replace(' ', '-')}-{dtype}.log"
            way = start(name, command, log=log, threads=args.threads, port=port, **extra)
            started.append(way)
            wait_ready(way, f"http://127.0.0.1:{port}{path}")
            way.stop()
        yield started
    finally:
        for way in started:
            way.go()
            os.killpg(way.process.pid, signal.SIGKILL)
            way.process.wait()


async def stream(session: aiohttp.ClientSession, way: Way, prompt: str, num_output: int) -> int:
    """One streamed completion; its output tokens, as usage tells them."""
    body = {"model": "bench", "prompt": prompt, "max_tokens": num_output, "stream": True}
    body |= {"temperature": 0.0, **way.extra}
    told: list[bytes] = []
    async with session.post(f"http://127.0.0.1:{way.port}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{way.name}: {response.status} {way.log.read_text()[-1500:]}")
        async for line in response.content:
            told = re.findall(rb'"completion_tokens": ?(\d+)', line) or told
    if not told:
        raise RuntimeError(f"{way.name} told no usage: {way.log.read_text()[-1500:]}")
    return int(told[-1])


async def completions(way: Way, prompts: list[str], num_output: int) -> tuple[int, float]:
    """All prompts at once; tokens and seconds."""
    timeout = aiohttp.ClientTimeout(total=900)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start_s = time.perf_counter()
        counts = await asyncio.gather(*(stream(session, way, p, num_output) for p in prompts))
        wall_s = time.perf_counter() - start_s
    return sum(counts), wall_s


def run(
    way: Way, tokenizer: HfTokenizer, prompts: list[list[int]], num_output: int
) -> tuple[int, float]:
    """Tokens and seconds of one way, once."""
    way.go()
    try:
        if way.port:
            texts = [tokenizer.decode(prompt) for prompt in prompts]
            return asyncio.run(completions(way, texts, num_output))
        assert way.process.stdin is not None
        assert way.process.stdout is not None
        way.process.stdin.write(json.dumps([prompts, num_output]) + "\n")
        way.process.stdin.flush()
        num_tokens, wall_s = json.loads(way.process.stdout.readline())
        return num_tokens, wall_s
    finally:
        way.stop()


def a_prompt(source: random.Random, tokenizer: HfTokenizer, num: int) -> list[int]:
    """Random tokens that come out the same when a server tokenizes their text."""
    while True:
        text = tokenizer.decode([source.randrange(300, 4000) for _ in range(2 * num)])
        ids = tokenizer.encode(text, add_special=False)[:num]
        if tokenizer.encode(tokenizer.decode(ids), add_special=False) == ids:
            return ids


def measure(folder: Path, dtype: str, size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Lines of the table for one model and dtype."""
    tokenizer = HfTokenizer(folder)
    source = random.Random(1)
    lines = []
    with ways(folder, dtype, args) as all_ways:
        for streams in args.streams:
            rates: dict[str, list[float]] = {way.name: [] for way in all_ways}
            for number in range(args.rounds + 1):
                prompts = [a_prompt(source, tokenizer, args.prompt) for _ in range(streams)]
                for way in all_ways:
                    num_tokens, wall_s = run(way, tokenizer, prompts, args.output)
                    if number:
                        rates[way.name].append(num_tokens / wall_s)
            own = rates["sloserve"]
            for name, found in rates.items():
                ratio = statistics.median(a / b for a, b in zip(own, found, strict=True))
                line = {"size": size, "dtype": dtype, "streams": streams, "way": name}
                line |= {"tokens_per_s": statistics.median(found), "sloserve_is": ratio}
                lines.append(line)
                print(
                    f"{size:>4} {dtype:>9} {streams:>3}  {name:<24}"
                    f"{line['tokens_per_s']:>8.0f} tokens/s, sloserve is {ratio:.2f}x",
                    flush=True,
                )
    return lines


def main() -> None:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--llama", type=Path, help="a venv with xllamacpp and gguf")
    parser.add_argument(
        "--transformers",
        type=Path,
        default=Path(sys.executable),
        help="a Python with transformers[serving] and accelerate",
    )
    parser.add_argument("--sizes", type=words, default=["5m", "50m"])
    parser.add_argument("--dtypes", type=words, default=["float32", "bfloat16"])
    parser.add_argument("--streams", type=numbers, default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            place = Path(folder) / size
            make_model(place, size)
            for dtype in args.dtypes:
                lines += measure(place, dtype, size, args)
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
