"""Every sample, through the parser and through the CRD."""

from collections.abc import Callable
from typing import Any


def test_parser_and_crd_accept_every_valid_sample(
    valid: list[Any], crd: Any, parser_says: Callable[[Any], str]
) -> None:
    assert len(valid) >= 7
    said = {s.name: (parser_says(s.manifest), crd.refusals(s.manifest)) for s in valid}
    assert said == {s.name: ("", []) for s in valid}


def test_the_parser_refuses_every_invalid_sample_with_the_message_it_announces(
    invalid: list[Any], parser_says: Callable[[Any], str]
) -> None:
    assert len(invalid) >= 50
    for sample in invalid:
        message = parser_says(sample.manifest)
        assert sample.said["parser"] in message, sample.name
        assert message.startswith(sample.said["field"]), sample.name


def test_the_crd_refuses_every_invalid_sample_for_one_reason(invalid: list[Any], crd: Any) -> None:
    reasons = {s.name: crd.refusals(s.manifest) for s in invalid}
    assert {name: why for name, why in reasons.items() if len(why) != 1} == {}


def test_rules_speak_with_the_message_that_the_samples_announce(
    invalid: list[Any], crd: Any
) -> None:
    # messages of schema keywords are the API server's own; test_apiserver.py compares those
    messages = {rule["message"] for rule in crd.rules()}
    spoken = set()
    for sample in invalid:
        (why,) = crd.refusals(sample.manifest)
        text = why.partition(": ")[2]
        if text in messages:
            spoken.add(text)
            assert sample.said["cluster"] in why, sample.name
    assert len(spoken) >= 25
