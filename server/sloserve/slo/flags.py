"""Every field of `model` and `engine` as a command-line flag, put over a manifest."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloserve.slo.manifest import API_VERSION, KIND, parse_service
from sloserve.slo.resolved import service_to_dict
from sloserve.slo.service import ServiceSpec
from sloserve.slo.sources import parse_source

DEFAULT_CLASS: Mapping[str, object] = {
    "name": "default",
    "ttft": {"slowdown": 5, "floor": "500ms"},
    "tpot": "100ms",
    "objectivePercent": 95,
}
"""The promise of a replica that was started without a manifest."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag and the field it sets; `kind` is `text`, `number`, `switch`."""

    flag: str
    path: tuple[str, ...]
    help: str
    kind: str = "text"

    @property
    def name(self) -> str:
        """The attribute of the parsed arguments."""
        return self.flag.removeprefix("--").replace("-", "_")


FLAGS = (
    Flag("--model", ("model", "source"), "hf://org/name, file:///path, builtin://tiny, ..."),
    Flag("--revision", ("model", "revision"), "branch, tag or commit of an hf:// model"),
    Flag("--served-name", ("model", "servedName"), "name that clients send as `model`"),
    Flag("--max-model-len", ("model", "maxModelLen"), "prompt + output tokens at most", "number"),
    Flag("--chat-template", ("model", "chatTemplate"), "a Jinja chat template, or a file of one"),
    Flag(
        "--tool-parser",
        ("model", "toolParser"),
        "how the model writes tool calls: hermes, llama3, mistral, mistral-args",
    ),
    Flag("--load-timeout", ("model", "loadTimeout"), "time that loading may take, as 30m"),
    Flag("--device", ("engine", "device"), "cpu or cuda"),
    Flag("--dtype", ("engine", "dtype"), "auto, float32, bfloat16 or float16"),
    Flag(
        "--tensor-parallel-size",
        ("engine", "tensorParallelSize"),
        "GPUs per replica (processes on a CPU)",
        "number",
    ),
    Flag(
        "--kv-memory-fraction",
        ("engine", "kvCache", "memoryFraction"),
        "share of the device's memory for weights and KV cache, 0.01 to 0.99",
    ),
    Flag("--kv-size", ("engine", "kvCache", "size"), "size of the KV cache, as 512Mi"),
    Flag(
        "--prefix-caching",
        ("engine", "kvCache", "prefixCaching"),
        "share KV blocks of prompts that start alike",
        "switch",
    ),
    Flag("--max-running", ("engine", "maxRunning"), "requests in one step at most", "number"),
    Flag("--max-batch-tokens", ("engine", "maxBatchTokens"), "tokens in one step", "number"),
    Flag("--threads", ("engine", "threads"), "CPU threads of the forward pass", "number"),
    Flag("--attention", ("engine", "attention"), "auto, torch, compiled, triton or flash-attn"),
    Flag("--speculation", ("engine", "speculation", "mode"), "Auto or Never"),
    Flag("--drafter", ("engine", "speculation", "drafter"), "ngram, or a draft model"),
    Flag(
        "--max-draft-tokens",
        ("engine", "speculation", "maxDraftTokens"),
        "drafted tokens per step and request",
        "number",
    ),
)


def add_service_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field; one that is not given leaves the field as it is."""
    group = parser.add_argument_group(
        "fields of the manifest", "each overrides the field of the same meaning in --config"
    )
    for flag in FLAGS:
        if flag.kind == "switch":
            group.add_argument(
                flag.flag, action=argparse.BooleanOptionalAction, default=None, help=flag.help
            )
        else:
            group.add_argument(
                flag.flag,
                type=int if flag.kind == "number" else str,
                metavar="N" if flag.kind == "number" else "VALUE",
                help=flag.help,
            )


def with_flags(spec: ServiceSpec | None, args: argparse.Namespace) -> ServiceSpec:
    """
    `spec` with the given flags put over it; without a spec, a service of one default class.

    Raises BadInput that names the field, as for a manifest.
    """
    manifest: dict[str, Any] = (
        service_to_dict(spec)
        if spec is not None
        else {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "model"},
            "spec": {"sloClasses": [DEFAULT_CLASS]},
        }
    )
    for flag in FLAGS:
        value = getattr(args, flag.name, None)
        if value is None:
            continue
        if flag.path == ("model", "source"):
            value = _source(value)
        place = manifest["spec"]
        for key in flag.path[:-1]:
            place = place.setdefault(key, {})
        place[flag.path[-1]] = value
    return parse_service(manifest)


def _source(text: str) -> str:
    """On a command line a folder may be named as a shell does; a manifest wants file:///..."""
    source = parse_source(text, field="--model")
    if source.hint:
        return Path(source.ref).expanduser().absolute().as_uri()
    return text
