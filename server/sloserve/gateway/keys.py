"""
API keys: a YAML file, hashes only, with what each key may do.

    keys:
      - name: team-a
        sha256: 5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
        classes: [chat, code]        # default: all
        models: [assistant]          # default: all
        defaultClass: code           # default: the service's, if allowed
        maxConcurrency: 8            # default: no limit
        requestsPerMinute: 600       # default: no limit
"""

import hashlib
import hmac
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloserve.errors import BadInput, Reason, SloserveError
from sloserve.http.config import load_yaml
from sloserve.http.errors import Refusal, retry_after
from sloserve.wire import SLO_REASON

WINDOW_S = 60.0
_FIELDS = {
    "name", "sha256", "classes", "models", "defaultClass", "maxConcurrency", "requestsPerMinute",
}  # fmt: skip


class KeyRefused(SloserveError):
    """A key is missing, wrong, or may not do this (401, 403, 429)."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        self.refusal = Refusal(status, error, dict(headers or {}))


@dataclass(frozen=True, slots=True)
class Key:
    """One key's rights; None and 0 mean no limit."""

    name: str
    digest: bytes
    classes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    default_class: str | None = None
    max_concurrency: int = 0
    requests_per_minute: int = 0

    def class_default(self, service_default: str) -> str:
        """The class of a request that names none."""
        if self.default_class is not None:
            return self.default_class
        if self.classes is None or service_default in self.classes:
            return service_default
        return self.classes[0]

    def check_class(self, slo_class: str) -> None:
        """Raises KeyRefused when the key may not use the class."""
        if self.classes is not None and slo_class not in self.classes:
            raise KeyRefused(
                403,
                "class_not_allowed",
                f"key {self.name!r} may not use SLO class {slo_class!r};"
                f" allowed: {', '.join(self.classes)}",
            )

    def check_model(self, model: str) -> None:
        """Raises KeyRefused when the key may not use the model."""
        if self.models is not None and model not in self.models:
            raise KeyRefused(
                403,
                "model_not_allowed",
                f"key {self.name!r} may not use model {model[:80]!r};"
                f" allowed: {', '.join(self.models)}",
            )


EVERYTHING = Key("", b"")
"""What a caller may do when no keys are asked for."""


class _Use:
    """What a key is doing and did in the last minute."""

    __slots__ = ("num_open", "starts_s")

    def __init__(self) -> None:
        self.num_open = 0
        self.starts_s: deque[float] = deque()


class Keyring:
    """The keys in force. `keys` None: nobody is asked for one."""

    def __init__(self, keys: tuple[Key, ...] | None = None) -> None:
        self.keys = keys
        self._uses: dict[str, _Use] = {}

    def replace(self, keys: tuple[Key, ...]) -> None:
        """New keys from now on; what a key of the same name used counts on."""
        self.keys = keys
        names = {key.name for key in keys}
        self._uses = {name: use for name, use in self._uses.items() if name in names}

    def authenticate(self, authorization: str | None) -> Key:
        """The key of an `Authorization: Bearer` header. Raises KeyRefused (401)."""
        if self.keys is None:
            return EVERYTHING
        scheme, _, token = (authorization or "").partition(" ")
        challenge = {"www-authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not token.strip():
            raise KeyRefused(
                401,
                "missing_api_key",
                "no API key; send it as 'Authorization: Bearer KEY'",
                headers=challenge,
            )
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        found = None
        for key in self.keys:  # all of them: the time must not tell which one was close
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise KeyRefused(401, "invalid_api_key", "unknown API key", headers=challenge)
        return found

    def begin(self, key: Key, now_s: float) -> None:
        """Count one request of this key. Raises KeyRefused (429) above its limits."""
        if not key.max_concurrency and not key.requests_per_minute:
            return
        use = self._uses.setdefault(key.name, _Use())
        if key.max_concurrency and use.num_open >= key.max_concurrency:
            raise _limited(
                f"key {key.name!r} has {use.num_open} requests open,"
                f" allowed at once: {key.max_concurrency}",
                1.0,
            )
        while use.starts_s and use.starts_s[0] <= now_s - WINDOW_S:
            use.starts_s.popleft()
        if key.requests_per_minute and len(use.starts_s) >= key.requests_per_minute:
            raise _limited(
                f"key {key.name!r} started {len(use.starts_s)} requests in the last minute,"
                f" allowed: {key.requests_per_minute}",
                use.starts_s[0] + WINDOW_S - now_s,
            )
        use.num_open += 1
        use.starts_s.append(now_s)

    def end(self, key: Key) -> None:
        """A request that `begin` counted is over."""
        use = self._uses.get(key.name)
        if use is not None and use.num_open > 0:
            use.num_open -= 1


def _limited(message: str, retry_after_s: float) -> KeyRefused:
    headers = {SLO_REASON: Reason.RATE_LIMIT.value, **retry_after(retry_after_s)}
    return KeyRefused(429, Reason.RATE_LIMIT.value, message, headers=headers)


def load_keys(path: Path) -> tuple[Key, ...]:
    """The keys in a file. Raises BadInput: file, field, what is allowed. Never shows a hash."""
    raw = load_yaml(path)
    if not isinstance(raw, dict) or set(raw) != {"keys"} or not isinstance(raw["keys"], list):
        raise BadInput(f"{path}: allowed: one field 'keys' that holds a list")
    keys = tuple(_key(entry, f"{path}: keys[{i}]") for i, entry in enumerate(raw["keys"]))
    for one, what in (("name", [k.name for k in keys]), ("sha256", [k.digest for k in keys])):
        if len(set(what)) < len(what):
            raise BadInput(f"{path}: two keys have the same {one}")
    return keys


def _key(entry: Any, where: str) -> Key:
    if not isinstance(entry, dict):
        raise BadInput(f"got {type(entry).__name__}, allowed: an object", field=where)
    unknown = [str(name) for name in entry if name not in _FIELDS]
    if unknown:
        raise BadInput(f"unknown field {unknown[0][:80]!r}, known: {', '.join(sorted(_FIELDS))}",
                       field=where)  # fmt: skip
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise BadInput("allowed: the key's SHA-256 as 64 hex digits", field=f"{where}.sha256")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise BadInput("allowed: a string that is not empty", field=f"{where}.name")
    default_class = entry.get("defaultClass")
    if default_class is not None and not isinstance(default_class, str):
        raise BadInput("allowed: the name of a class", field=f"{where}.defaultClass")
    classes = _names(entry, "classes", where)
    if default_class is not None and classes is not None and default_class not in classes:
        raise BadInput(
            f"got {default_class!r}, allowed: one of classes ({', '.join(classes)})",
            field=f"{where}.defaultClass",
        )
    return Key(
        name=name,
        digest=bytes.fromhex(digest),
        classes=classes,
        models=_names(entry, "models", where),
        default_class=default_class,
        max_concurrency=_limit(entry, "maxConcurrency", where),
        requests_per_minute=_limit(entry, "requestsPerMinute", where),
    )


def _names(entry: Mapping[str, Any], field: str, where: str) -> tuple[str, ...] | None:
    value = entry.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise BadInput("allowed: a list of names, not empty", field=f"{where}.{field}")
    return tuple(value)


def _limit(entry: Mapping[str, Any], field: str, where: str) -> int:
    value = entry.get(field)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput("allowed: a whole number from 1 up", field=f"{where}.{field}")
    return value
