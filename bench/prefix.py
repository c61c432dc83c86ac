"""
Time to the first token of a prompt that was seen before, against that of a new one.

    python -m bench.prefix [--model builtin://tiny] [--prompt 1000] [--rounds 10] [--threads 2]

One replica, real HTTP, one request at a time: each round sends a new prompt of `--prompt` tokens
and then the same again, streamed, with two output tokens. The share is the median of the rounds'
own ratios; `cached_tokens` is what usage tells of the second.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.peers import start, wait_ready
from bench.ports import free_port

from sloserve.model.hardware import num_cores


def ask(port: int, prompt: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and the prompt tokens that were found in the cache."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {
        "prompt": prompt,
        "max_tokens": 2,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start_s = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    ttft_s, num_cached = 0.0, 0
    for line in response:
        if b'"text"' in line and not ttft_s:
            ttft_s = time.perf_counter() - start_s
        if b'"usage":{' in line:
            usage = json.loads(line.removeprefix(b"data: "))["usage"]
            num_cached = usage["prompt_tokens_details"]["cached_tokens"]
    connection.close()
    if not ttft_s:
        raise RuntimeError(f"no token came: {response.status}")
    return ttft_s, num_cached


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--model", default="builtin://tiny", help="a model source")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=num_cores())
    args = parser.parse_args()
    source, port = random.Random(2), free_port()
    command = [sys.executable, "-m", "sloserve.cli", "replica", "--model", args.model]
    command += ["--listen", f"127.0.0.1:{port}", "--threads", str(args.threads)]
    command += ["--profile", "tiny-cpu"]
    with tempfile.TemporaryDirectory() as folder:
        replica = start(
            "replica", command, log=Path(folder) / "log", threads=args.threads, port=port
        )
        try:
            wait_ready(replica, f"http://127.0.0.1:{port}/ready")
            pairs = []
            for number in range(args.rounds + 1):
                prompt = [source.randrange(300, 4000) for _ in range(args.prompt)]
                (first_s, _), (again_s, num_cached) = ask(port, prompt), ask(port, prompt)
                if number:  # the first round warms up
                    pairs.append((first_s, again_s))
        finally:
            replica.process.kill()
            replica.process.wait()
    share = statistics.median(again_s / first_s for first_s, again_s in pairs)
    first_ms, again_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{args.model}, {args.prompt} tokens, {num_cached} of them cached the second time")
    print(f"first token after {first_ms:.1f} ms, again {again_ms:.1f} ms: {share:.1%}")


if __name__ == "__main__":
    main()
