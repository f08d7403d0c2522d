"""Where a run is kept: files are whole or not there, names stay inside, in every kind of folder."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.stores import BUCKET, s3_server
from seqproc.errors import MissingDependencyError, MissingFileError, RunError
from seqproc.runs.store.folder import Folder, open_folder
from seqproc.runs.store.local import LocalFolder
from seqproc.runs.store.remote import RemoteFolder

NAMES = (
    "",
    "/etc/passwd",
    "..",
    "../outside",
    "a/../../outside",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\udcffb",
    ".a.0123456789ab.tmp",
)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder of each kind."""
    if request.param == "local":
        return open_folder(tmp_path / "run")
    if request.param == "memory":
        return open_folder(f"memory://{tmp_path.name}/{request.node.name}")
    request.getfixturevalue("s3")
    return open_folder(f"s3://{BUCKET}/{tmp_path.name}/{request.node.name}")


@pytest.fixture
def local(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "run")


def put(folder: Folder, name: str, content: bytes = b"content") -> None:
    folder.write(name, lambda file: file.write(content))


def everything(path: Path) -> list[str]:
    """All files and folders below a path, also hidden ones."""
    return sorted(found.relative_to(path).as_posix() for found in path.rglob("*"))


def refuse(code: int) -> Any:
    """A call of the operating system that fails."""

    def call(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


class TestEveryFolder:
    def test_what_is_written_is_read(self, folder: Folder) -> None:
        assert folder.is_empty()
        folder.prepare()
        assert folder.is_empty()
        put(folder, "manifest.json", b"{}")
        put(folder, "samples/part-000000.parquet", b"0123456789")
        assert not folder.is_empty()
        assert folder.read("manifest.json") == b"{}"
        assert folder.size("samples/part-000000.parquet") == 10
        with folder.open("samples/part-000000.parquet") as file:
            assert file.seekable()
            assert file.seek(-3, io.SEEK_END) == 7
            assert file.read() == b"789"

    def test_two_readers_have_positions_of_their_own(self, folder: Folder) -> None:
        put(folder, "a", b"0123456789")
        with folder.open("a") as first, folder.open("a") as second:
            assert first.read(5) == b"01234"
            assert second.read(2) == b"01"
            assert first.read(1) == b"5"

    def test_a_table_goes_through(self, folder: Folder) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"x": list(range(1000)), "y": ["text"] * 1000})
        folder.write("rows/part.parquet", lambda file: pq.write_table(table, file))
        with folder.open("rows/part.parquet") as file:
            assert pq.read_table(file, columns=["x"]).equals(table.select(["x"]))

    def test_what_is_added_comes_last(self, folder: Folder) -> None:
        for content in (b"one\n", b"", b"two\n"):
            folder.append("logs/events.jsonl", content)
        assert folder.read("logs/events.jsonl") == b"one\ntwo\n"
        assert folder.unfinished_names() == []
        with pytest.raises(RunError):
            folder.append("../outside", b"")

    def test_a_write_replaces(self, folder: Folder) -> None:
        for content in (b"first", b"second, longer", b"", b"last"):
            put(folder, "a/b", content)
            assert folder.read("a/b") == content
            assert folder.size("a/b") == len(content)

    def test_a_large_file(self, folder: Folder) -> None:
        content = os.urandom(2**20) * 17  # more than goes up in one request
        put(folder, "large", content)
        assert folder.read("large") == content

    def test_a_writer_that_raises_leaves_what_was_there(self, folder: Folder) -> None:
        def half(file: Any) -> None:
            file.write(b"half")
            raise ZeroDivisionError

        put(folder, "a", b"before")
        for name in ("a", "new"):
            with pytest.raises(ZeroDivisionError):
                folder.write(name, half)
        assert folder.read("a") == b"before"
        assert folder.names() == ["a"]

    def test_a_full_disk_says_how_to_go_on(self, folder: Folder) -> None:
        put(folder, "a", b"before")
        with pytest.raises(
            RunError, match=r"cannot write .*a.*No space left on device\. What was"
        ) as e:
            folder.write("a", refuse(errno.ENOSPC))
        assert str(e.value).endswith("is whole: make space and run the same command again")
        assert folder.read("a") == b"before"

    def test_create_is_for_new_files_only(self, folder: Folder) -> None:
        assert folder.create("claims/a", b"first")
        assert not folder.create("claims/a", b"second")
        assert not folder.create("claims/a", b"first")
        assert folder.read("claims/a") == b"first"
        folder.remove("claims/a")
        assert folder.create("claims/a", b"second")
        assert folder.names("claims") == ["a"]

    def test_names_are_of_files_directly_in_a_subfolder(self, folder: Folder) -> None:
        for name in ("b", "a", "samples/2", "samples/1", "samples/deeper/3", "samples2/4"):
            put(folder, name)
        assert folder.names() == ["a", "b"]
        assert folder.names("samples") == ["1", "2"]
        assert folder.names("samples/deeper") == ["3"]
        assert folder.names("nothing") == []

    def test_exists_is_about_files(self, folder: Folder) -> None:
        put(folder, "samples/1")
        assert folder.exists("samples/1")
        assert not folder.exists("samples")
        assert not folder.exists("samples/2")
        assert not folder.exists("nothing/2")

    def test_others_are_seen_at_once(self, folder: Folder) -> None:
        assert folder.names("samples") == []
        assert not folder.exists("samples/1")
        other = open_folder(folder.url)
        put(other, "samples/1", b"123")
        assert folder.names("samples") == ["1"]
        assert folder.size("samples/1") == 3
        other.remove("samples/1")
        assert not folder.exists("samples/1")

    def test_move_refuses_to_replace(self, folder: Folder) -> None:
        put(folder, "a", b"A")
        folder.move("a", "old/a")
        assert (folder.names(), folder.read("old/a")) == ([], b"A")
        put(folder, "a", b"B")
        for new in ("old/a", "a"):
            with pytest.raises(RunError, match=f"cannot move a in .*: {new} is there"):
                folder.move("a", new)
        assert (folder.read("a"), folder.read("old/a")) == (b"B", b"A")
        with pytest.raises(MissingFileError, match=r"cannot move .*nothing.* is not there"):
            folder.move("nothing", "b")

    def test_remove_is_fine_without_a_file(self, folder: Folder) -> None:
        put(folder, "a")
        for _ in range(2):
            folder.remove("a")
        folder.remove("nothing/a")
        assert folder.names() == []

    def test_what_is_not_there(self, folder: Folder) -> None:
        for call in (folder.read, folder.open, folder.size):
            with pytest.raises(MissingFileError, match=r"samples/1.* is not there"):
                call("samples/1")

    @pytest.mark.parametrize("name", NAMES)
    def test_names_that_are_none(self, folder: Folder, name: str) -> None:
        calls = (
            folder.read,
            folder.open,
            folder.exists,
            folder.size,
            folder.remove,
            lambda name: folder.create(name, b""),
            lambda name: put(folder, name),
            lambda name: folder.move(name, "b"),
        )
        for call in calls:
            with pytest.raises(RunError, match=r"a file's name in a run's folder must|is kept for"):
                call(name)
        put(folder, "a")
        with pytest.raises(RunError, match=r"a file's name in a run's folder must|is kept for"):
            folder.move("a", name)
        if name:
            with pytest.raises(RunError, match=r"a file's name in a run's folder must|is kept for"):
                folder.names(name)

    def test_a_name_that_is_no_text(self, folder: Folder) -> None:
        with pytest.raises(RunError, match="a file's name must be a str, got int"):
            folder.read(3)  # type: ignore[arg-type]

    def test_odd_but_good_names(self, folder: Folder) -> None:
        names = sorted(["a b", "ü", "..a", "a..", "~", "a*[b]?", "c:d", "%2e", "#"])
        for name in names:
            put(folder, name, name.encode())
        assert folder.names() == names
        assert [folder.read(name).decode() for name in names] == names


