"""Files that are whole or not there: written under another name, synced, renamed."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from seqproc.errors import RunError

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a machine that stops, sees all of it or nothing.

    Args:
        path: the file; an earlier one is replaced.
        write: writes the content into an open file.

    Raises:
        RunError: when the operating system refuses (a full disk, for instance).
    """
    temporary = _unfinished_name(path)
    try:
        try:
            _write_synced(temporary, write)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)  # there only if something went wrong
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def create_atomically(path: Path, content: bytes) -> bool:
    """Write a file unless there is one of that name; of several who try at once, one does.

    It appears whole. Where files cannot have two names (FAT, some network file systems) it is
    made under its own name, and a reader may see a part of it for a moment.

    Returns:
        Whether it was written: False when the name is taken.

    Raises:
        RunError: when the operating system refuses.
    """
    temporary = _unfinished_name(path)
    try:
        try:
            _write_synced(temporary, lambda file: file.write(content))
            created = _link_or_create(temporary, path, content)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    return created


def move_to_free_name(path: Path, new: Path) -> None:
    """Rename a file, but never over another one.

    Raises:
        FileExistsError: the new name is taken.
        OSError: the operating system refuses.
    """
    try:
        os.link(path, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if new.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error
        path.rename(new)
    else:
        path.unlink()
    for folder in {path.parent, new.parent}:
        sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably.

    Raises:
        FileExistsError: there is something else of that name.
        OSError: the operating system refuses.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(name: str) -> bool:
    """Whether a file has the name of one that is being written, or whose writer was killed."""
    return _UNFINISHED.fullmatch(name) is not None


def cannot_write(path: object, error: OSError) -> RunError:
    """What to raise when the operating system refuses to write."""
    mend = ": make space and run the same command again" if error.errno in _FULL else ""
    reason = error.strerror or error
    return RunError(f"cannot write {path}: {reason}. What was written before is whole{mend}")


def _unfinished_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _write_synced(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _link_or_create(temporary: Path, path: Path, content: bytes) -> bool:
    """Give a whole file its name, if that is free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # Over a network the first answer may get lost: then it was this process that linked it.
        return _is_same_file(path, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_in_place(path, content)
    return True


def _is_same_file(path: Path, other: Path) -> bool:
    """Whether two names are of one file; False when the first is removed meanwhile."""
    try:
        return path.samefile(other)
    except FileNotFoundError:
        return False


def _create_in_place(path: Path, content: bytes) -> bool:
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True
