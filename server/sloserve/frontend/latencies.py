"""The times of one request, for histograms: promises are counted by the engine itself."""

from itertools import accumulate

from sloserve.engine.events import Chunk
from sloserve.http.exporter import Exporter
from sloserve.slo import Bank, Promise, TokenDeadlines

ENGINE = "0"
"""The `engine` label of the vllm:* names: one engine per replica."""


NUM_GAPS = 64
"""Gaps between tokens are counted so many at a time: one by one they would cost the most of all."""


class Track:
    """One sequence as it was emitted."""

    __slots__ = (
        "first_s",
        "first_stage",
        "gaps_s",
        "lag",
        "last_s",
        "num_tokens",
        "stage_tokens",
    )

    def __init__(self) -> None:
        self.num_tokens = 0
        self.stage_tokens: list[int] = []  # per stage
        self.first_s = 0.0
        self.first_stage = 0
        self.last_s = 0.0
        self.gaps_s: list[float] = []  # between tokens, not counted yet
        self.lag: WorstLag | None = None  # kept only for a trace

    def allowed_s(self, promise: Promise) -> float:
        """Sum of the TPOTs of tokens 2..n."""
        allowed_s = sum(n * promise.tpot_s(stage) for stage, n in enumerate(self.stage_tokens))
        return allowed_s - promise.tpot_s(self.first_stage)


class WorstLag:
    """
    How late the latest token of one sequence was, in seconds: emitted less due, below 0 when all
    were early. Looked at `NUM_GAPS` tokens at a time; stages follow each other.
    """

    __slots__ = ("_counted", "_deadlines", "_last_s", "worst_s")

    def __init__(self, promise: Promise, *, arrival_s: float) -> None:
        self._deadlines = TokenDeadlines(promise, arrival_s=arrival_s)
        self._counted: list[int] = []  # tokens per stage, seen before
        self._last_s = arrival_s
        self.worst_s = float("-inf")

    def follow(self, track: Track) -> None:
        """Take in the tokens since the last call, before `track` forgets their gaps."""
        deadlines, begun = self._deadlines, self._deadlines.num_tokens > 0
        times_s = list(accumulate(track.gaps_s, initial=self._last_s if begun else track.first_s))
        self._counted += [0] * (len(track.stage_tokens) - len(self._counted))
        new = [now - seen for now, seen in zip(track.stage_tokens, self._counted, strict=True)]
        stages = [stage for stage, count in enumerate(new) for _ in range(count)]
        times_s = times_s[1:] if begun else times_s[:1] * (len(stages) - len(times_s)) + times_s
        for at_s, stage in zip(times_s, stages, strict=False):
            deadlines.stage = stage
            self.worst_s = max(self.worst_s, at_s - deadlines.due_s)
            deadlines.emit(at_s, stage=stage)
        self._counted = list(track.stage_tokens)
        self._last_s = track.last_s


class Latencies:
    """One request's sequences on the engine's clock; `record` at the end, if it finished."""

    def __init__(
        self,
        to: Exporter,
        *,
        model: str,
        promise: Promise,
        arrival_s: float,
        num_sequences: int,
        lags: bool = False,
    ) -> None:
        self._to = to
        self._labels = (model, ENGINE)
        self._promise = promise
        self.decided_s = arrival_s
        """When the promise's fate was known."""
        self.arrival_s = arrival_s
        self.tracks = [Track() for _ in range(num_sequences)]
        if lags:
            for track in self.tracks:
                track.lag = WorstLag(promise, arrival_s=arrival_s)

    def decided(self, now_s: float) -> None:
        """The promise's fate is known."""
        self.decided_s = now_s

    @property
    def ttft_s(self) -> float | None:
        """Arrival to the first token of any sequence; None: none came."""
        firsts_s = [track.first_s for track in self.tracks if track.num_tokens]
        return min(firsts_s) - self.arrival_s if firsts_s else None

    def worst_lag_s(self) -> float | None:
        """Asked at the end: how late the latest token was (`WorstLag`); None: not followed."""
        for track in self.tracks:
            if track.lag is not None:
                track.lag.follow(track)
                track.gaps_s = []
        lags_s = [track.lag.worst_s for track in self.tracks if track.lag and track.num_tokens]
        return max(lags_s, default=None)

    def emitted(self, index: int, chunk: Chunk) -> int:
        """Account a chunk of sequence `index`; the number of tokens new in it."""
        track = self.tracks[index]
        before, at_s, stage = track.num_tokens, chunk.emitted_s, chunk.stage
        num_new = chunk.num_output - before
        if num_new > 0:
            while len(track.stage_tokens) <= stage:
                track.stage_tokens.append(0)
            track.stage_tokens[stage] += num_new
            if not before:
                track.first_s, track.first_stage = at_s, stage
            elif num_new == 1:
                track.gaps_s.append(at_s - track.last_s)
            else:
                track.gaps_s += [(at_s - track.last_s) / num_new] * num_new
            track.num_tokens, track.last_s = chunk.num_output, at_s
        else:
            num_new = 0
        if len(track.gaps_s) >= NUM_GAPS or chunk.finish_reason is not None:
            self._count_gaps(track)
            if chunk.finish_reason is not None:
                self._to.add("vllm:request_success_total", *self._labels, chunk.finish_reason)
        return num_new

    def _count_gaps(self, track: Track) -> None:
        name = "vllm:inter_token_latency_seconds"
        self._to.observe_all(name, *self._labels, values=track.gaps_s)
        if track.lag is not None:
            track.lag.follow(track)
        track.gaps_s = []

    def record(self, *, num_prompt: int) -> None:
        """Put the request into the histograms."""
        self._to.add("vllm:prompt_tokens_total", *self._labels, amount=num_prompt)
        self._observe("vllm:request_prompt_tokens", num_prompt)
        longest = max((track.num_tokens for track in self.tracks), default=0)
        self._observe("vllm:request_max_num_generation_tokens", longest)
        for track in self.tracks:
            if track.num_tokens:
                self._slack(track)
                self._observe("vllm:request_generation_tokens", track.num_tokens)
                for name, seconds in self._times_s(track).items():
                    self._observe(name, max(0.0, seconds))

    def _observe(self, name: str, value: float) -> None:
        self._to.observe(name, *self._labels, value=value)

    def _times_s(self, track: Track) -> dict[str, float]:
        first_s, last_s, n = track.first_s, track.last_s, track.num_tokens
        times_s = {
            "vllm:time_to_first_token_seconds": first_s - self.arrival_s,
            "vllm:e2e_request_latency_seconds": last_s - self.arrival_s,
            "vllm:request_queue_time_seconds": self.decided_s - self.arrival_s,
            "vllm:request_prefill_time_seconds": first_s - self.decided_s,
            "vllm:request_decode_time_seconds": last_s - first_s,
            "vllm:request_inference_time_seconds": last_s - self.decided_s,
        }
        if n > 1:
            tpot_s = (last_s - first_s) / (n - 1)
            times_s["vllm:request_time_per_output_token_seconds"] = tpot_s
        return times_s

    def _slack(self, track: Track) -> None:
        """Due less emitted: of the first token, and of the last."""
        promise = self._promise
        first_due_s = self.arrival_s + promise.ttft_s
        name = "sloserve_slack_seconds"
        self._to.observe(name, promise.slo_class, value=first_due_s - track.first_s)
        if track.num_tokens > 1:
            anchor_s = track.first_s if promise.bank is Bank.FIRST_TOKEN else first_due_s
            last_due_s = anchor_s + track.allowed_s(promise)
            self._to.observe(name, promise.slo_class, value=last_due_s - track.last_s)
