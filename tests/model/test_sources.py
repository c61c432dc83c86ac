"""From a source to a folder: what is there, what is fetched, and what is said when neither."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sloserve.errors import BadInput, NotFound
from sloserve.model.lora.config import checked_adapter
from sloserve.model.sources import Hub, resolve_source

COMMIT = "a" * 40
REPOSITORY = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "original/consolidated.safetensors": b"the same weights again",
}


class FakeHub(BaseHTTPRequestHandler):
    """One repository `org/name` with one revision `main`; `org/gated` wants terms accepted."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self, *, with_body: bool) -> None:
        parts = [p for p in urlsplit(self.path).path.split("/") if p]
        if parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:], with_body)
        elif parts[:3] == ["org", "name", "resolve"]:
            self._send(200, REPOSITORY["/".join(parts[4:])], with_body)
        else:
            self._send(404, b"{}", with_body, error="EntryNotFound")

    def _api(self, repository: str, rest: list[str], with_body: bool) -> None:
        if repository == "org/gated":
            self._send(403, b"{}", with_body, error="GatedRepo")
        elif repository == "org/private":
            self._send(401, b"{}", with_body, said="Invalid credentials in Authorization header")
        elif repository != "org/name":
            self._send(404, b"{}", with_body, error="RepoNotFound")
        elif rest[1:2] not in (["main"], [COMMIT]):
            self._send(404, b"{}", with_body, error="RevisionNotFound")
        elif rest[0] == "tree":
            listing = [
                {"type": "file", "path": path, "size": len(content), "oid": f"{i:040x}"}
                for i, (path, content) in enumerate(REPOSITORY.items())
            ]
            self._send(200, json.dumps(listing).encode(), with_body)
        else:
            siblings = [{"rfilename": path} for path in REPOSITORY]
            info = {"id": repository, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(info).encode(), with_body)

    def _send(
        self, status: int, body: bytes, with_body: bool, *, error: str = "", said: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        if said:
            self.send_header("X-Error-Message", said)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Hub(endpoint=f"http://127.0.0.1:{server.server_port}", cache=str(tmp_path / "cache"))
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    path = tmp_path / "model"
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).write_bytes(REPOSITORY[name])
    return path


def test_the_model_that_ships_is_there() -> None:
    assert (resolve_source("builtin://tiny") / "tokenizer.json").is_file()


def test_a_folder_is_found_by_url_and_by_path(folder: Path) -> None:
    assert resolve_source(f"file://{folder}") == folder
    assert resolve_source(str(folder)) == folder


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"absent' does not exist"):
        resolve_source(f"file://{tmp_path}/absent")


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"is a file; give the folder"):
        resolve_source(f"file://{folder}/config.json")


def test_a_folder_without_a_configuration_is_shown_with_what_it_holds(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config.json \(it holds: model.safetensors, token"):
        resolve_source(str(folder))


def test_pickled_weights_are_refused_with_the_reason(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model.bin is a pickle"):
        resolve_source(str(folder))


def test_a_pointer_instead_of_weights_is_recognised(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadInput, match="git lfs pull"):
        resolve_source(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="has no tokenizer"):
        resolve_source(str(folder))


def test_simulated_models_and_claims_have_no_folder_here() -> None:
    with pytest.raises(BadInput, match="has no files"):
        resolve_source("builtin://sim?profile=h200")
    with pytest.raises(BadInput, match="only Kubernetes knows"):
        resolve_source("pvc://claim/models")


def test_a_model_of_the_hub_is_fetched_without_pickles_and_copies(hub: Hub) -> None:
    found = resolve_source("hf://org/name", hub=hub)
    fetched = {str(p.relative_to(found)) for p in found.rglob("*") if p.is_file()}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (found / "model.safetensors").read_bytes() == b"weights"


def test_a_download_tells_how_far_it_is(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    resolve_source("hf://org/name", hub=hub, on_bytes=lambda *bytes_: told.append(bytes_))
    fetched = ("model.safetensors", "tokenizer.json")  # config.json was judged before
    num_bytes = sum(len(REPOSITORY[name]) for name in fetched)
    assert told[-1][0] == told[-1][1] >= num_bytes
    assert all(done <= total for done, total in told)
    assert capsys.readouterr().err == ""


def test_a_fetched_model_is_found_again_offline(hub: Hub) -> None:
    found = resolve_source("hf://org/name", "main", hub=hub)
    offline = Hub(endpoint="http://127.0.0.1:9", offline=True, cache=hub.cache)
    assert resolve_source("hf://org/name", "main", hub=offline) == found


def test_offline_and_not_cached_says_so(tmp_path: Path) -> None:
    hub = Hub(offline=True, cache=str(tmp_path))
    with pytest.raises(NotFound, match=r"not in the cache of this machine, and HF_HUB_OFFLINE"):
        resolve_source("hf://org/name", hub=hub)


def test_a_hub_that_can_not_be_reached_is_named(tmp_path: Path) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9", cache=str(tmp_path))
    with pytest.raises(NotFound, match=r"http://127.0.0.1:9 can't be reached"):
        resolve_source("hf://org/name", hub=hub)


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    with pytest.raises(NotFound, match="has no revision 'v99'"):
        resolve_source("hf://org/name", "v99", hub=hub)


def test_an_unknown_model_is_named(hub: Hub) -> None:
    with pytest.raises(NotFound, match="has no model 'org/other', or it is private"):
        resolve_source("hf://org/other", hub=hub)


def test_a_gated_model_wants_a_token(hub: Hub) -> None:
    with pytest.raises(BadInput, match=r"is gated: accept its terms .* HF_TOKEN"):
        resolve_source("hf://org/gated", hub=hub)


def test_a_token_that_the_hub_refuses_is_told_in_one_line(hub: Hub) -> None:
    with pytest.raises(BadInput, match=r"refuses the token in HF_TOKEN for 'hf://org/private'"):
        resolve_source("hf://org/private", hub=hub)


def test_the_environment_says_which_hub_and_whether(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8000")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Hub.from_environment() == Hub(endpoint="http://mirror:8000", offline=True)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert Hub.from_environment() == Hub()


def test_a_quantisation_that_is_not_served_is_refused_before_the_weights_are_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}
    monkeypatch.setitem(REPOSITORY, "config.json", json.dumps(config).encode())
    with pytest.raises(BadInput, match=r"'hf://org/name' holds weights quantised by awq"):
        resolve_source("hf://org/name", hub=hub)
    assert hub.cache is not None
    fetched = {path.name for path in Path(hub.cache).rglob("*.*") if "snapshots" in path.parts}
    assert "config.json" in fetched
    assert "model.safetensors" not in fetched


def test_an_adapter_is_fetched_from_a_repository_without_a_model(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(REPOSITORY):
        monkeypatch.delitem(REPOSITORY, name)
    monkeypatch.setitem(REPOSITORY, "adapter_config.json", b"{}")
    monkeypatch.setitem(REPOSITORY, "adapter_model.safetensors", b"factors")
    found = resolve_source("hf://org/name", hub=hub, check=checked_adapter)
    assert (found / "adapter_model.safetensors").read_bytes() == b"factors"
    offline = Hub(endpoint="http://127.0.0.1:9", offline=True, cache=hub.cache)
    assert resolve_source("hf://org/name", hub=offline, check=checked_adapter) == found
    with pytest.raises(BadInput, match=r"it has no config\.json"):
        resolve_source("hf://org/name", hub=hub)
