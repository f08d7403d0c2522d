"""The manifest in a run's folder: read and written whole."""

from __future__ import annotations

from seqproc.errors import RunError
from seqproc.runs.format.layout import MANIFEST
from seqproc.runs.format.manifest import Manifest, from_json, to_json
from seqproc.runs.store.folder import Folder


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a folder; None where there is none.

    Raises:
        RunError: it cannot be read.
    """
    if not folder.exists(MANIFEST):
        return None
    try:
        return from_json(folder.read(MANIFEST).decode())
    except (RunError, UnicodeDecodeError) as error:
        raise RunError(f"{folder.url}/{MANIFEST}: {error}") from error


def require_manifest(folder: Folder) -> Manifest:
    """The manifest of a folder that must hold a run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(
            f"there is no run in {folder.url}: it has no {MANIFEST}. Name the folder that --out "
            "named"
        )
    return manifest


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Replace the manifest."""
    content = to_json(manifest).encode()
    folder.write(MANIFEST, lambda file: file.write(content))
