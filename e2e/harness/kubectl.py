"""kubectl, in one namespace."""

import builtins
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Obj = dict[str, Any]


class Refused(Exception):
    """kubectl ended with an error; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """`kubectl("get", "pods")`: what it printed. Raises Refused when it fails."""

    program: str = "kubectl"
    namespace: str = "default"

    def within(self, namespace: str) -> "Kubectl":
        """The same in another namespace."""
        return replace(self, namespace=namespace)

    def __call__(self, *words: str, text: str | None = None, timeout_s: float = 180) -> str:
        command = [self.program, "--namespace", self.namespace, *words]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise Refused(f"kubectl {' '.join(words)}: {said}")
        return done.stdout.strip()

    def plugin(self, *words: str) -> str:
        """What a kubectl plugin of this Python's environment prints, asked about the namespace."""
        folders = [str(Path(sys.executable).parent), str(Path(self.program).parent)]
        path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
        command = [self.program, *words, "--namespace", self.namespace]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        if done.returncode:
            raise Refused(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def apply(self, *objects: Obj) -> str:
        """Apply objects as a person does with a file."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self("apply", "-f", "-", text=json.dumps(listed))

    def get(self, kind: str, name: str) -> Obj | None:
        """The object, or None when there is none."""
        found = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found else None

    def list(self, kind: str, selector: str = "") -> list[Obj]:
        """All objects of a kind in the namespace."""
        words = ["--selector", selector] if selector else []
        items: list[Obj] = json.loads(self("get", kind, "-o", "json", *words))["items"]
        return items

    def events(self, field_selector: str) -> builtins.list[Obj]:
        """Events of the namespace, as `involvedObject.name=assistant,reason=Loading`."""
        found = self("get", "events", "--field-selector", field_selector, "-o", "json")
        items: builtins.list[Obj] = json.loads(found)["items"]
        return items

    def patch(self, kind: str, name: str, change: Obj) -> str:
        """Merge a change into an object."""
        return self("patch", kind, name, "--type=merge", "--patch", json.dumps(change))
