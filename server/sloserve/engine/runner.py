"""The seam between the loop and whatever computes a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sloserve.engine.sampling import SamplingParams
from sloserve.grammar.matcher import Matcher


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the loop must know of a model."""

    name: str
    vocab_size: int
    max_model_len: int  # prompt + output tokens at most
    eos_ids: tuple[int, ...]
    block_size: int
    num_blocks: int
    kv_bytes_per_token: int
    dtype: str
    device: str
    hardware: str  # a line a person recognises: CPU or GPU name and thread count
    attention: str = ""  # which kernels; step times follow from it as from the dtype
    steps_aside: bool = False  # a step leaves processor and interpreter to others nearly all along
    adapters: tuple[str, ...] = ()  # names of the LoRA adapters that rows may ask for
    tensor_parallel_size: int = 1  # processes (GPUs) that compute each step together


@dataclass(slots=True)
class StepRow:
    """
    One request's part of a step: tokens[start : start + count] are computed. A value, not frozen
    only because that makes the making of it four times slower.

    `tokens` is the request's whole list (prompt and output), shared and not to be changed; the
    keys and values of position p go to block_table[p // block_size]. `sample` says that the
    last computed position is the last known token, so a new token is drawn.

    With `num_drafts` (only where one token is computed and `sample`) the tokens after it are
    guessed: `drafts`, or () when the runner writes them itself. They are computed as well, at the
    positions that follow, and each is kept if it is what would have been drawn there.

    `matcher`: what is drawn must be what the grammar allows there, after the drafts before it; the
    runner asks for its masks and leaves it where it is.

    `adapter`: the name of one of `ModelFacts.adapters`; empty: the model as it is.
    """

    request_id: int
    tokens: Sequence[int]
    num_prompt: int
    start: int
    count: int
    block_table: Sequence[int]
    sample: bool
    sampling: SamplingParams
    matcher: Matcher | None = None
    num_drafts: int = 0
    drafts: Sequence[int] = ()
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural log probabilities of one chosen token and of its best alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


@dataclass(slots=True)
class Sampled:
    """
    A row's outcome; `prompt` holds logprobs of the chunk's prompt tokens when asked for. A value,
    not frozen for the same reason as `StepRow`.

    `accepted` holds the drafts that were kept, of `num_drafted` that were tried; `token_id` comes
    after them and is always the model's own.
    """

    token_id: int | None = None  # None: the prefill goes on
    logprobs: Logprobs | None = None
    prompt: tuple[Logprobs, ...] = ()
    accepted: Sequence["Sampled"] = ()
    num_drafted: int = 0
    mask_s: float = 0.0  # what computing the grammar's masks took


class Runner(Protocol):
    """Computes steps. Owns the KV memory and the per-request random state, nothing else."""

    facts: ModelFacts

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        """One forward pass over one ragged batch; the outcomes in the order of `rows`."""
        ...

    def forget(self, request_id: int) -> None:
        """Drop what is kept of a finished or cancelled request."""
        ...

    def close(self) -> None:
        """Give back memory and threads."""
        ...
