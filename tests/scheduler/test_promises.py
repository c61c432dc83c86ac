"""With an exact step model and known lengths, no token of an admitted request is late."""

import random
from typing import Any

import pytest

from sloserve.perf import StepModel
from sloserve.planner import Limits
from sloserve.planner.policies import make_policy
from sloserve.slo import Decision

MODEL = StepModel(w=0.008, a0=0.00001, c1=0.002, a1=0.0001, b=1e-7, d=1e-9)
CLASSES = {"tight": (0.15, 0.020), "loose": (0.6, 0.050), "bulk": (3.0, 0.200)}


@pytest.mark.parametrize("num_blocks", [2000, 150])
@pytest.mark.parametrize("seed", range(4))
def test_an_admitted_promise_is_kept_to_the_last_token(
    a_world: Any, num_blocks: int, seed: int
) -> None:
    limits = Limits(block_size=16, num_blocks=num_blocks, max_running=64, max_batch_tokens=2048)
    world = a_world(
        limits=limits,
        model=MODEL,
        policy=make_policy("sloserve"),
        assert_promises=True,
        prefix_caching=False,
    )
    chance = random.Random(seed)
    arrivals = []
    at_s = 0.0
    for _ in range(250):
        at_s += chance.expovariate(40.0)
        arrivals.append(at_s)
    requests = []
    while arrivals or world.scheduler.requests:
        while arrivals and arrivals[0] <= world.now_s:
            name = chance.choice(list(CLASSES))
            ttft_s, tpot_s = CLASSES[name]
            output = chance.randint(1, 120)
            request = world.request(
                chance.randint(10, 800),
                output=output,
                ttft_s=ttft_s,
                tpot_s=tpot_s,
                slo_class=name,
                arrival_s=arrivals.pop(0),
            )
            request.known_output = output
            requests.append(world.add(request))
        if world.step() is None:
            world.now_s = arrivals[0] if not world.scheduler.requests else world.now_s + 0.002
    counters = world.scheduler.counters
    promised = {i for i, d, _ in world.decisions if d in (Decision.ADMITTED, Decision.DEFERRED)}
    attained = sum(counters.attained[name, "all"] for name in CLASSES)
    assert counters.num_relegated == 0
    assert attained >= len(promised) > 50
