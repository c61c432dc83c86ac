"""The folder of one running service: what its processes read, write and log."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from sloserve.errors import Failed
from sloserve.slo import ServiceSpec, service_to_dict


class State:
    """
    `.sloserve/NAME`: the resolved spec, the list of replicas, logs; locked by one process. For a
    Prometheus that follows it: whom to scrape (file_sd), and the rules of the classes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec_path = folder / "service.yaml"
        self.replicas_path = folder / "replicas.txt"
        self.targets_path = folder / "targets.json"
        self.rules_path = folder / "rules.yaml"
        self.logs = folder / "logs"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder. Raises Failed when another `sloserve up` does."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise Failed(f"can't write to {self.folder}: {error.strerror or error}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                raise Failed(
                    f"{self.folder} is in use by process {lock.read().strip() or 'unknown'}: this "
                    "service runs already; stop it first, or choose another folder with --state"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def log_path(self, name: str) -> Path:
        """The log of a process; it is appended to."""
        return self.logs / f"{name}.log"

    def write_spec(self, spec: ServiceSpec) -> None:
        """The resolved spec, whole or not at all."""
        _write(self.spec_path, yaml.safe_dump(service_to_dict(spec), sort_keys=False))

    def write_replicas(self, addresses: Sequence[str]) -> None:
        """The `HOST:PORT` entries that the gateway follows."""
        _write(self.replicas_path, "".join(f"{address}\n" for address in addresses))

    def write_targets(self, addresses: Sequence[str]) -> None:
        """The `HOST:PORT` entries that Prometheus scrapes, as its file_sd reads them."""
        _write(self.targets_path, json.dumps([{"targets": list(addresses)}]) + "\n")

    def write_rules(self, text: str) -> None:
        """A Prometheus rules file."""
        _write(self.rules_path, text)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, "utf-8")
    partial.replace(path)
