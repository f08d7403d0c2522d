"""Opens a folder to make a run in it: a new one, or on from where one was stopped.

What must not be written to is refused here, by name, before anything is loaded or started.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from seqproc._util.clock import utc_now
from seqproc.errors import RunError, RunMismatchError
from seqproc.runs.format.events import EVENTS
from seqproc.runs.format.layout import ASIDE, MANIFEST, is_beside_a_run, is_of_a_shard
from seqproc.runs.format.manifest import Manifest, differences, with_key
from seqproc.runs.format.manifest_file import read_manifest, write_manifest
from seqproc.runs.format.schema import require_pyarrow
from seqproc.runs.run_folder import RunFolder
from seqproc.runs.store.folder import Folder, open_folder
from seqproc.runs.store.holder import is_alive
from seqproc.runs.store.lock import RunLock, holder_of

_OF_A_RUN = ("samples/", "scores/", "parts/", EVENTS)  # what the names of its files begin with


def open_for_writing(
    folder: Folder,
    manifest: Manifest,
    lock: RunLock,
    *,
    fresh: bool = False,
    with_shards: bool = False,
) -> RunFolder:
    """Begin a run, or take up the one that the folder holds.

    Args:
        folder: the run's.
        manifest: what is asked for.
        lock: held.
        fresh: begin anew, after everything that the folder holds was set aside.
        with_shards: shards that the folder holds are to become the run, and stay.

    Raises:
        RunMismatchError: the folder holds another run.
        RunError: it holds something that is no run, or cannot be read.
    """
    manifest = with_key(manifest)
    folder.remove_unfinished()
    existing = read_manifest(folder)
    if fresh and existing is not None:
        begin_anew(folder, keep_shards=with_shards)
        existing = None
    if existing is None:
        require_usable(folder, with_shards=with_shards)
        write_manifest(folder, manifest)
        run = RunFolder(folder, manifest, lock)
        run.events.tell("started", draws=manifest.num_own_draws)
        return run
    require_same(existing, manifest, folder)
    run = RunFolder(folder, existing, lock)
    if existing.state != "complete" or run.num_done != existing.num_draws_done:
        run.update(state="running", error=None, engine_details=manifest.engine_details)
        sampled = int(run.is_sampled.sum())
        draws = existing.num_own_draws
        run.events.tell("resumed", draws=draws, sampled=sampled, done=run.num_done)
    return run


def require_same(
    existing: Manifest, asked: Manifest, folder: Folder, *, leave_out: Sequence[str] = ()
) -> None:
    """Refuse to go on with a run that differs from what is asked for.

    Raises:
        RunMismatchError: with a line for each difference.
    """
    mine, other = (_without(m.identity(), leave_out) for m in (existing, asked))
    if existing.kind != asked.kind:
        mine, other = {"kind": existing.kind}, {"kind": asked.kind}
    if lines := differences(mine, other):
        raise RunMismatchError(
            f"{folder.url} holds another run than the one asked for. Ask for what the folder has, "
            "name another folder, or begin anew with fresh=True (--fresh), which sets the old rows "
            "aside. They differ in:",
            lines,
        )


def require_ready(path: str | os.PathLike[str], *, with_shards: bool = False) -> Folder:
    """The folder that a run is to be kept in, before anything is loaded or started for it.

    Args:
        path: of the folder.
        with_shards: see `require_usable`.

    Raises:
        RunError: it holds something but no run, is no folder, or another process is at work in it.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow()
    folder = open_folder(path)
    require_usable(folder, with_shards=with_shards)
    require_unlocked(folder)
    return folder


def require_usable(folder: Folder, *, with_shards: bool = False) -> None:
    """Refuse a folder that holds something, but no run.

    Args:
        folder: where.
        with_shards: it may hold shards of the run that is to be there.

    Raises:
        RunError: naming what is in it.
    """
    if folder.exists(MANIFEST):
        return
    strange = [
        name
        for name in folder.all_names()
        if not is_beside_a_run(name) and not (with_shards and is_of_a_shard(name))
    ]
    if strange and is_of_a_shard(strange[0]):
        raise RunError(
            f"{folder.url} holds shards of a run that an executor makes: go on with that executor, "
            "merge the shards once they are complete (seqproc merge), or name another folder"
        )
    if any(name.startswith(_OF_A_RUN) for name in strange):
        raise RunError(
            f"{folder.url} holds files of a run ({strange[0]!r}), but its {MANIFEST} is lost: take "
            "that from a copy, name another folder, or move what is there away"
        )
    if strange:
        raise RunError(
            f"{folder.url} is not empty and holds no run ({strange[0]!r} is in it): name another "
            "folder, or move what is there away"
        )


def require_apart(folder: Folder, source: Folder, *, with_shards: bool = False) -> None:
    """Refuse to keep a run where the run lies that it is to be made from.

    Args:
        folder: the new run's.
        source: that of the run that is read.
        with_shards: it may be one of the shards in the new run's folder.

    Raises:
        RunError: it is the same folder, or lies in the new run's.
    """
    new, read = (_place(one) for one in (folder, source))
    if new == read:
        raise RunError(
            f"{source.url} is read, and cannot be the new run's folder as well: name another one"
        )
    inside = read.removeprefix(new.rstrip("/") + "/")
    if inside != read and not (with_shards and is_of_a_shard(inside)):
        raise RunError(
            f"{source.url}, which is read, lies in {folder.url}, the new run's folder: name "
            "another one"
        )


def _place(folder: Folder) -> str:
    return folder.url if "://" in folder.url else os.path.realpath(folder.url)


def require_unlocked(folder: Folder) -> None:
    """Refuse a folder that another process is at work in, before anything is started.

    Raises:
        RunError: naming the process.
    """
    holder = holder_of(folder)
    if holder is not None and is_alive(holder):
        raise RunError(
            f"{folder.url} is in use by {holder.described()}: wait for it, stop it, or name "
            "another folder"
        )


def begin_anew(folder: Folder, *, keep_shards: bool = False) -> None:
    """Set aside everything that a folder holds, or all but the shards, the manifest last."""
    place = f"{ASIDE}/{utc_now().replace(':', '')}-{secrets.token_hex(3)}"
    names = [
        name
        for name in folder.all_names()
        if not is_beside_a_run(name) and not (keep_shards and is_of_a_shard(name))
    ]
    for name in sorted(names, key=lambda name: name == MANIFEST):
        folder.move(name, f"{place}/{name}")


def _without(identity: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in names}
