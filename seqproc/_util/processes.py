"""Which machine and which process this is, so that another process can tell whether it lives."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


def boot_id() -> str:
    """What tells this start of this machine from all others; empty where that is not known."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def pid_namespace() -> str:
    """What tells in which container a process id counts; empty where that is not known."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def process_start(pid: int) -> str | None:
    """When a process started, as the system writes it; empty when it lives and does not say.

    Only ever to be compared with another one from the same start of the same machine.

    Returns:
        None when there is no such process, or it has ended and is only waited for.
    """
    with contextlib.suppress(OSError):  # no such process, or hidden from this user, or no Linux
        return _start_on_linux(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # another user's
    except (ProcessLookupError, OverflowError):
        return None
    return _start_elsewhere(pid)


def _start_on_linux(stat: str) -> str | None:
    fields = stat.rpartition(")")[2].split()  # behind the name, which may hold anything
    state, num_threads, start = fields[0], int(fields[17]), fields[19]
    # A process may look ended while another of its threads still has files open.
    return None if state in "ZXx" and num_threads <= 1 else start


def _start_elsewhere(pid: int) -> str:
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    env = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}  # the same words whoever asks
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=10, env=env
        )
        return " ".join(done.stdout.split())
    return ""
