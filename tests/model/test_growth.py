"""Ten thousand requests leave nothing behind but what the prefix cache keeps."""

import gc
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from sloserve.engine.clock import VirtualClock
from sloserve.engine.events import Chunk, Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.timeline import Timeline
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.model.hardware import used_bytes
from sloserve.model.load import load_runner
from sloserve.perf import StepModel
from sloserve.perf.correction import OnlineCorrection
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Scheduler
from sloserve.slo import Promise, Stage
from sloserve.slo.service import EngineSpec

VOCABULARY = 64
AT_ONCE = 50
PATIENT = Promise(slo_class="any", ttft_s=1e6, stages=(Stage("decode", 1e6),))


@pytest.mark.slow
def test_ten_thousand_short_requests_leave_no_memory_behind(
    a_folder: Callable[..., Path], a_model_spec: Any
) -> None:
    build: Any = CONFIG_MAPPING["llama"]
    config = build(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    runner = load_runner(
        a_folder(config),
        model=a_model_spec(),
        engine=EngineSpec(threads=1, dtype="float32", kv_bytes=400_000),
    )
    facts, ended = runner.facts, list[str]()

    def emit(events: list[tuple[str, Event]]) -> None:
        ended.extend(
            key for key, event in events if isinstance(event, Chunk) and event.finish_reason
        )

    scheduler = Scheduler(
        make_policy("sloserve"),
        StepModel(w=0.01, a0=0.0, c1=0.0, a1=0.0, b=0.0, d=0.0),
        OnlineCorrection(),
        Limits(block_size=facts.block_size, num_blocks=facts.num_blocks),
        new_law=LengthLaw,
        classes=[],
        max_model_len=facts.max_model_len,
    )
    engine = Engine(scheduler, runner, ByteTokenizer(), clock=VirtualClock(), emit=emit)
    source = random.Random(5)

    def serve(first: int, last: int) -> None:
        for start in range(first, last, AT_ONCE):
            for number in range(start, min(start + AT_ONCE, last)):
                prompt = [source.randrange(VOCABULARY) for _ in range(source.randrange(1, 40))]
                temperature = float(number % 2)
                sampling = SamplingParams(
                    temperature=temperature, max_tokens=1 + number % 2, ignore_eos=True
                )
                engine.add(
                    Generate(
                        key=str(number),
                        prompt=prompt,
                        sampling=sampling,
                        promise=PATIENT,
                        arrival_s=engine.clock.now_s(),
                    )
                )
            while engine.has_work:
                engine.turn()
                if number % 7 == 0:  # somebody hangs up
                    engine.cancel(str(start))
        gc.collect()

    engine.timeline = Timeline(size=64)  # 1024 steps would fill up only towards the end
    serve(0, 5000)
    assert scheduler.blocks.num_evictions > facts.num_blocks  # the prefix cache is full by now
    ended.clear()
    num_before, held_bytes = sys.getallocatedblocks(), used_bytes(runner.cache.device)
    serve(5000, 10_000)
    num_ended = len(ended)
    ended.clear()
    num_new = sys.getallocatedblocks() - num_before
    grown_bytes = used_bytes(runner.cache.device) - held_bytes
    assert num_ended > 4500
    assert scheduler.blocks.num_free == facts.num_blocks
    scheduler.check_integrity()
    assert num_new < 500, "a tenth of an object a request"
    assert grown_bytes < 5 << 20, "a thousand bytes a request"
    runner.close()
