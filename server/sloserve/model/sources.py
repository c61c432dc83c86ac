"""
From a model source to a folder on this machine. The text itself is parsed in `sloserve.slo`.

Only weights as safetensors, configuration and tokenizer files are fetched: a pickled checkpoint
can run code when it is read.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download

from sloserve.errors import BadInput, Failed, NotFound
from sloserve.model.downloading import OnBytes, bars
from sloserve.model.quantised import check_quantisation
from sloserve.slo.sources import ModelSource, SourceKind, parse_source

FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
IGNORED = ("original/*", "onnx/*", "consolidated*", "*/*.safetensors")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
Check = Callable[[Path, str], Path]
"""A folder and what messages call it, to the folder; raises what is wrong with it."""

LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hugging Face hub and the folder where its files are kept."""

    endpoint: str | None = None
    """Another hub than huggingface.co."""
    offline: bool = False
    """Only what is in the cache already."""
    cache: str | None = None
    """None: where huggingface_hub keeps it (HF_HOME, HF_HUB_CACHE)."""

    @staticmethod
    def from_environment() -> "Hub":
        """As HF_ENDPOINT and HF_HUB_OFFLINE say."""
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        return Hub(endpoint=os.environ.get("HF_ENDPOINT") or None, offline=offline)

    @property
    def name(self) -> str:
        """The endpoint as a person knows it."""
        return self.endpoint or "https://huggingface.co"


def resolve_source(
    source: str | ModelSource,
    revision: str | None = None,
    *,
    hub: Hub | None = None,
    on_bytes: OnBytes = lambda done, total: None,
    check: Check | None = None,
) -> Path:
    """
    The folder that holds the model's files, downloaded first where need be; `check` answers for
    the folder (None: it must hold a model).

    `on_bytes` is told how far a download has come, from another thread.

    `revision` is a branch, tag or commit of an `hf://` source and ignored for the others. Raises
    BadInput or NotFound with what was seen and what to do; Failed when the download broke.
    """
    parsed = parse_source(source) if isinstance(source, str) else source
    good = check or checked
    match parsed.kind:
        case SourceKind.TINY:
            return good(Path(str(files("sloserve.model") / "tiny")), "builtin://tiny")
        case SourceKind.FOLDER:
            path = Path(parsed.ref).expanduser()
            return good(path.absolute(), str(path))
        case SourceKind.HUB:
            where = hub or Hub.from_environment()
            folder = _download(parsed.ref, revision or "main", where, on_bytes)
            return good(folder, f"hf://{parsed.ref}")
        case SourceKind.SIM:
            raise BadInput("builtin://sim is simulated and has no files; nothing is to be loaded")
        case SourceKind.CLAIM:
            raise BadInput(
                f"pvc://{parsed.ref} is a volume claim, which only Kubernetes knows; on this "
                "machine give the folder: file:///path/to/folder"
            )


def checked(folder: Path, shown: str) -> Path:
    """`folder` if it holds a model in Hugging Face format; `shown` is what messages call it."""
    if not folder.exists():
        raise NotFound(f"'{shown}' does not exist on this machine")
    if not folder.is_dir():
        raise BadInput(f"'{shown}' is a file; give the folder that holds config.json")
    if not (folder / "config.json").is_file():
        seen = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise BadInput(
            f"'{shown}' is not a model folder: it has no config.json (it holds: {seen}). Give a "
            "folder in Hugging Face format, as `save_pretrained` writes it."
        )
    check_quantisation(folder, shown)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))]
        why = f"; {pickled[0]} is a pickle, which can run code when it is read" if pickled else ""
        raise BadInput(
            f"'{shown}' has no *.safetensors{why}. Save the model with "
            "`save_pretrained(folder, safe_serialization=True)`."
        )
    for path in weights:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise BadInput(
                    f"'{shown}': {path.name} is only a pointer to the weights; run `git lfs pull` "
                    "there"
                )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise BadInput(
            f"'{shown}' has no tokenizer; there must be one of {', '.join(TOKENIZERS)}. Save it "
            "there with `tokenizer.save_pretrained(folder)`."
        )
    return folder


def _download(name: str, revision: str, hub: Hub, on_bytes: OnBytes) -> Path:
    def fetch(patterns: tuple[str, ...], told: OnBytes) -> Path:
        with _explained(name, revision, hub):
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    endpoint=hub.endpoint,
                    cache_dir=hub.cache,
                    local_files_only=hub.offline,
                    allow_patterns=list(patterns),
                    ignore_patterns=list(IGNORED),
                    tqdm_class=bars(told),
                )
            )

    first = fetch(("config.json",), lambda done, total: None)
    check_quantisation(first, f"hf://{name}")  # before the weights
    return fetch(FETCHED, on_bytes)


@contextmanager
def _explained(name: str, revision: str, hub: Hub) -> Iterator[None]:
    """What goes wrong with a hub, in words that say what to do."""
    shown = f"hf://{name}"
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise BadInput(
            f"'{shown}' is gated: accept its terms at {hub.name}/{name}, then give a token of that "
            "account in HF_TOKEN"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise NotFound(
            f"'{shown}' has no revision '{revision}'; name a branch, tag or commit that "
            f"{hub.name}/{name} shows"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise NotFound(
            f"{hub.name} has no model '{name}', or it is private: check the name, or give a token "
            "in HF_TOKEN"
        ) from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if hub.offline else f"{hub.name} can't be reached"
        raise NotFound(
            f"'{shown}' (revision '{revision}') is not in the cache of this machine, and {why}. "
            "Download it where there is a network, or point HF_ENDPOINT to a mirror, HF_HOME to a "
            "filled cache, or the source to a folder: file:///path/to/folder"
        ) from error
    except hub_errors.HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise _broke(shown, hub, error) from error
        raise BadInput(
            f"{hub.name} refuses the token in HF_TOKEN for '{shown}': give one that is valid there"
        ) from error
    except hub_errors.HFValidationError as error:
        raise BadInput(f"'{shown}' is not a name that a hub can have: {error}") from error
    except Exception as error:  # the hub's HTTP libraries raise kinds of their own
        raise _broke(shown, hub, error) from error


def _broke(shown: str, hub: Hub, error: Exception) -> Failed:
    """In one line: that is what a pod's last words are cut to."""
    why = " ".join(str(error).split()) or type(error).__name__
    return Failed(f"downloading '{shown}' from {hub.name} failed: {why}")
