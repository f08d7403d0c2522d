"""A run's folder on a file system, local or of a network. Needs no locks of that file system."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from seqproc._util.atomic import (
    cannot_write,
    create_atomically,
    is_unfinished,
    make_folder,
    move_to_free_name,
    sync_folder,
    write_atomically,
)
from seqproc.errors import MissingFileError, RunError
from seqproc.runs.store.folder import LOCK_PREFIX, Folder, require_name


class LocalFolder(Folder):
    """Files of a folder of the file system.

    A file is written under a temporary name in the same folder, synced and renamed, and the folder
    is synced: it is whole even after a power cut. A symbolic link may stand for the folder itself;
    one inside that leads out of it is refused.
    """

    grows = True

    def __init__(self, path: Path) -> None:
        try:
            expanded = path.expanduser()
        except RuntimeError as error:  # "~nobody"
            raise RunError(f"cannot tell whose home folder {path} means: write it out") from error
        self.url = str(expanded)
        self._root = expanded.absolute()  # the process may change its working folder

    def read(self, name: str) -> bytes:
        """The content of a file."""
        path = self._path(name)
        with self._refusals("read", name):
            return path.read_bytes()

    def open(self, name: str) -> BinaryIO:
        """A file to read from, seekable; a context manager."""
        path = self._path(name)
        with self._refusals("read", name):
            return path.open("rb")

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file, whole or not at all; an earlier one is replaced."""
        write_atomically(self._path_to_write(name), write)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file, which is made if need be."""
        path = self._path_to_write(name)
        try:
            with path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise cannot_write(path, error) from error

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one of that name; False if there is.

        Of several processes that try at once, on whatever machines, one succeeds.
        """
        return create_atomically(self._path_to_write(name), content)

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files directly in a subfolder, or in the folder itself."""
        path = self._path(folder) if folder else self._root
        with self._refusals("list", folder):
            try:
                with os.scandir(path) as entries:
                    files = [entry.name for entry in entries if entry.is_file()]
            except FileNotFoundError:
                return []
        return sorted(name for name in files if not is_unfinished(name))

    def all_names(self) -> list[str]:
        """Sorted names of all files, those of subfolders included."""
        return self._relative([path for path in self._walk() if not is_unfinished(path.name)])

    def unfinished_names(self) -> list[str]:
        """Sorted names of what is being written, or was when its writer was killed."""
        return self._relative([path for path in self._walk() if is_unfinished(path.name)])

    def _walk(self) -> list[Path]:
        with self._refusals("list"):
            return [Path(folder, n) for folder, _, names in os.walk(self._root) for n in names]

    def _relative(self, paths: list[Path]) -> list[str]:
        return sorted(path.relative_to(self._root).as_posix() for path in paths)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        path = self._path(name)
        with self._refusals("look at", name):
            return path.is_file()

    def size(self, name: str) -> int:
        """How many bytes a file has."""
        path = self._path(name)
        with self._refusals("look at", name):
            return path.stat().st_size

    def move(self, name: str, new: str) -> None:
        """Rename a file; refuses to replace another one, also one that appears meanwhile."""
        path = self._path(name)
        if not self.exists(name):
            raise self._missing("move", name)
        target = self._path_to_write(new)
        with self._refusals(f"move {name} to", new):
            try:
                move_to_free_name(path, target)
            except FileExistsError as error:
                raise RunError(f"cannot move {name} in {self.url}: {new} is there") from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._path(name)
        with self._refusals("remove", name):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            sync_folder(path.parent)

    def is_empty(self) -> bool:
        """Whether the folder holds nothing, or does not exist; unfinished files do not count."""
        with self._refusals("look into"):
            try:
                with os.scandir(self._root) as entries:
                    return all(is_unfinished(entry.name) for entry in entries)
            except FileNotFoundError:
                return True
            except NotADirectoryError as error:
                raise self._no_folder() from error

    def prepare(self) -> None:
        """Make the folder; refuses what is not one, and one that cannot be written to."""
        with self._refusals("make the folder"):
            try:
                make_folder(self._root)
            except (FileExistsError, NotADirectoryError) as error:
                raise self._no_folder() from error
        with self._refusals("write to the folder"), tempfile.TemporaryFile(dir=self._root) as file:
            file.write(b"anything")

    def remove_unfinished(self) -> None:
        """Remove what killed processes left half-written; only for who holds the folder's lock."""
        with self._refusals("tidy"):
            for folder, _, files in os.walk(self._root):
                for name in filter(is_unfinished, files):
                    if not name.startswith(f".{LOCK_PREFIX}"):
                        Path(folder, name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        """Where a file is; refuses one outside the folder."""
        path = self._root / require_name(name)
        with self._refusals("look at", name):
            root = Path(os.path.realpath(self._root))
            if not Path(os.path.realpath(path)).is_relative_to(root):
                raise RunError(f"{name} in {self.url} is a link that leads out of the folder")
        return path

    def _path_to_write(self, name: str) -> Path:
        """Where a file is, and its subfolder with it."""
        path = self._path(name)
        try:
            make_folder(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error
        return path

    @contextmanager
    def _refusals(self, action: str, name: str = "") -> Iterator[None]:
        """Turn what the operating system says into our errors."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._missing(action, name) from error
        except OSError as error:
            shown = self._shown(name)
            raise RunError(f"cannot {action} {shown}: {error.strerror or error}") from error

    def _missing(self, action: str, name: str) -> MissingFileError:
        return MissingFileError(f"cannot {action} {self._shown(name)}: it is not there")

    def _no_folder(self) -> RunError:
        return RunError(f"{self.url} is not a folder: name another one for the run")

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url