@pytest.mark.parametrize("kind", ["local", "memory"])  # moto itself looks and then writes
def test_one_of_many_threads_creates(kind: str, tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}/run" if kind == "memory" else str(tmp_path / "run")
    folder = open_folder(address)
    for i in range(20):
        got = race(lambda j, i=i: folder.create(f"c/{i}", str(j).encode()), 8)
        assert sum(got) == 1
        assert folder.read(f"c/{i}") == str(got.index(True)).encode()
    assert len(folder.names("c")) == 20


def race(call: Any, number: int) -> list[Any]:
    """What calls in threads of their own return, all begun at the same moment."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(i: int) -> None:
        barrier.wait()
        results[i] = call(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class TestLocalFolder:
    def test_no_litter(self, local: LocalFolder, tmp_path: Path) -> None:
        local.prepare()
        put(local, "a/b")
        local.create("c", b"")
        local.create("c", b"")
        with pytest.raises(RunError):
            local.write("a/b", refuse(errno.ENOSPC))
        with pytest.raises(RunError, match="File name too long"):
            put(local, "x" * 300)
        assert everything(tmp_path) == ["run", "run/a", "run/a/b", "run/c"]

    def test_readers_see_whole_files_while_they_are_replaced(self, local: LocalFolder) -> None:
        contents = [bytes([i]) * 10_000 for i in range(50)]
        put(local, "a", contents[0])
        done, seen = threading.Event(), set()

        def read() -> None:
            while not done.is_set():
                seen.add(local.read("a"))

        thread = threading.Thread(target=read)
        thread.start()
        for content in contents:
            put(local, "a", content)
        done.set()
        thread.join()
        assert seen <= set(contents)

    def test_where_a_process_may_not_write_more(self, local: LocalFolder) -> None:
        put(local, "a", b"before")
        script = (
            "import resource, sys\n"
            "from seqproc.runs.store.folder import open_folder\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "open_folder(sys.argv[1]).write('a', lambda file: file.write(b'x' * 5000))\n"
        )
        command = [sys.executable, "-c", script, local.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr.endswith("File too large. What was written before is whole\n")
        assert everything(Path(local.url)) == ["a"]
        assert local.read("a") == b"before"

    def test_a_killed_writer_leaves_what_the_owner_removes(self, local: LocalFolder) -> None:
        script = (
            "import os, signal, sys\n"
            "from seqproc.runs.store.folder import open_folder\n"
            "die = lambda file: (file.write(b'half'), os.kill(os.getpid(), signal.SIGKILL))\n"
            "open_folder(sys.argv[1]).write(sys.argv[2], die)\n"
        )
        for name in ("samples/a", "b", "lock.json"):
            command = [sys.executable, "-c", script, local.url, name]
            assert subprocess.run(command, check=False, timeout=60).returncode == -9
        root = Path(local.url)
        (root / "samples" / ".mine.tmp").touch()
        assert len(everything(root)) == 5
        assert (local.names(), local.names("samples")) == ([], [".mine.tmp"])
        unfinished = [name.rpartition("/")[2].split(".")[1] for name in local.unfinished_names()]
        assert unfinished == ["b", "lock", "a"]
        local.remove_unfinished()
        assert sorted(path.name for path in (root / "samples").iterdir()) == [".mine.tmp"]
        (others,) = set(everything(root)) - {"samples", "samples/.mine.tmp"}
        assert others.startswith(".lock.json.")  # who asks for the lock may be writing it now

    def test_only_unfinished_files_are_as_good_as_nothing(self, local: LocalFolder) -> None:
        local.prepare()
        Path(local.url, ".lock.json.0123456789ab.tmp").touch()
        assert local.is_empty()
        Path(local.url, ".hidden").touch()
        assert not local.is_empty()

    def test_links_that_lead_out(self, local: LocalFolder, tmp_path: Path) -> None:
        local.prepare()
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_text("secret")
        root = Path(local.url)
        (root / "file").symlink_to(outside / "secret")
        (root / "folder").symlink_to(outside)
        (root / "dangling").symlink_to(outside / "not there yet")
        (root / "relative").symlink_to("../outside/secret")
        calls = (
            local.read,
            local.open,
            local.size,
            local.remove,
            lambda name: put(local, name),
            lambda name: local.create(name, b""),
            lambda name: local.move(name, "free"),
        )
        for name in ("file", "folder/secret", "folder/new", "dangling", "relative"):
            for call in calls:
                with pytest.raises(RunError, match="is a link that leads out of the folder"):
                    call(name)
        with pytest.raises(RunError, match="leads out"):
            local.names("folder")
        put(local, "mine")
        with pytest.raises(RunError, match="leads out"):
            local.move("mine", "folder/mine")
        assert everything(outside) == ["secret"]
        assert (outside / "secret").read_text() == "secret"

    def test_links_that_stay_inside_and_a_folder_that_is_one(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to("disk")
        local = open_folder(tmp_path / "link")
        put(local, "samples/a", b"A")
        (tmp_path / "disk" / "latest").symlink_to("samples/a")
        (tmp_path / "disk" / "loop").symlink_to("loop")
        assert local.read("latest") == b"A"
        with pytest.raises(RunError, match="Too many levels of symbolic links"):
            local.read("loop")

    def test_a_file_system_without_links(
        self, local: LocalFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
        assert local.create("a", b"A")
        assert not local.create("a", b"B")
        local.move("a", "b")
        put(local, "c")
        with pytest.raises(RunError, match=r"cannot move b in .*: c is there"):
            local.move("b", "c")
        assert local.read("b") == b"A"
        got = race(lambda j: local.create("d", str(j).encode()), 8)
        assert sum(got) == 1
        assert everything(Path(local.url)) == ["b", "c", "d"]

    def test_an_answer_that_got_lost(
        self, local: LocalFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As over NFS: the link is made, the answer is lost, and asked again it is there."""
        link = os.link

        def twice(*arguments: Any, **options: Any) -> None:
            link(*arguments, **options)
            link(*arguments, **options)

        monkeypatch.setattr(os, "link", twice)
        assert local.create("a", b"A")
        assert local.read("a") == b"A"
        monkeypatch.undo()
        assert not local.create("a", b"B")

    def test_a_file_of_that_name_that_is_removed_meanwhile(
        self, local: LocalFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process removes it after it was found in the way, before it is looked at."""
        compare = Path.samefile

        def late(path: Path, other: Path) -> bool:
            path.unlink()
            return compare(path, other)

        put(local, "a", b"A")
        monkeypatch.setattr(Path, "samefile", late)
        assert not local.create("a", b"B")
        monkeypatch.undo()
        assert local.create("a", b"B")
        assert everything(Path(local.url)) == ["a"]

    def test_other_refusals_of_the_system(
        self, local: LocalFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", refuse(errno.EDQUOT))
        with pytest.raises(RunError, match=r"cannot write .*a: Disk quota exceeded.*make space"):
            local.create("a", b"")
        put(local, "b")
        with pytest.raises(RunError, match=r"cannot move b to .*a: Disk quota exceeded"):
            local.move("b", "a")
        with pytest.raises(RunError, match=r"cannot read .*run/b/c: Not a directory"):
            local.read("b/c")
        with pytest.raises(RunError, match=r"cannot write .*run/b/c: "):
            put(local, "b/c")
        with pytest.raises(RunError, match=r"cannot list .*run/b: Not a directory"):
            local.names("b")
        assert everything(Path(local.url)) == ["b"]

    def test_what_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "dangling").symlink_to("nowhere")
        for name in ("file", "dangling"):
            with pytest.raises(RunError, match=f"{name} is not a folder: name another one"):
                open_folder(tmp_path / name).prepare()
        with pytest.raises(RunError, match="is not a folder"):
            open_folder(tmp_path / "file" / "run").prepare()
        with pytest.raises(RunError, match="is not a folder"):
            open_folder(tmp_path / "file").is_empty()

    def test_a_folder_that_cannot_be_written_to(
        self, local: LocalFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local.prepare()
        monkeypatch.setattr("tempfile.TemporaryFile", refuse(errno.EROFS))
        with pytest.raises(RunError, match=r"cannot write to .*run: Read-only file system"):
            local.prepare()

    def test_the_working_folder_may_change(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        local = open_folder("runs/first")
        assert local.url == "runs/first"
        local.prepare()
        monkeypatch.chdir("/")
        put(local, "a")
        assert everything(tmp_path / "runs") == ["first", "first/a"]


class TestOpenFolder:
    def test_kinds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert open_folder("~/run").url == str(tmp_path / "run")
        assert open_folder(tmp_path / "run").url == str(tmp_path / "run")
        assert open_folder(f"file://{tmp_path}/a%20b").url == str(tmp_path / "a b")
        assert isinstance(open_folder(f"file://localhost{tmp_path}/a"), LocalFolder)
        remote = open_folder("memory://bucket/run/")
        assert isinstance(remote, RemoteFolder)
        assert repr(remote) == "RemoteFolder('memory://bucket/run')"

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("", "empty name"),
            (3, "must be a path, got int"),
            ("a\0b", "printable"),
            ("~nobody-of-that-name/run", "cannot tell whose home folder"),
            ("file://host/path", "must be like 'file:///absolute/path'"),
            ("file://", "must be like 'file:///absolute/path'"),
            ("s3://", "must be a bucket and a prefix"),
            ("simplecache::s3://bucket/run", "must be a bucket and a prefix"),
            (Path("s3://bucket/run"), "give a URL as a str"),
            ("nothing://bucket/run", "cannot open nothing://bucket/run: .*not known"),
        ],
    )
    def test_what_names_no_folder(self, path: Any, message: str) -> None:
        with pytest.raises(RunError, match=message):
            open_folder(path)

    def test_a_store_whose_package_is_not_there(self) -> None:
        with pytest.raises(MissingDependencyError, match=r"cannot open gs://bucket/run: .*gcsfs"):
            open_folder("gs://bucket/run")


class Store:
    """A store that says no, for as long as it has errors to raise."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.objects: dict[str, bytes] = {}

    def pipe_file(self, path: str, content: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and self.errors:
            raise self.errors.pop(0)
        self.objects[path] = content

    def cat_file(self, path: str) -> bytes:
        return self.objects[path]

    def info(self, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"type": "file", "size": len(self.objects[path])}

    def invalidate_cache(self, path: str) -> None:
        pass


def said_by_s3(code: str) -> OSError:
    """An error as s3fs raises it: its cause has the code."""
    cause = Exception(code)
    cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error = OSError(errno.EIO, code)
    error.__cause__ = cause
    return error


class TestRemoteFolder:
    @pytest.fixture
    def remote(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr("seqproc.runs.store.remote._PAUSES", (0.0, 0.0))

        def make(store: Store, scheme: str = "s3") -> RemoteFolder:
            opened = (store, "bucket/run")
            monkeypatch.setattr("seqproc.runs.store.remote._open_store", lambda *_: opened)
            return RemoteFolder(f"{scheme}://bucket/run")

        return make

    def test_a_put_at_the_same_moment_is_tried_again(self, remote: Any) -> None:
        conflict = "ConditionalRequestConflict"
        assert remote(Store(said_by_s3(conflict), said_by_s3(conflict))).create("a", b"")
        assert not remote(Store(said_by_s3(conflict), FileExistsError())).create("a", b"")
        assert not remote(Store(said_by_s3("PreconditionFailed"))).create("a", b"")
        with pytest.raises(RunError, match=f"cannot write s3://bucket/run/a: OSError: {conflict}"):
            remote(Store(*[said_by_s3(conflict)] * 3)).create("a", b"")

    def test_a_store_without_conditions_is_asked_and_read_back(self, remote: Any) -> None:
        store = Store(*[said_by_s3("NotImplemented")] * 2)
        assert remote(store).create("a", b"A")
        assert not remote(store).create("a", b"B")
        assert store.objects == {"bucket/run/a": b"A"}

        class Overwritten(Store):
            def cat_file(self, path: str) -> bytes:
                return b"another's"

        assert remote(Overwritten(), "s3").create("a", b"A")  # S3 decides
        assert not remote(Overwritten(), "unheard-of").create("a", b"A")

        class Removed(Store):
            def cat_file(self, path: str) -> bytes:
                raise FileNotFoundError(path)

        assert not remote(Removed(), "unheard-of").create("a", b"A")

    def test_a_network_that_fails_is_not_an_empty_folder(self, remote: Any) -> None:
        class Unreachable(Store):
            def info(self, path: str, detail: bool = True) -> Any:
                raise ConnectionError("no route to host")

            ls = info

        folder = remote(Unreachable())
        for call in (lambda: folder.exists("a"), folder.names, folder.is_empty, folder.prepare):
            with pytest.raises(RunError, match="ConnectionError: no route to host"):
                call()

    def test_a_bucket_that_is_not_there(self, s3: str) -> None:
        folder = open_folder("s3://no-such-bucket/run")
        with pytest.raises(RunError, match=r"cannot write to s3://no-such-bucket/run: .*bucket"):
            folder.prepare()

    def test_a_file_is_no_folder(self, s3: str) -> None:
        put(open_folder(f"s3://{BUCKET}/files"), "file")
        with pytest.raises(RunError, match="files/file is a file: name another folder"):
            open_folder(f"s3://{BUCKET}/files/file").prepare()

    def test_what_another_client_left_for_a_folder_is_nothing(self, s3: str) -> None:
        from s3fs import S3FileSystem

        S3FileSystem().touch(f"{BUCKET}/marked/")
        S3FileSystem().touch(f"{BUCKET}/marked/.probe.0123456789ab.tmp")
        folder = open_folder(f"s3://{BUCKET}/marked")
        assert folder.is_empty()
        assert folder.names() == []
        folder.remove_unfinished()

    def test_no_room_to_make_a_file_ready(
        self, remote: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.TemporaryDirectory", refuse(errno.ENOSPC))
        with pytest.raises(RunError, match="cannot make a temporary folder: No space left"):
            put(remote(Store()), "a")
