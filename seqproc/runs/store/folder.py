"""Where a run is kept: named files that appear whole, in a local folder or in an object store.

Knows nothing of what the files hold. `seqproc.runs.store.local` and `seqproc.runs.store.remote`
are the two kinds; `open_folder` chooses by the path.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, ClassVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from seqproc._util.arguments import require, require_path
from seqproc._util.atomic import is_unfinished
from seqproc.errors import RunError

LOCK_PREFIX = "lock"  # names that begin so are also written by processes that do not hold the lock

_LOST_SLASH = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)")


class Folder(ABC):
    """Named files that appear whole; a local folder or a prefix of an object store.

    A name is a relative path with ``/`` between its parts, such as
    ``samples/part-000000.parquet``; it never leads out of the folder.

    Every method raises `RunError` for a name that is none, and when the file system or the store
    refuses; `MissingFileError`, which is one, where a file that it needs is not there.
    """

    url: str  # as shown to users
    grows: ClassVar[bool] = False  # whether a file can be added to without writing all of it

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A file to read from, seekable; a context manager. Its own methods raise `OSError`."""

    @abstractmethod
    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file, whole or not at all; an earlier one is replaced.

        Args:
            name: the file; subfolders are made.
            write: writes the content into an open file.
        """

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file, which is made if need be; writes all of it where none grows.

        Where files grow, a reader may see a part of what is added.
        """
        before = self.read(name) if self.exists(name) else b""
        self.write(name, lambda file: file.write(before + content))

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one of that name; False if there is."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files directly in a subfolder, or in the folder itself (``""``).

        Without what is not finished; empty when there is no such subfolder.
        """

    @abstractmethod
    def all_names(self) -> list[str]:
        """Sorted names of all files, those of subfolders included; see `names`."""

    @abstractmethod
    def unfinished_names(self) -> list[str]:
        """Sorted names of what is being written, or was when its writer was killed."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def size(self, name: str) -> int:
        """How many bytes a file has."""

    @abstractmethod
    def move(self, name: str, new: str) -> None:
        """Rename a file; refuses to replace another one."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether the folder holds nothing, or does not exist; unfinished files do not count."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the folder; refuses what is not one, and one that cannot be written to."""

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Remove what killed processes left half-written; only for who holds the folder's lock.

        What belongs to the lock itself stays: others may be about to ask for it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """The folder at a path or an address. Makes nothing.

    Args:
        path: of a local folder (``~`` is expanded), a ``file://`` URL, or the URL of a prefix of an
            object store that fsspec opens, such as ``s3://bucket/prefix``.

    Raises:
        RunError: it is no path, or the store is not known.
        MissingDependencyError: the package that opens the store is not installed.
    """
    require_path("the run's folder", path, RunError)
    text = os.fspath(path)
    if not text:
        raise RunError("the run's folder has an empty name: name one, or '.' for this folder")
    if isinstance(path, str) and "://" in path:
        return _at_url(path)
    if not isinstance(path, str) and _LOST_SLASH.match(text):
        raise RunError(f"the run's folder {text!r} looks like a URL: give a URL as a str")
    return _local(text)


def require_name(name: str) -> str:
    """Refuse what is not the name of a file in a folder.

    Raises:
        RunError: it is not a relative path of ordinary parts, or is kept for unfinished files.
    """
    require("a file's name", name, str, "a str", RunError)
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or not {"", ".", ".."}.isdisjoint(parts):
        raise RunError(
            "a file's name in a run's folder must be a relative path such as "
            f"'samples/part-000000.parquet', got {name!r:.100}"
        )
    if is_unfinished(parts[-1]):
        raise RunError(f"the name {name!r:.100} is kept for files that are not finished")
    return name


def _at_url(url: str) -> Folder:
    scheme, _, rest = url.partition("://")
    if scheme in ("file", "local"):
        return _local(_path_of(url))
    if "::" in url or not rest.strip("/"):
        raise RunError(
            f"the run's folder must be a bucket and a prefix, such as 's3://bucket/runs/first', "
            f"got {url!r:.100}"
        )
    from seqproc.runs.store.remote import RemoteFolder

    return RemoteFolder(url)


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise RunError(f"a local URL must be like 'file:///absolute/path', got {url!r:.100}")
    return url2pathname(parts.path)


def _local(path: str) -> Folder:
    from seqproc.runs.store.local import LocalFolder

    return LocalFolder(Path(path))
