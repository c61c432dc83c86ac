"""What a checkpoint recommends for generation: sampling defaults, and the tokens that end."""

import logging
from typing import TypeVar

from transformers import PreTrainedModel

from sloserve.engine.sampling import SamplingParams

T = TypeVar("T")

_log = logging.getLogger(__name__)

NOT_FOLLOWED = (
    "bad_words_ids",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "no_repeat_ngram_size",
    "sequence_bias",
    "top_h",
    "typical_p",
    "watermarking_config",
)
"""Fields of generation_config.json that would change the text and are not done here."""


def default_sampling(network: PreTrainedModel) -> SamplingParams:
    """
    What generation_config.json recommends where a request says nothing.

    `do_sample` and the lengths are not read: temperature 0 is greedy, and how long an answer may
    be is the request's. A field that would change the text but is not done here is logged.
    """
    plain, given = SamplingParams(), network.generation_config
    if given is None:
        return plain
    if ignored := [name for name in NOT_FOLLOWED if getattr(given, name, None)]:
        _log.warning("generation_config.json: not followed here: %s", ", ".join(ignored))
    return SamplingParams(
        temperature=_or(given.temperature, plain.temperature),
        top_p=_or(given.top_p, plain.top_p),
        top_k=_or(given.top_k, plain.top_k),
        min_p=_or(given.min_p, plain.min_p),
        repetition_penalty=_or(given.repetition_penalty, plain.repetition_penalty),
        stop=_texts(given.stop_strings),
        suppress=_ids(given.suppress_tokens, network),
        suppress_first=_ids(given.begin_suppress_tokens, network),
    )


def end_tokens(network: PreTrainedModel, *, tokenizer_eos: int | None = None) -> tuple[int, ...]:
    """
    Tokens that end an answer: those of generation_config.json, else of config.json; and the
    tokenizer's own, which a fine-tuned checkpoint may have changed alone.
    """
    eos: int | list[int] | None = None
    if network.generation_config is not None:
        eos = network.generation_config.eos_token_id
    if eos is None:
        eos = network.config.get_text_config().eos_token_id
    found = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
    if tokenizer_eos is not None:
        found.append(tokenizer_eos)
    return tuple(dict.fromkeys(int(token_id) for token_id in found if token_id >= 0))


def _texts(given: str | list[str] | None) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given or []
    return tuple(text for text in texts if text)


def _ids(given: list[int] | None, network: PreTrainedModel) -> tuple[int, ...]:
    """Token ids that the model has; some files list -1 for none."""
    size = network.config.get_text_config().vocab_size
    return tuple(sorted({int(token_id) for token_id in given or () if 0 <= token_id < size}))


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
