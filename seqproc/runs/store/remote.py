"""A run's folder in an object store, through fsspec. Of the stores it knows only S3's codes."""

from __future__ import annotations

import io
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from seqproc._util.atomic import cannot_write, is_unfinished
from seqproc._util.optional import require_package
from seqproc.errors import MissingDependencyError, MissingFileError, RunError, SeqprocError
from seqproc.runs.store.folder import Folder, require_name

_DIRECT = 16 * 2**20  # bytes up to which a file goes up in one request
_EXCLUSIVE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}  # put only what is new
_TAKEN = {"PreconditionFailed", "412"}  # codes of S3, of the stores that speak like it as well
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}  # another put at this moment
_UNKNOWN_CONDITION = {"NotImplemented", "501"}
_PAUSES = (0.1, 0.2, 0.4, 0.8)  # seconds between tries after a conflict

# The memory store looks and then writes; it belongs to one process, whose threads take turns.
_CREATING = threading.Lock()


class RemoteFolder(Folder):
    """Objects under a prefix of a store.

    An object appears by one put, or by the end of an upload in parts: whole, in any store that is
    an object store. fsspec also opens file systems (sftp, for instance), which do not promise that.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._store, self._root = _open_store(self.url, self._scheme)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        path = self._path(name)
        with self._refusals("read", name):
            return bytes(self._store.cat_file(path))

    def open(self, name: str) -> BinaryIO:
        """A file to read from, seekable, of which only what is asked for is fetched."""
        path = self._path(name)
        with self._refusals("read", name):
            file: Any = self._store.open(path, "rb")
        # The memory store hands out the stored file itself, with one position for all its readers.
        return io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else file

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file, whole or not at all; made ready in a local file, then uploaded."""
        path = self._path(name)
        with _scratch() as local:
            try:
                with local.open("xb") as file:
                    write(file)
            except OSError as error:
                where = f"{self._shown(name)}, which is made ready in {local.parent}"
                raise cannot_write(where, error) from error
            with self._refusals("write", name):
                self._upload(local, path)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one of that name; False if there is.

        S3, Google's and Azure's stores decide: of several processes that try at once, one succeeds.
        A store that cannot put an object only where there is none is asked whether there is one,
        written to, and read back: of two that try within the same moment the one that wrote first
        may believe that it succeeded, if it reads back before the other writes.
        """
        path = self._path(name)
        with _CREATING, self._refusals("write", name):
            return self._put_new(path, content)

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files directly in a subfolder, or in the folder itself."""
        path = self._path(folder) if folder else self._root
        with self._refusals("list", folder):
            entries = self._list(path)
        files = [entry["name"] for entry in entries if entry["type"] == "file"]
        leaves = [file.removeprefix(f"{path}/") for file in files if file.startswith(f"{path}/")]
        return sorted(leaf for leaf in leaves if leaf and not is_unfinished(leaf))

    def all_names(self) -> list[str]:
        """Sorted names of all files, those of subfolders included."""
        with self._refusals("list"):
            self._store.invalidate_cache(self._root)
            paths = self._store.find(self._root)
        names = [path.removeprefix(f"{self._root}/") for path in paths]
        return sorted(name for name in names if name and not is_unfinished(name.rpartition("/")[2]))

    def unfinished_names(self) -> list[str]:
        """None: what was not uploaded to its end is no object."""
        return []

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        path = self._path(name)
        with self._refusals("look at", name):
            return self._is_file(path)

    def size(self, name: str) -> int:
        """How many bytes a file has."""
        path = self._path(name)
        with self._refusals("look at", name):
            return int(self._info(path)["size"])

    def move(self, name: str, new: str) -> None:
        """Rename a file: copied, then deleted. Refuses to replace one that was there before."""
        path, target = self._path(name), self._path(new)
        if self.exists(new):
            raise RunError(f"cannot move {name} in {self.url}: {new} is there")
        with self._refusals("move", name):
            self._store.cp_file(path, target)
            self._store.rm_file(path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._path(name)
        with self._refusals("remove", name):
            try:
                self._store.rm_file(path)
            except FileNotFoundError:
                return

    def is_empty(self) -> bool:
        """Whether nothing has the prefix."""
        with self._refusals("look into"):
            entries = self._list(self._root)
        names = {entry["name"].rstrip("/") for entry in entries} - {self._root}  # a mark of itself
        return all(is_unfinished(name.rpartition("/")[2]) for name in names)

    def prepare(self) -> None:
        """Try to write; refuses an address that is a file's. A prefix needs no making."""
        probe = f"{self._root}/.probe.{secrets.token_hex(6)}.tmp"
        with self._refusals("write to"):
            if self._is_file(self._root):
                raise RunError(f"{self.url} is a file: name another folder for the run")
            self._store.pipe_file(probe, b"anything")
            self._store.rm_file(probe)

    def remove_unfinished(self) -> None:
        """Nothing: what was not uploaded to its end is no object."""

    def _upload(self, local: Path, path: str) -> None:
        if local.stat().st_size <= _DIRECT:
            self._store.pipe_file(path, local.read_bytes())
        else:
            self._store.put_file(str(local), path)

    def _put_new(self, path: str, content: bytes) -> bool:
        for pause in (*_PAUSES, None):
            try:
                self._store.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _code(error) in _TAKEN:
                    return False
                if _code(error) in _UNKNOWN_CONDITION:
                    return self._put_and_verify(path, content)
                if _code(error) not in _CONFLICT or pause is None:
                    raise
                time.sleep(pause)
            else:
                break
        return self._scheme in _EXCLUSIVE or self._holds(path, content)

    def _put_and_verify(self, path: str, content: bytes) -> bool:
        if self._is_file(path):
            return False
        self._store.pipe_file(path, content)
        return self._holds(path, content)

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return bool(self._store.cat_file(path) == content)
        except FileNotFoundError:  # removed meanwhile
            return False

    def _is_file(self, path: str) -> bool:
        # Not the store's own isfile and exists: for them a network that fails means no.
        try:
            return bool(self._info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def _info(self, path: str) -> Any:
        self._store.invalidate_cache(path)  # other processes write as well
        return self._store.info(path)

    def _list(self, path: str) -> list[Any]:
        self._store.invalidate_cache(path)
        try:
            return list(self._store.ls(path, detail=True))
        except FileNotFoundError:
            return []

    def _path(self, name: str) -> str:
        return f"{self._root}/{require_name(name)}"

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    @contextmanager
    def _refusals(self, action: str, name: str = "") -> Iterator[None]:
        """Turn what the store says into our errors."""
        try:
            yield
        except SeqprocError:
            raise
        except FileNotFoundError as error:
            shown = self._shown(name)
            raise MissingFileError(
                f"cannot {action} {shown}: it, or its bucket, is not there"
            ) from (error)
        except Exception as error:  # each store has errors of its own
            raise RunError(f"cannot {action} {self._shown(name)}: {_reason(error)}") from error


def _open_store(url: str, scheme: str) -> tuple[Any, str]:
    """The store of a URL, and the path in it."""
    require_package("fsspec", extra="remote", purpose=f"a folder at {scheme}://")
    if scheme in ("s3", "s3a"):
        require_package("s3fs", extra="remote", purpose=f"a folder at {scheme}://")
    from fsspec.core import url_to_fs

    try:
        store, root = url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(f"cannot open {url}: {_reason(error)}") from error
    except Exception as error:  # each store has errors of its own
        raise RunError(f"cannot open {url}: {_reason(error)}") from error
    return store, root.rstrip("/")


@contextmanager
def _scratch() -> Iterator[Path]:
    """Where a local file can be made, for as long as it is needed."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="seqproc-")
    except OSError as error:
        raise RunError(f"cannot make a temporary folder: {error.strerror or error}") from error
    with folder as name:
        yield Path(name) / "content"


def _code(error: BaseException) -> str:
    """The code of an S3 error, which s3fs keeps as the cause; empty for another."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _reason(error: BaseException) -> str:
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{type(error).__name__}: {said}".removesuffix(": ")
