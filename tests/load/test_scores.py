from collections.abc import Callable

import pytest

from sloserve.load.records import Ending, Record, judge
from sloserve.load.report import Window, window_from_dict
from sloserve.load.summary import Quantiles, Target, summarise
from sloserve.slo import Decision

MakeRecord = Callable[..., Record]


def test_an_answer_in_time_attains_by_every_score(a_record: MakeRecord) -> None:
    judged = judge(a_record(0.9, 0.95, 1.0))
    assert (judged.attained, judged.attained_paper, judged.attained_mean) == (True, True, True)
    assert judged.scores.ttft_s == pytest.approx(0.9)
    assert judged.scores.mean_tpot_s == pytest.approx(0.05)


def test_one_late_token_is_a_miss_by_strict_and_none_by_mean_tpot(a_record: MakeRecord) -> None:
    judged = judge(a_record(0.5, 0.75, 0.76, 0.77))  # the second was due at 0.6
    assert (judged.attained, judged.attained_mean) == (False, True)


@pytest.mark.parametrize(
    ("ending", "decision"),
    [
        (Ending.FINISHED, Decision.DEGRADED),
        (Ending.REFUSED, Decision.DECLINED),
        (Ending.FAILED, Decision.ADMITTED),
        (Ending.UNFINISHED, Decision.ADMITTED),
    ],
)
def test_what_was_not_served_as_promised_is_a_miss(
    a_record: MakeRecord, ending: Ending, decision: Decision
) -> None:
    judged = judge(a_record(0.5, 0.55, ending=ending, decision=decision))
    assert judged.eligible
    assert not judged.attained
    assert not judged.attained_mean


def test_bad_input_does_not_count(a_record: MakeRecord) -> None:
    assert not judge(a_record(ending=Ending.BAD_INPUT, decision=None)).eligible


def test_a_cancel_counts_only_after_a_missed_due_time(a_record: MakeRecord) -> None:
    content = a_record(0.5, 0.55, ending=Ending.CANCELLED, ended_s=0.69)
    waited = a_record(0.5, 0.55, ending=Ending.CANCELLED, ended_s=0.71)  # third due at 0.7
    late = a_record(1.5, 1.55, ending=Ending.CANCELLED, ended_s=1.56)
    assert not judge(content).eligible
    assert judge(waited).eligible
    assert judge(late).eligible
    assert not judge(waited).attained


def test_a_summary_counts_by_class_and_over_all(a_record: MakeRecord) -> None:
    records = [
        a_record(0.2, 0.25),
        a_record(1.2, 1.25),
        a_record(0.3, decision=Decision.DEGRADED, reason="TPOT"),
        a_record(
            slo_class="code", ending=Ending.REFUSED, decision=Decision.DECLINED, reason="TTFT"
        ),
    ]
    rows = summarise(
        [judge(r) for r in records], duration_s=2.0, targets={"idle": Target(1.0, 0.1)}
    )
    chat = rows["chat"]
    assert (chat.offered, chat.eligible, chat.attained) == (3, 3, 1)
    assert chat.goodput == 0.5
    assert chat.reasons == {"TPOT": 1}
    assert chat.ttft.count == 2  # the degraded one is shown apart
    assert chat.degraded_ttft.p50 == pytest.approx(0.3)
    assert rows["code"].reasons == {"TTFT": 1}
    assert rows["idle"].offered == 0
    assert rows["idle"].attainment == 1.0
    assert rows["all"].attainment == 0.25


def test_quantiles_are_observed_values() -> None:
    q = Quantiles.of(float(i) for i in range(1, 101))
    assert (q.p50, q.p95, q.p99) == (50.0, 95.0, 99.0)
    assert (q.grid[0], q.grid[-1]) == (1.0, 100.0)
    assert Quantiles.of([]).p99 is None


def test_a_window_survives_json(a_record: MakeRecord) -> None:
    import json

    rows = summarise([judge(a_record(0.2, 0.25))], duration_s=2.0, targets={})
    window = Window(3.0, 2.0, "sloserve", rows, ("a note",), {"key": [3.0, 0]})
    assert window_from_dict(json.loads(json.dumps(window.to_dict()))) == window
