"""Pages of text from a Python installation: docstrings, signatures, longer comments."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing: `json.dumps`, what it is, how it is called, what is said of it."""

    name: str
    kind: str  # "module", "class", "function", "method"
    signature: str
    doc: str

    def text(self) -> str:
        """The entry as a page of documentation."""
        head = {"module": "module ", "class": "class "}.get(self.kind, "")
        return f"{head}{self.name}{self.signature}\n\n{self.doc}\n"

    def summary(self) -> str:
        """The first paragraph as one line, cut at a sentence when it is long."""
        line = " ".join(self.doc.split("\n\n")[0].split())
        if re.match(r"^[\w.]+\(.*\)( -> \S+)?$", line):  # C functions repeat their signature
            line = " ".join("".join(self.doc.split("\n\n")[1:2]).split())
        line = re.sub(r"^[\w.]+\([^)]*\)\s*(->\s*[^-:]+?)?\s*(--|:)?\s+", "", line)
        if len(line) > 320:
            line = line[:320].rsplit(". ", 1)[0].rstrip(".") + "."
        return line[:1].upper() + line[1:]


def source_files() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of the standard library's modules, without tests and site-packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(p in ("site-packages", "test", "tests", "idle_test", "pydoc_data") for p in parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if re.fullmatch(r"[\w.]+", name):
            yield name, path


def written_in_python() -> tuple[list[Entry], list[str]]:
    """Docstrings as entries, and longer comments as text."""
    entries, comments = [], []
    for name, path in source_files():
        try:
            source = path.read_text("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        entries += list(entries_of(tree, name, "module"))
        comments += list(comments_of(source))
    return entries, comments


def entries_of(node: ast.AST, name: str, kind: str) -> Iterator[Entry]:
    """The entry of `node` and of everything public defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(node)
        signature = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = f"({ast.unparse(node.args)})"
        if doc and "copyright" not in doc.lower():
            yield Entry(name, kind, signature, doc.strip())
        if kind == "function" or kind == "method":
            return
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if child.name.startswith("_") and not child.name.startswith("__init__"):
                    continue
                inner = "method" if kind == "class" else "function"
                inner = "class" if isinstance(child, ast.ClassDef) else inner
                yield from entries_of(child, f"{name}.{child.name}", inner)


def comments_of(source: str) -> Iterator[str]:
    """Comment blocks of some length that stand on lines of their own."""
    block: list[str] = []
    last = -1
    with contextlib.suppress(tokenize.TokenError, IndentationError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT or not token.line.lstrip().startswith("#"):
                continue
            if token.start[0] != last + 1 and block:
                yield from long_prose(block)
                block = []
            block.append(token.string.lstrip("#").removeprefix(" "))
            last = token.start[0]
    yield from long_prose(block)


def long_prose(lines: list[str]) -> Iterator[str]:
    """The lines as one text if it is prose of some length, and no licence header."""
    text = "\n".join(lines).strip()
    letters = sum(c.isalpha() or c == " " for c in text)
    if len(text) > 160 and letters > 0.8 * len(text) and "copyright" not in text.lower():
        yield text + "\n"


def written_in_c() -> list[Entry]:
    """Docstrings of built-in and extension modules (these are imported)."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "lib-dynload"
    names = {p.name.split(".")[0] for p in folder.glob("*.so")} | set(sys.builtin_module_names)
    entries: dict[str, Entry] = {}
    for name in sorted(names):
        if "test" in name or name in ("_tkinter", "_curses", "readline"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except Exception:  # a module that can't be imported here has nothing to say
            continue
        public = name.lstrip("_")
        for owner_name, owner in [(public, module), *inspect.getmembers(module, inspect.isclass)]:
            prefix = public if owner is module else f"{public}.{owner_name}"
            for key, value in [("", owner), *sorted(vars(owner).items())]:
                doc = getattr(value, "__doc__", None)
                if key.startswith("_") or not isinstance(doc, str) or len(doc) < 20:
                    continue
                if not (callable(value) or value is owner):
                    continue
                kind = "function" if owner is module else "method"
                kind = "class" if inspect.isclass(value) else kind
                kind = "module" if value is module else kind
                full = f"{prefix}.{key}" if key else prefix
                text = re.sub(r"^[\w.]+\(.*\)\n--\n\n", "", inspect.cleandoc(doc))
                entries.setdefault(full, Entry(full, kind, "", text))
    return list(entries.values())
