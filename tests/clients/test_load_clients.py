"""guidellm and aiperf against replica and gateway: every request gets its answer."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

NUM_REQUESTS = 8
THROUGH = pytest.mark.parametrize("through", ["replica", "gateway"])


@THROUGH
def test_guidellm_s_requests_are_all_answered(
    guidellm: Any, through: str, service: Any, tmp_path: Path
) -> None:
    guidellm.run(
        "run", "--backend", f"kind=openai_http,target={service.url(through)},model=assistant",
        "--tokenizer", f"kind=huggingface_auto,model={service.model_path}",
        "--data", "kind=synthetic_text,prompt_tokens=48,output_tokens=16",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", f"kind=max_requests,count={NUM_REQUESTS}",
        "--output", "kind=json,path=out.json", "--disable-progress", folder=tmp_path,
    )  # fmt: skip
    (benchmark,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert len(requests["successful"]) == NUM_REQUESTS
    assert requests["errored"] == requests["incomplete"] == []


@THROUGH
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_aiperf_s_requests_are_all_answered(
    aiperf: Any, through: str, endpoint: str, service: Any, tmp_path: Path
) -> None:
    aiperf.run(
        "profile", "--model", "assistant", "--tokenizer", str(service.model_path),
        "--endpoint-type", endpoint, "--streaming", "--url", service.url(through),
        "--concurrency", "4", "--request-count", str(NUM_REQUESTS),
        "--synthetic-input-tokens-mean", "48", "--output-tokens-mean", "16",
        "--extra-inputs", "ignore_eos:true", "--use-server-token-count",
        "--ui", "none", "--artifact-dir", "out", folder=tmp_path,
    )  # fmt: skip
    told = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert told["request_count"]["avg"] == NUM_REQUESTS
    assert told["error_summary"] == []
    assert told["output_sequence_length"]["avg"] == 16
