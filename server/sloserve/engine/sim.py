"""A runner that computes nothing: a step takes as long as a step-time model says."""

import math
import random
from collections.abc import Sequence

from sloserve.engine.clock import Clock
from sloserve.engine.runner import Logprobs, ModelFacts, Sampled, StepRow
from sloserve.perf import StepModel

TEXT = (
    b"This is a simulated answer: its words mean nothing, but each of its tokens"
    b" takes as long as a real one would. "
)
EOS_ID = 256
_CLOSING = (EOS_ID, *b'"}],:')
"""The end itself, then what closes or goes on."""


class SimRunner:
    """
    Sleeps through each step on `clock`, and answers with the bytes of a fixed text.

    `noise` is the sigma of a log-normal factor on every step (mean 1), `straggler_share` of the
    steps take `straggler_factor` times as long. An answer ends at its max_tokens; with
    `eos_probability` each token may end it before. Same seed, same steps: same times and tokens.

    Drafts that a row brings are right where they are the text's; those it leaves to the runner
    are right with probability `acceptance` each, after those before them.
    """

    def __init__(
        self,
        model: StepModel,
        facts: ModelFacts,
        clock: Clock,
        *,
        seed: int = 0,
        noise: float = 0.0,
        straggler_share: float = 0.0,
        straggler_factor: float = 1.5,
        eos_probability: float = 0.0,
        acceptance: float = 0.0,
    ) -> None:
        self.facts = facts
        self._model = model
        self._clock = clock
        self._random = random.Random(seed)
        self._noise = noise
        self._straggler_share = straggler_share
        self._straggler_factor = straggler_factor
        self._eos_probability = eos_probability
        self._acceptance = acceptance

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        """Take the step's time; one token per sampled row."""
        until_s = self._clock.now_s() + self._step_s(rows)
        sampled = [self._sample(row) for row in rows]
        self._clock.sleep_until(until_s)
        return sampled

    def forget(self, request_id: int) -> None:
        """Nothing is kept of a request."""

    def close(self) -> None:
        """Nothing is held."""

    def _step_s(self, rows: Sequence[StepRow]) -> float:
        num_tokens, context, pairs, serial = 0, 0, 0.0, 0
        for row in rows:
            num_tokens += row.count + row.num_drafts
            if row.sample and row.count == 1 and len(row.tokens) > row.num_prompt:
                ends = range(row.start + 1, row.start + 2 + row.num_drafts)
                context += sum(ends) if row.num_drafts else row.start + 1
                serial = max(serial, 0 if row.drafts else row.num_drafts)
            else:
                pairs += row.count * (row.start + row.count / 2)
        time_s = self._model.step_s(num_tokens, context=context, pairs=pairs, drafts=serial)
        if self._noise > 0:
            time_s *= math.exp(self._random.gauss(-(self._noise**2) / 2, self._noise))
        if self._straggler_share > 0 and self._random.random() < self._straggler_share:
            time_s *= self._straggler_factor
        return time_s

    def _sample(self, row: StepRow) -> Sampled:
        prompt: tuple[Logprobs, ...] = ()
        if row.sampling.prompt_logprobs is not None and row.start < row.num_prompt:
            end = min(row.start + row.count, row.num_prompt)
            prompt = tuple(Logprobs(token_id, 0.0) for token_id in row.tokens[row.start : end])
        if not row.sample:
            return Sampled(prompt=prompt)
        num_output = len(row.tokens) - row.num_prompt
        accepted: list[Sampled] = []
        while len(accepted) < row.num_drafts:
            one = self._one(row, num_output, accepted)
            if row.drafts:
                right = row.drafts[len(accepted)] == one.token_id
            else:
                right = self._random.random() < self._acceptance
            if not right:
                break
            accepted.append(one)
        last = self._one(row, num_output, accepted)
        last.prompt, last.accepted, last.num_drafted = prompt, accepted, row.num_drafts
        return last

    def _one(self, row: StepRow, num_output: int, accepted: Sequence[Sampled]) -> Sampled:
        """The token after `num_output` of the answer and the drafts accepted after them."""
        num_output += len(accepted)
        token_id = TEXT[num_output % len(TEXT)]
        may_end = not row.sampling.ignore_eos and num_output >= row.sampling.min_tokens
        if may_end and self._eos_probability > 0 and self._random.random() < self._eos_probability:
            token_id = EOS_ID
        if row.matcher is not None:
            said = [one.token_id for one in accepted if one.token_id is not None]
            token_id = soonest_end(row.matcher.mask(after=said))
        logprobs = None if row.sampling.logprobs is None else Logprobs(token_id, 0.0)
        return Sampled(token_id=token_id, logprobs=logprobs)


def soonest_end(mask: bytes) -> int:
    """Of the bytes that a grammar allows the one that ends an answer soonest, as a rule."""
    candidates = (*_CLOSING, *range(256))
    return next((t for t in candidates if mask[t // 8] >> (t % 8) & 1), EOS_ID)


def sim_facts(
    *,
    name: str = "sim",
    max_model_len: int = 32768,
    block_size: int = 16,
    num_blocks: int = 8192,
    hardware: str = "simulated",
    steps_aside: bool = False,
) -> ModelFacts:
    """
    Facts of a simulated model, to go with `ByteTokenizer`. On a real clock its steps are sleeps:
    `steps_aside`.
    """
    return ModelFacts(
        name=name,
        vocab_size=259,
        max_model_len=min(max_model_len, block_size * num_blocks),
        eos_ids=(EOS_ID,),
        block_size=block_size,
        num_blocks=num_blocks,
        kv_bytes_per_token=0,
        dtype="none",
        device="sim",
        hardware=hardware,
        steps_aside=steps_aside,
    )
