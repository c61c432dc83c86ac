"""Prompts that begin alike share blocks, and nothing else does."""

from typing import Any

from sloserve.planner import Limits, Plan, Snapshot

SHARED = list(range(100, 116))  # four full blocks of 4


def test_a_second_prompt_computes_only_what_differs(world: Any) -> None:
    world.add(world.request([*SHARED, 1, 2], output=2))
    world.run()
    second = world.add(world.request([*SHARED, 3, 4, 5], output=2))
    batch = world.step()
    assert [(row.start, row.count) for row in batch.rows] == [(16, 3)]
    assert second.num_cached == 16
    assert world.scheduler.blocks.num_hit_tokens == 16
    assert world.scheduler.blocks.num_queried_tokens == 18 + 19


def test_two_at_the_same_time_share_the_blocks_themselves(world: Any) -> None:
    first = world.add(world.request([*SHARED, 1], output=10))
    world.step()
    second = world.add(world.request([*SHARED, 2], output=10))
    world.step()
    assert first.blocks[:4] == second.blocks[:4]
    assert first.blocks[4:] != second.blocks[4:]
    world.run()
    assert world.scheduler.blocks.num_free == 64


def test_an_identical_prompt_still_computes_its_last_block(world: Any) -> None:
    world.add(world.request(SHARED, output=1))
    world.run()
    world.add(world.request(SHARED, output=1))
    batch = world.step()
    assert [(row.start, row.count, row.sample) for row in batch.rows] == [(12, 4, True)]


def test_output_is_found_by_the_next_turn_of_a_conversation(world: Any) -> None:
    first = world.add(world.request(SHARED, output=9))
    world.run()
    world.add(world.request([*first.tokens, 5, 5, 5], output=1))
    batch = world.step()
    assert batch.rows[0].start == 24  # 16 prompt + 8 of 9 output tokens; the last was not computed


def test_a_block_is_shared_only_once_it_is_computed(world: Any) -> None:
    world.add(world.request([*SHARED, 1]))
    batch = world.plan()
    second = world.request([*SHARED, 2])
    world.add(second)
    world.finish(batch)
    world.step()
    assert second.num_cached == 16
    third, fourth = world.add(world.request([7] * 9)), world.add(world.request([7] * 9))
    world.step()
    assert (third.num_cached, fourth.num_cached) == (0, 0)


def test_another_salt_shares_nothing(world: Any) -> None:
    world.add(world.request([*SHARED, 1], salt="one"))
    world.run()
    other = world.add(world.request([*SHARED, 1], salt="two"))
    world.run()
    assert other.num_cached == 0


def test_without_prefix_caching_nothing_is_shared_or_kept(a_world: Any) -> None:
    world = a_world(prefix_caching=False)
    world.add(world.request(SHARED))
    world.run()
    again = world.add(world.request(SHARED))
    world.run()
    assert again.num_cached == 0
    assert world.scheduler.blocks.num_cached == 0


def test_the_planner_is_told_of_the_prefix_before_it_decides(world: Any) -> None:
    world.add(world.request([*SHARED, 1], output=1))
    world.run()
    late = world.request([*SHARED, 2, 3], ttft_s=0.0, arrival_s=world.now_s - 1)
    world.add(late)
    seen: list[int] = []

    def look(snapshot: Snapshot) -> Plan:
        seen.extend(row.num_left for row in snapshot.waiting)
        return Plan()

    world.policy.instead = look
    world.step()
    assert seen == [2]


def test_a_cached_prefix_that_was_evicted_meanwhile_is_not_counted_on(a_world: Any) -> None:
    limits = Limits(block_size=4, num_blocks=8, max_running=8, max_batch_tokens=64)
    world = a_world(limits=limits)
    world.add(world.request([*SHARED, 1], output=1))
    world.run()
    world.add(world.request(28, output=2))
    world.step()
    waiting = world.add(world.request([*SHARED, 1], output=1))
    world.run()
    assert waiting.num_cached < 16
    assert world.scheduler.counters.num_policy_errors == 0


def test_a_preempted_request_finds_its_own_blocks_again(a_world: Any) -> None:
    limits = Limits(block_size=4, num_blocks=10, max_running=8, max_batch_tokens=64)
    world = a_world(limits=limits)
    for _ in range(3):
        world.add(world.request(10, output=12))
    num_computed = 0
    while (batch := world.step()) is not None:
        num_computed += batch.num_tokens
    assert world.scheduler.counters.num_preemptions > 0
    without = 3 * (10 + 11)
    assert num_computed < without + world.scheduler.counters.num_preemptions * 21
