"""Grammars over bytes, and a small Llama that speaks them."""

from functools import cache
from typing import Any

from transformers import LlamaConfig

from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.grammar.compiler import Compiler, Vocabulary
from sloserve.grammar.constraint import Constraint, Kind, of_schema
from sloserve.grammar.matcher import Grammar

END = 256
SIZE = 259


@cache
def compiler() -> Compiler:
    tokenizer = ByteTokenizer()
    return Compiler(Vocabulary(tokenizer.definition(), tokenizer.special_ids, (END,), SIZE))


def regex(text: str) -> Grammar:
    return compiler().compile(Constraint(Kind.REGEX, text, "guided_regex"))


def sizes_schema(*, least: int, most: int) -> Grammar:
    """An object of a kind, "short" or "rather long", and `least` to `most` sizes below 100."""
    size = {"type": "integer", "minimum": 0, "maximum": 99}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["short", "rather long"]},
            "sizes": {"type": "array", "items": size, "minItems": least, "maxItems": most},
        },
        "required": ["kind", "sizes"],
        "additionalProperties": False,
    }
    return compiler().compile(of_schema(schema, field="x", lenient=False))


def small_config(**changes: Any) -> LlamaConfig:
    """Two layers for 256 positions."""
    return LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        **changes,
    )
