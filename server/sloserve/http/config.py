"""Reading the YAML files a server is started with; a refusal names file, line and field."""

import re
from pathlib import Path
from typing import Any

import yaml

from sloserve.errors import BadInput
from sloserve.slo.manifest import parse_service
from sloserve.slo.service import ServiceSpec

MAX_FILE_BYTES = 4 * 1024 * 1024
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def load_manifest(path: str | Path) -> ServiceSpec:
    """The service in a manifest file (one document). Raises BadInput: file, line, field, why."""
    text = _read(Path(path))
    root = _compose(text, path)
    try:
        return parse_service(_construct(root, path))
    except BadInput as error:
        line = _line(root, error.field or "")
        raise BadInput(f"{path}, line {line}: {error.message}") from None


def load_yaml(path: str | Path) -> Any:
    """The value in a YAML file (one document). Raises BadInput: file, line, why."""
    return _construct(_compose(_read(Path(path)), path), path)


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror or error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput(f"{path} has {len(raw)} bytes; at most {MAX_FILE_BYTES} are read")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 at byte {error.start}") from None


def _compose(text: str, path: str | Path) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _refuse_doubles(root, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"{path}{where}: not YAML: {_problem(error)}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply") from None
    if root is None:
        raise BadInput(f"{path} is empty")
    return root


def _construct(root: yaml.Node, path: str | Path) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}: not YAML that can be read: {_problem(error)}") from None
    finally:
        loader.dispose()


def _problem(error: Exception) -> str:
    """What PyYAML says, in one line."""
    parts = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    return ", ".join(str(part) for part in parts if part) or str(error)


def _refuse_doubles(node: yaml.Node, path: str | Path) -> None:
    """YAML lets the later of two equal keys win in silence; a manifest must not."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise BadInput(f"{path}, line {line}: {key.value!r} is there twice")
                seen.add(key.value)
            _refuse_doubles(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_doubles(value, path)


def _line(root: yaml.Node, field: str) -> int:
    """The line (from 1) of `spec.sloClasses[0].tpot`, or of the nearest part of it that exists."""
    node, line = root, root.start_mark.line + 1
    for name, index in _STEP.findall(field):
        if isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if getattr(p[0], "value", None) == name), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line + 1
        else:
            break
    return line
