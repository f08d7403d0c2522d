"""vLLM's own files, read without importing them: which names, parameters and order they hold.

SEQPROC_VLLM names a folder that holds another `vllm/` than the one installed, such as an unpacked
wheel of a version that cannot run here.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class VLLMSource:
    """A `vllm/` folder."""

    root: Path

    @property
    def version(self) -> str:
        """From its metadata, beside the folder."""
        found = [p.name.split("-")[1] for p in self.root.parent.glob("vllm*-*.dist-info")]
        return found[0].removesuffix(".dist") if found else "of unknown version"

    def changed(self, what: str) -> None:
        """Fail with a sentence that says what seqproc relied on."""
        pytest.fail(f"vLLM {self.version}: {what}; seqproc relies on it", pytrace=False)

    @cache  # noqa: B019 - sources live as long as the tests
    def tree(self, path: str) -> ast.Module:
        """A file, parsed."""
        file = self.root / path
        if not file.exists():
            self.changed(f"there is no {path} any more")
        return ast.parse(file.read_text())

    def find(self, path: str, name: str) -> ast.ClassDef | Function:
        """A class or function, `Class.method` too."""
        node: ast.AST = self.tree(path)
        for part in name.split("."):
            for child in ast.walk(node):
                if isinstance(child, ast.ClassDef | Function) and child.name == part:
                    node = child
                    break
            else:
                self.changed(f"{path} has no {name} any more")
        assert isinstance(node, ast.ClassDef | Function)
        return node

    def parameters(self, path: str, name: str) -> list[str]:
        """Of a function or method, without `self` and `cls`."""
        arguments = self.find(path, name).args  # type: ignore[union-attr]
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return [a.arg for a in every if a.arg not in ("self", "cls")]

    def fields(self, path: str, name: str) -> list[str]:
        """Annotated names in a class's body."""
        body = self.find(path, name).body
        return [n.target.id for n in body if isinstance(n, ast.AnnAssign)]  # type: ignore[union-attr]

    def text(self, path: str, name: str) -> str:
        """A class or function as code without comments."""
        return ast.unparse(self.find(path, name))

    def require_order(self, path: str, name: str, pieces: list[str], meaning: str) -> None:
        """Pieces of code stand in a function one after the other."""
        text, place = self.text(path, name), 0
        missing = [piece for piece in pieces if piece not in text]
        if missing:
            self.changed(f"{name} in {path} has no {', '.join(missing)} any more ({meaning})")
        for piece in pieces:
            place = text.find(piece, place)
            if place < 0:
                self.changed(f"{name} in {path} has another order than {pieces} ({meaning})")


def installed_or_named() -> VLLMSource | None:
    """The source that SEQPROC_VLLM names, or the installed one."""
    named = os.environ.get("SEQPROC_VLLM")
    if named:
        return VLLMSource(Path(named) / "vllm")
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return VLLMSource(Path(next(iter(spec.submodule_search_locations))))
