"""What a user installs: one package, every module once; and an import that stays light."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = {"seqproc": "seqproc", "engines": "seqproc/engines", "scorers": "seqproc/scorers"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip wheel` builds from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in TREES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", target, ".", cwd=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def info(wheel: Path) -> str:
    """The name of the wheel's metadata folder."""
    name, version, *_ = wheel.name.split("-")
    return f"{name}-{version}.dist-info"


def source_files() -> set[str]:
    """Every file of the three trees, under the name that it has when installed."""
    found = set()
    for folder, package in TREES.items():
        for path in (ROOT / folder).rglob("*"):  # does not enter the links below seqproc/
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_only_our_name_reaches_site_packages(wheel, names):
    assert {name.split("/")[0] for name in names} == {"seqproc", info(wheel)}


def test_every_file_is_there_exactly_once(names):
    ours = Counter(name for name in names if name.startswith("seqproc/"))
    assert set(ours) == source_files()
    assert set(ours.values()) == {1}
    modules = {"py.typed", "__init__.py", "engines/__init__.py", "scorers/__init__.py"}
    assert {f"seqproc/{name}" for name in modules} <= set(ours)


def test_entry_points_name_modules_of_the_wheel(wheel, names):
    parser = ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        parser.read_string(archive.read(f"{info(wheel)}/entry_points.txt").decode())
    targets = [target for section in parser.sections() for _, target in parser.items(section)]
    assert targets
    for target in targets:
        stem = target.split(":")[0].replace(".", "/")
        assert {f"{stem}.py", f"{stem}/__init__.py"} & set(names), target


def test_the_wheel_has_the_parts_of_the_page(names):
    folder = ROOT / "seqproc" / "report"
    parts = [path for path in folder.rglob("*.*") if path.suffix in (".js", ".css", ".html")]
    assert len(parts) > 5
    assert {path.relative_to(ROOT).as_posix() for path in parts} <= set(names)


def test_the_unpacked_wheel_works_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import seqproc.engines, seqproc.scorers; print(seqproc.scorers.__file__)"
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert Path(printed.strip()) == tmp_path / "site" / "seqproc" / "scorers" / "__init__.py"


def test_importing_seqproc_leaves_the_heavy_libraries_alone():
    heavy = "{'vllm', 'ray', 'plotly', 'transformers', 'peft', 'datasets', 'engines', 'scorers'}"
    code = f"import sys, seqproc; print(sorted({heavy} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"
