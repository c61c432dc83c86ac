"""
Checkpoints with quantised weights: which are served, and as what. Judged by `config.json` alone,
before anything else is fetched.

Two kinds are widened to 16 bits (or float32) while they are read: they take a wide model's memory
and time, and less disk and network. No kernels are fetched from a hub, and no code of a checkpoint
runs.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sloserve.errors import BadInput

FIELD = "model.source"

WIDENED = {"fp8": ("accelerate",), "mxfp4": ()}
"""Methods whose weights are widened, and the packages that transformers wants for it."""

_REASONS = {
    "awq": "transformers runs it with gptqmodel, which is compiled where it is installed",
    "gptq": "transformers runs it with gptqmodel, which is compiled where it is installed",
    "bitsandbytes": "its kernels are a package of their own that was not tried here",
    "compressed-tensors": "its format is a package of its own that was not tried here",
}


def method_of(config: Mapping[str, Any]) -> str | None:
    """
    The quantisation that `config.json` declares, `unknown` for one without a name; None: its
    weights are as they are.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    for place in places:
        for key in ("quantization_config", "compression_config"):
            declared = place.get(key)
            if isinstance(declared, dict) and declared:
                if declared.get("load_in_4bit") or declared.get("load_in_8bit"):
                    return "bitsandbytes"
                return str(declared.get("quant_method") or "unknown")
    return None


def check_quantisation(folder: Path, shown: str) -> None:
    """
    Raises BadInput for weights in a format that is not served; `shown` is what messages call the
    folder, which may hold no more than `config.json` yet.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return  # whoever reads it for good says what is wrong
    method = method_of(config) if isinstance(config, dict) else None
    if method is None:
        return
    if method not in WIDENED:
        reason = _REASONS.get(method, "nobody has tried it here")
        raise BadInput(
            f"'{shown}' holds weights quantised by {method}, which are not served: {reason}. Take "
            f"a version of the model with plain weights (bfloat16, float16, float32), or quantised "
            f"by {' or '.join(WIDENED)}",
            field=FIELD,
        )
    missing = [package for package in WIDENED[method] if find_spec(package) is None]
    if missing:
        raise BadInput(
            f"'{shown}' holds weights quantised by {method}; to read them transformers needs "
            f"{', '.join(missing)}: pip install 'sloserve[quantised]'",
            field=FIELD,
        )


def widened(config: Any) -> Any:
    """A transformers configuration that has its model's weights widened while they are read."""
    for place in (config, config.get_text_config()):
        declared = getattr(place, "quantization_config", None)
        if isinstance(declared, dict):
            declared["dequantize"] = True
    return config
