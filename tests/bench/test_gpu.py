"""The GPU script's arithmetic, and a run of it where there is no GPU."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import gpu
from bench.gpu_model import config_of, decode_rows, random_model, work_of
from bench.gpu_parity import same_answers
from bench.roofline import Peak, Work, busy_share, peak_of

from sloserve.model.cuda_runner import GraphRunner
from sloserve.model.load import runner_over
from sloserve.model.profile import QUICK
from sloserve.perf import load_profile
from sloserve.slo.service import EngineSpec, ModelSpec

LLAMA = Work(
    num_layers=32,
    num_heads=32,
    head_size=128,
    matrix_parameters=6_979_588_096,
    head_parameters=525_336_576,
    itemsize=2,
    kv_bytes_per_token=131_072,
)


def test_the_work_of_a_model_is_counted_from_its_weights() -> None:
    model = random_model("tiny", device=torch.device("cpu"), dtype=torch.float32)
    work = work_of(model, kv_bytes_per_token=512)
    # per layer: queries and outputs 64 x 64, keys and values 64 x 32, the MLP 3 x 64 x 96, norms
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    assert work.matrix_parameters == 2 * layer + 64
    assert work.head_parameters == 256 * 64
    assert (work.num_layers, work.num_heads, work.head_size, work.itemsize) == (2, 4, 16, 4)


def test_the_eight_billion_of_the_benchmark_are_llamas() -> None:
    config = config_of("8b")
    hidden, kv = config.hidden_size, config.num_key_value_heads * 128
    layer = 2 * hidden**2 + 2 * hidden * kv + 3 * hidden * config.intermediate_size + 2 * hidden
    assert config.num_hidden_layers * layer + hidden == LLAMA.matrix_parameters
    assert hidden * config.vocab_size == LLAMA.head_parameters


def test_a_decode_step_reads_the_weights_once_and_each_rows_keys_and_values() -> None:
    weights = 2 * (LLAMA.matrix_parameters + LLAMA.head_parameters)
    assert weights == pytest.approx(15.01e9, rel=1e-3)
    assert LLAMA.decode_bytes(64, context=2048) == weights + 64 * 2048 * 131_072
    # 32 GB at 4.8 TB/s
    assert LLAMA.decode_bytes(64, context=2048) / 4.8e12 == pytest.approx(6.7e-3, rel=0.01)


def test_a_chunk_computes_two_operations_per_weight_and_four_per_number_of_a_key() -> None:
    one = LLAMA.prefill_flops(1)
    linear = 2 * (LLAMA.matrix_parameters + LLAMA.head_parameters)
    assert one == linear + 4 * 32 * 32 * 128
    whole = LLAMA.prefill_flops(2000)
    halves = LLAMA.prefill_flops(1000) + LLAMA.prefill_flops(1000, prior=1000)
    assert halves - whole == 2 * LLAMA.head_parameters  # one more row of logits, the rest alike
    by_hand = sum(4 * 32 * 32 * 128 * seen for seen in range(1, 301))
    assert LLAMA.prefill_flops(300) - 2 * (
        300 * LLAMA.matrix_parameters + LLAMA.head_parameters
    ) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 1)], 1.0),
        ([(0, 1), (1, 2)], 1.0),
        ([(3, 4), (0, 1)], 0.5),
        ([(0, 4), (1, 2), (3, 5), (9, 10)], 0.6),
        ([(2, 2)], 1.0),
    ],
)
def test_gaps_are_the_time_in_which_nothing_ran(
    spans: list[tuple[float, float]], share: float
) -> None:
    assert math.isclose(busy_share(spans), share)


def test_nothing_that_ran_is_no_share() -> None:
    with pytest.raises(ValueError, match="nothing ran"):
        busy_share([])


def test_peaks_are_found_by_the_names_that_cuda_tells() -> None:
    def bandwidth(name: str) -> float:
        peak = peak_of(name)
        assert peak is not None
        return peak.bytes_per_s / 1e12

    assert bandwidth("NVIDIA H200") == 4.8
    assert bandwidth("NVIDIA H100 80GB HBM3") == 3.35
    assert bandwidth("NVIDIA H100 PCIe") == 2.0
    assert bandwidth("NVIDIA A100-SXM4-80GB") == 2.039
    assert bandwidth("NVIDIA A100-SXM4-40GB") == 1.555
    assert bandwidth("NVIDIA L40S") == 0.864
    assert bandwidth("NVIDIA L4") == 0.3
    assert peak_of("NVIDIA L40") is None
    assert peak_of("AMD EPYC, 2 threads") is None


def test_bars_are_met_or_said_not_to_be() -> None:
    found = gpu.Findings(
        hardware="x", size="8b", dtype="bfloat16", attention="triton", torch="", triton="",
        data_sheet=None, measured=Peak(1.0, 1.0), same_logits={}, same_answers=None,
        graph_sizes=(), decodes=[gpu.Timed("a", 1.0, 0.9, 0.6), gpu.Timed("b", 1.0, 0.9, 0.71)],
        prefills=[gpu.Timed("c", 1.0, 0.9, 0.49)], gaps=None,
    )  # fmt: skip
    assert gpu.verdicts(found) == [
        "decode: 71% (b); bar 70%: met",
        "prefill: 49% (c); bar 50%: NOT MET",
        "gaps: not measured: no graphs; bar 5%: NOT MET",
    ]
    nothing = replace(found, decodes=[], prefills=[], gaps=0.04)
    assert gpu.verdicts(nothing)[0] == "decode: no batch fitted; bar 70%: NOT MET"
    assert gpu.verdicts(nothing)[2] == "gaps: 4.0%; bar 5%: met"


def test_the_whole_script_runs_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = replace(QUICK, widths=(1, 2, 4, 8), contexts=(32, 128), chunks=(16, 32, 64, 128),
                  priors=(0,), repeats=1, budget_s=120.0)  # fmt: skip
    monkeypatch.setattr(gpu, "QUICK", few)
    figures, profile = tmp_path / "figures.json", tmp_path / "profile.json"
    assert gpu.main([
        "--device", "cpu", "--size", "tiny", "--dtype", "float32", "--attention", "torch",
        "--quick", "--repeats", "1", "--json", str(figures), "--profile", str(profile),
    ]) == 0  # fmt: skip
    found = json.loads(figures.read_text())
    assert found["same_logits"] == {"torch": 0.0}
    assert found["same_answers"] is None
    assert [timed["what"] for timed in found["decodes"]] == ["1 decodes at 512", "8 decodes at 512"]
    assert [timed["what"] for timed in found["prefills"]] == ["a chunk of 512 after 0"]
    assert all(timed["share"] > 0 for timed in found["decodes"] + found["prefills"])
    if found["profile_mape"] is None:  # the machine was too busy for a fit, and that is told
        assert "don't follow the step-time model" in found["notes"][0]
    else:
        assert load_profile(profile).model == "random://tiny"
    assert "gaps: not measured" in capsys.readouterr().out


def test_answers_with_graphs_are_compared_with_answers_without() -> None:
    class Declining:
        sizes = (8,)

        def step(self, rows: object) -> None:
            return None

    plain = runner_over(
        random_model("tiny", device=torch.device("cpu"), dtype=torch.float32),
        model=ModelSpec(source="random://tiny", served_name="tiny"),
        engine=EngineSpec(dtype="float32", attention="torch", kv_bytes=4_000_000),
    )
    assert same_answers(plain) is None
    graphs: Any = Declining()
    runner = GraphRunner(plain.model, cache=plain.cache, facts=plain.facts, graphs=graphs)
    assert same_answers(runner, num_tokens=6) == (30, 30)
    assert gpu.gaps(runner, num_rows=32, context=512) is None


def test_without_a_gpu_the_script_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    assert "--device cpu --size tiny" in capsys.readouterr().err


def test_rows_lie_on_pages_of_their_own() -> None:
    class Runner:
        class facts:
            block_size, vocab_size = 16, 256

    rows = decode_rows(Runner(), 3, 40)  # type: ignore[arg-type]
    assert [row.start for row in rows] == [39, 39, 39]
    pages = [page for row in rows for page in row.block_table]
    assert sorted(pages) == list(range(9))
