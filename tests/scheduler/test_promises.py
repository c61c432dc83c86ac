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


@pytest.mark.parametrize("ahead", [False, True], ids=["between steps", "ahead"])
@pytest.mark.parametrize("num_blocks", [2000, 150])
@pytest.mark.parametrize("seed", range(4))
def test_an_admitted_promise_is_kept_to_the_last_token(
    a_world: Any, num_blocks: int, seed: int, ahead: bool
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

    def arrive(until_s: float) -> None:
        while arrivals and arrivals[0] <= until_s:
            name = chance.choice(list(CLASSES))
            ttft_s, tpot_s = CLASSES[name]
            output = chance.randint(1, 120)
            request = world.request(
                chance.randint(10, 800),
                output=output + chance.choice([0, 100]),  # some end before they must
                ttft_s=ttft_s,
                tpot_s=tpot_s,
                slo_class=name,
                arrival_s=arrivals.pop(0),
                last_hop=not ahead or chance.random() < 0.8,
            )
            request.known_output = output
            world.add(request)
            alive = list(world.scheduler.requests)
            if ahead and alive and chance.random() < 0.1:
                world.scheduler.cancel(chance.choice(alive), until_s)

    while arrivals or world.scheduler.requests:
        arrive(world.now_s)
        if world.step(arrive if ahead else None) is None:
            world.now_s = arrivals[0] if not world.scheduler.requests else world.now_s + 0.002
    counters = world.scheduler.counters
    promised = {i for i, d, _ in world.decisions if d in (Decision.ADMITTED, Decision.DEFERRED)}
    attained = sum(counters.attained[name, "all"] for name in CLASSES)
    cancelled = sum(n for key, n in counters.ended.items() if key[2] == "cancelled")
    assert counters.num_relegated == 0
    assert attained >= len(promised) - cancelled > 50
    if ahead:
        assert counters.num_foreseen > 0.5 * counters.num_steps
