"""Fetch a release of vLLM and unpack its Python files, for the contract tests to read.

python tests/helpers/unpack_vllm.py VERSION FOLDER; does nothing when it is there already.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def unpack(version: str, folder: Path) -> None:
    """Download the wheel with pip, and keep what is text of it."""
    if (folder / "vllm").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", downloads, f"vllm=={version}"], check=True)
        (wheel,) = Path(downloads).glob("vllm-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wanted = [n for n in archive.namelist() if n.endswith((".py", "METADATA"))]
            archive.extractall(Path(downloads) / "unpacked", wanted)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(downloads) / "unpacked").rename(folder)  # all of it, or nothing


if __name__ == "__main__":
    unpack(sys.argv[1], Path(sys.argv[2]))
