"""What a router remembers."""

import pytest

from sloserve.routing import Affinity, RoutingState, TokensPerCharacter, prefix_keys


def test_tokens_per_character_follows_what_replicas_tell() -> None:
    estimate = TokensPerCharacter()
    assert estimate.tokens(400) == 100
    for _ in range(300):
        estimate.observe(1000, 1000)
    assert estimate.tokens(500) == pytest.approx(500, rel=0.01)
    for _ in range(300):
        estimate.observe(1000, 200)
    assert estimate.tokens(1000) == pytest.approx(200, rel=0.2)
    assert estimate.tokens(0) == 1


def test_short_prompts_with_a_long_template_do_not_spoil_the_estimate() -> None:
    estimate = TokensPerCharacter()
    for _ in range(20):
        estimate.observe(4000, 1000)
        estimate.observe(2, 30)
    assert estimate.tokens(4000) == pytest.approx(1030, rel=0.02)


def test_prefixes_double_and_agree_as_far_as_texts_do() -> None:
    one, two = "a" * 2000 + "b" * 3000, "a" * 2000 + "c" * 3000
    first = prefix_keys(one, tokens_per_char=0.5)
    second = prefix_keys(two, tokens_per_char=0.5)
    assert [tokens for _, tokens in first] == [256, 512, 1024, 2048]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, False]
    assert prefix_keys("short", tokens_per_char=0.5) == ()


def test_the_longest_prefix_wins_and_the_oldest_are_forgotten() -> None:
    memory = Affinity(max_entries=3)
    memory.remember("a", session="", prefixes=((1, 100), (2, 200)), num_prompt_tokens=250)
    memory.remember("b", session="", prefixes=((1, 100),), num_prompt_tokens=120)
    assert memory.recall("", ((1, 100), (2, 200))) == ("a", 200)
    assert memory.recall("", ((1, 100),)) == ("b", 100)
    memory.remember("c", session="s", prefixes=((3, 50),), num_prompt_tokens=60)
    assert memory.recall("s", ()) == ("c", 60)
    assert memory.recall("", ((2, 200),)) is None


def test_expected_output_is_a_running_mean_per_class() -> None:
    state = RoutingState()
    for _ in range(500):
        state.finished("short", 10)
    assert state.expected_output("short") == pytest.approx(10, abs=1)
    assert state.expected_output("other") == pytest.approx(128)
