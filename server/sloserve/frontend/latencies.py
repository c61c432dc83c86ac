"""The times of one request, for histograms: promises are counted by the engine itself."""

from sloserve.engine.events import Chunk
from sloserve.http.exporter import Exporter
from sloserve.slo import Bank, Promise

ENGINE = "0"
"""The `engine` label of the vllm:* names: one engine per replica."""


class Track:
    """One sequence as it was emitted."""

    __slots__ = ("allowed_s", "first_s", "last_s", "num_tokens", "stage_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self.stage_tokens: list[int] = []  # per stage
        self.first_s = 0.0
        self.last_s = 0.0
        self.allowed_s = 0.0  # sum of the TPOTs of tokens 2..n

    def emitted(self, chunk: Chunk, promise: Promise) -> int:
        """Account a chunk; the number of tokens new in it."""
        num_new = chunk.num_output - self.num_tokens
        if num_new <= 0:
            return 0
        while len(self.stage_tokens) <= chunk.stage:
            self.stage_tokens.append(0)
        self.stage_tokens[chunk.stage] += num_new
        later = num_new
        if self.num_tokens == 0:
            self.first_s, later = chunk.emitted_s, num_new - 1
        self.allowed_s += later * promise.tpot_s(chunk.stage)
        self.num_tokens = chunk.num_output
        self.last_s = chunk.emitted_s
        return num_new


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
    ) -> None:
        self._to = to
        self._labels = (model, ENGINE)
        self._promise = promise
        self._arrival_s = arrival_s
        self._decided_s = arrival_s
        self.tracks = [Track() for _ in range(num_sequences)]

    def decided(self, now_s: float) -> None:
        """The promise's fate is known."""
        self._decided_s = now_s

    def emitted(self, index: int, chunk: Chunk) -> int:
        """Account a chunk of sequence `index`; the number of tokens new in it."""
        track = self.tracks[index]
        before_s, had_some = track.last_s, track.num_tokens > 0
        num_new = track.emitted(chunk, self._promise)
        if num_new and had_some:
            gap_s = (chunk.emitted_s - before_s) / num_new
            name = "vllm:inter_token_latency_seconds"
            self._to.observe(name, *self._labels, value=gap_s, times=num_new)
        if chunk.finish_reason is not None:
            self._to.add("vllm:request_success_total", *self._labels, chunk.finish_reason)
        return num_new

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
            "vllm:time_to_first_token_seconds": first_s - self._arrival_s,
            "vllm:e2e_request_latency_seconds": last_s - self._arrival_s,
            "vllm:request_queue_time_seconds": self._decided_s - self._arrival_s,
            "vllm:request_prefill_time_seconds": first_s - self._decided_s,
            "vllm:request_decode_time_seconds": last_s - first_s,
            "vllm:request_inference_time_seconds": last_s - self._decided_s,
        }
        if n > 1:
            tpot_s = (last_s - first_s) / (n - 1)
            times_s["vllm:request_time_per_output_token_seconds"] = tpot_s
        return times_s

    def _slack(self, track: Track) -> None:
        """Due less emitted: of the first token, and of the last."""
        promise = self._promise
        first_due_s = self._arrival_s + promise.ttft_s
        name = "sloserve_slack_seconds"
        self._to.observe(name, promise.slo_class, value=first_due_s - track.first_s)
        if track.num_tokens > 1:
            anchor_s = track.first_s if promise.bank is Bank.FIRST_TOKEN else first_due_s
            last_due_s = anchor_s + track.allowed_s
            self._to.observe(name, promise.slo_class, value=last_due_s - track.last_s)
