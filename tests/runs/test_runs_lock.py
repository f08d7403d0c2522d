"""One process at a time: of many that ask one gets the lock, and the dead do not keep it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import contender
from helpers.stores import BUCKET, s3_server
from seqproc._util import processes
from seqproc.errors import ConfigError, MissingFileError, RunError
from seqproc.runs.store.folder import Folder, open_folder
from seqproc.runs.store.holder import Entry, Holder, is_alive, this_process
from seqproc.runs.store.lock import LOCK, RunLock, holder_of

QUICK: dict[str, Any] = {"heartbeat_s": 0.05, "expires_s": 0.4}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "run")


def put(folder: Folder, name: str, content: bytes) -> None:
    folder.write(name, lambda file: file.write(content))


def process(folder: Folder, *arguments: str) -> subprocess.Popen[str]:
    """A contender for the lock."""
    command = [sys.executable, contender.__file__, folder.url, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def holding(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with process(folder, "hold") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def token() -> str:
    return secrets.token_hex(16)


@pytest.fixture(scope="session")
def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture
def dead(dead_pid: int) -> Holder:
    """A holder on this machine whose process has ended."""
    return dataclasses.replace(this_process(token()), pid=dead_pid, process_started="1")


@pytest.fixture
def foreign() -> Holder:
    """A holder on another machine."""
    return dataclasses.replace(this_process(token()), host="elsewhere", boot="another", pid=77)


class TestOneProcess:
    def test_held_and_released(self, folder: Folder) -> None:
        with RunLock(folder) as lock:
            holder = holder_of(folder)
            assert holder is not None
            assert (holder.pid, is_alive(holder), holder.beat) == (os.getpid(), True, 0)
            assert not lock.lost
            lock.check()
        assert holder_of(folder) is None
        assert folder.names() == []
        with lock:  # again
            assert folder.names() == [LOCK]

    def test_released_when_the_run_fails(self, folder: Folder) -> None:
        with pytest.raises(ZeroDivisionError), RunLock(folder):
            raise ZeroDivisionError
        assert folder.names() == []

    def test_beats_grow(self, folder: Folder) -> None:
        with RunLock(folder, **QUICK):
            first = folder.read(LOCK)
            time.sleep(0.3)
            now = holder_of(folder)
        before = Entry(first).holder
        assert before is not None
        assert now is not None
        assert now.beat > before.beat
        assert dataclasses.replace(now, beat=0, last_beat="") == dataclasses.replace(
            before, beat=0, last_beat=""
        )

    def test_refused_to_the_same_process(self, folder: Folder) -> None:
        with RunLock(folder) as lock:
            with pytest.raises(RunError, match=f"is in use by process {os.getpid()} on "):
                RunLock(folder).acquire()
            with pytest.raises(RunError, match="is held already: release it first"):
                lock.acquire()
            lock.check()

    def test_what_was_never_acquired(self, folder: Folder) -> None:
        lock = RunLock(folder)
        lock.release()
        with pytest.raises(RunError, match="is not held: acquire it first"):
            lock.check()

    def test_a_forked_process_leaves_it_to_its_parent(self, folder: Folder) -> None:
        script = (
            "import os, sys\n"
            "from seqproc.runs.store.folder import open_folder\n"
            "from seqproc.runs.store.lock import RunLock\n"
            "with RunLock(open_folder(sys.argv[1])) as lock:\n"
            "    if os.fork() == 0:\n"
            "        lock.release()\n"
            "        os._exit(0)\n"
            "    os.wait()\n"
            "    lock.check()\n"
        )
        command = [sys.executable, "-W", "ignore", "-c", script, folder.url]
        assert subprocess.run(command, check=False, timeout=60).returncode == 0

    @pytest.mark.parametrize(("beat", "expires"), [(0, 1), (1, 1.5), (1, float("inf")), (-1, 60)])
    def test_times_that_make_no_sense(self, folder: Folder, beat: float, expires: float) -> None:
        with pytest.raises(
            ConfigError, match="heartbeat_s must be above 0, and expires_s at least"
        ):
            RunLock(folder, heartbeat_s=beat, expires_s=expires)

    def test_a_time_that_is_none(self, folder: Folder) -> None:
        with pytest.raises(ConfigError, match="heartbeat_s must be a number of seconds, got str"):
            RunLock(folder, heartbeat_s="10")  # type: ignore[arg-type]


class TestAnotherProcess:
    def test_refused_while_it_lives_then_taken_over(
        self, folder: Folder, caplog: pytest.LogCaptureFixture
    ) -> None:
        with holding(folder) as other:
            started = time.monotonic()
            with pytest.raises(RunError) as refusal:
                RunLock(folder).acquire()
            assert time.monotonic() - started < 5
            holder = holder_of(folder)
            assert holder is not None
            for part in (
                f"process {other.pid} on {holder.host}",
                holder.since,
                "last sign of life",
            ):
                assert part in str(refusal.value)
            assert str(refusal.value).endswith("remove lock.json from the folder")
            os.kill(other.pid, signal.SIGKILL)
            # Not waited for yet: a zombie is dead.
            while is_alive(holder):
                time.sleep(0.01)
            with caplog.at_level(logging.WARNING, "seqproc"), RunLock(folder) as lock:
                lock.check()
                assert folder.names() == [LOCK]
            assert f"from process {other.pid} on {holder.host}" in caplog.text
            assert folder.names() == []

    def test_stopped_is_not_dead(self, folder: Folder) -> None:
        with holding(folder) as other:
            os.kill(other.pid, signal.SIGSTOP)
            with pytest.raises(RunError, match=f"in use by process {other.pid}"):
                RunLock(folder, **QUICK).acquire()

    def test_a_process_of_the_same_number_is_another(self, folder: Folder) -> None:
        mine = this_process(token())
        put(folder, LOCK, dataclasses.replace(mine, process_started="1").to_json())
        with RunLock(folder) as lock:
            lock.check()

    @pytest.mark.parametrize("kind", ["memory", "s3"])
    def test_stores(self, kind: str, dead: Holder, tmp_path: Path) -> None:
        if kind == "memory":
            self._store(open_folder(f"memory://{tmp_path.name}/run"), dead)
        else:
            with s3_server():
                self._store(open_folder(f"s3://{BUCKET}/{tmp_path.name}"), dead)

    def _store(self, folder: Folder, dead: Holder) -> None:
        put(folder, LOCK, dead.to_json())
        with RunLock(folder, **QUICK) as lock:
            time.sleep(0.2)
            lock.check()
            assert folder.names() == [LOCK]
            with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
                RunLock(folder).acquire()
        assert folder.is_empty()


class TestElsewhere:
    def test_one_that_gives_no_sign_of_life_is_dead(
        self, folder: Folder, foreign: Holder, caplog: pytest.LogCaptureFixture
    ) -> None:
        put(folder, LOCK, foreign.to_json())
        started = time.monotonic()
        with caplog.at_level(logging.WARNING, "seqproc"), RunLock(folder, **QUICK) as lock:
            assert time.monotonic() - started >= QUICK["expires_s"]
            lock.check()
        assert caplog.text.count("waiting 0.4 s for a sign of life") == 1
        assert "took over the lock" in caplog.text

    def test_one_that_gives_a_sign_of_life_is_refused_at_once(
        self, folder: Folder, foreign: Holder
    ) -> None:
        put(folder, LOCK, foreign.to_json())
        beat = threading.Timer(0.3, put, (folder, LOCK, foreign.after_a_beat().to_json()))
        beat.start()
        started = time.monotonic()
        with pytest.raises(RunError, match="in use by process 77 on elsewhere"):
            RunLock(folder, expires_s=60).acquire()
        assert time.monotonic() - started < 10
        beat.join()
        assert folder.names() == [LOCK]

    def test_one_that_gives_no_cause_to_wait(self, folder: Folder, foreign: Holder) -> None:
        put(folder, LOCK, foreign.to_json())
        with pytest.raises(RunError, match="in use by process 77 on elsewhere"):
            RunLock(folder, expires_s=600, wait=False).acquire()

    def test_one_that_releases_meanwhile(self, folder: Folder, foreign: Holder) -> None:
        put(folder, LOCK, foreign.to_json())
        release = threading.Timer(0.3, folder.remove, (LOCK,))
        release.start()
        started = time.monotonic()
        with RunLock(folder, expires_s=60):
            assert time.monotonic() - started < 10
        release.join()

    def test_another_container_is_elsewhere(self, folder: Folder) -> None:
        mine = this_process(token())
        others: list[dict[str, Any]] = [{"host": "x"}, {"boot": "x"}, {"pid_namespace": "x"}]
        for other in others:
            assert is_alive(dataclasses.replace(mine, **other)) is None
        assert is_alive(mine) is True

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"token": 3}']
    )
    def test_a_file_that_says_nothing_expires(self, folder: Folder, content: bytes) -> None:
        put(folder, LOCK, content)
        assert holder_of(folder) is None
        with pytest.raises(RunError, match="an unknown process"):
            RunLock(folder, wait=False).acquire()
        started = time.monotonic()
        with RunLock(folder, **QUICK) as lock:
            assert time.monotonic() - started >= QUICK["expires_s"]
            lock.check()
        assert folder.names() == []

    def test_files_of_other_forms_say_nothing(self, foreign: Holder) -> None:
        values = json.loads(foreign.to_json())
        assert Entry(json.dumps(values).encode()).holder == foreign
        for change in ({"pid": "7"}, {"pid": True}, {"pid": 0}, {"token": "../../x"}, {"more": 1}):
            assert Entry(json.dumps(values | change).encode()).holder is None
        del values["beat"]
        assert Entry(json.dumps(values).encode()).holder is None


class TestLost:
    def test_taken_over(self, folder: Folder, foreign: Holder) -> None:
        lock = RunLock(folder, **QUICK)
        lock.acquire()
        put(folder, LOCK, foreign.to_json())
        with pytest.raises(RunError, match=r"has lost the lock of .* to process 77 on elsewhere"):
            lock.check()
        assert lock.lost
        lock.release()
        assert holder_of(folder) == foreign

    def test_found_by_the_heartbeat(
        self, folder: Folder, foreign: Holder, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RunLock(folder, **QUICK) as lock:
            put(folder, LOCK, foreign.to_json())
            while not lock.lost:
                time.sleep(0.01)
            assert "was taken over" in caplog.text
            with pytest.raises(RunError, match="run the same command again once"):
                lock.check()
        assert holder_of(folder) == foreign

    def test_removed(self, folder: Folder) -> None:
        with RunLock(folder, **QUICK) as lock:
            folder.remove(LOCK)
            with pytest.raises(RunError, match="to whoever removed it"):
                lock.check()
        assert folder.names() == []

    def test_a_beat_that_fails_is_tried_again(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise RunError("the disk is full")

        with RunLock(folder, **QUICK) as lock:
            monkeypatch.setattr(folder, "write", refuse)
            while "no sign of life" not in caplog.text:
                time.sleep(0.01)
            monkeypatch.undo()
            before = holder_of(folder)
            time.sleep(0.2)
            after = holder_of(folder)
            assert before is not None
            assert after is not None
            assert after.beat > before.beat
            lock.check()

    def test_the_first_error_is_reported_when_it_cannot_be_released(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise RunError("the network is down")

        def run() -> None:
            with RunLock(folder):
                monkeypatch.setattr(folder, "remove", refuse)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as first:
            run()
        assert first.value.__notes__ == ["the network is down"]
        monkeypatch.undo()
        folder.remove(LOCK)
        with pytest.raises(RunError, match="the network is down"), RunLock(folder):
            monkeypatch.setattr(folder, "remove", refuse)


class Meddling:
    """A folder where something happens right after a claim was made."""

    def __init__(self, folder: Folder, happens: Any) -> None:
        self._folder = folder
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._folder, name)

    def create(self, name: str, content: bytes) -> bool:
        created = self._folder.create(name, content)
        if name != LOCK and self._happens is not None:
            happens, self._happens = self._happens, None
            happens()
        return created


class TestTakeover:
    def test_a_claimant_that_died_is_followed(self, folder: Folder, dead: Holder) -> None:
        second = dataclasses.replace(dead, token=token())
        put(folder, LOCK, dead.to_json())
        folder.create(f"lock-{dead.token}.stale", second.to_json())
        assert holder_of(folder) == second
        with RunLock(folder) as lock:
            lock.check()
            assert folder.names() == [LOCK]

    def test_a_claimant_that_lives_is_the_holder(self, folder: Folder, dead: Holder) -> None:
        put(folder, LOCK, dead.to_json())
        folder.create(f"lock-{dead.token}.stale", this_process(token()).to_json())
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
            RunLock(folder).acquire()
        assert Entry(folder.read(LOCK)).holder == dead

    def test_a_dead_claim_on_one_that_lives_is_void(self, folder: Folder, dead: Holder) -> None:
        mine = this_process(token())
        put(folder, LOCK, mine.to_json())
        folder.create(f"lock-{mine.token}.stale", dead.to_json())
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
            RunLock(folder).acquire()

    def test_a_claim_that_came_late_is_withdrawn(self, folder: Folder, dead: Holder) -> None:
        """Another process took over, and tidied up, between the look and the claim."""
        put(folder, LOCK, dead.to_json())
        other = this_process(token())
        slow: Any = Meddling(folder, lambda: put(folder, LOCK, other.to_json()))
        with pytest.raises(RunError, match="in use by process"):
            RunLock(slow).acquire()
        assert holder_of(folder) == other
        assert folder.names() == [LOCK]

    def test_a_beat_that_the_file_system_showed_late(self, folder: Folder, foreign: Holder) -> None:
        put(folder, LOCK, foreign.to_json())
        slow: Any = Meddling(folder, lambda: put(folder, LOCK, foreign.after_a_beat().to_json()))
        with pytest.raises(RunError, match="in use by process 77 on elsewhere"):
            RunLock(slow, **QUICK).acquire()
        assert folder.names() == [LOCK]

    def test_tokens_in_a_circle(self, folder: Folder, dead: Holder) -> None:
        put(folder, LOCK, dead.to_json())
        folder.create(f"lock-{dead.token}.stale", dead.to_json())
        assert holder_of(folder) == dead

    def test_the_lock_of_a_store_whose_answer_got_lost(self, folder: Folder) -> None:
        class Lossy(Meddling):
            def create(self, name: str, content: bytes) -> bool:
                self._folder.create(name, content)
                return False

        lossy: Any = Lossy(folder, None)
        with RunLock(lossy) as lock:
            lock.check()
        assert folder.names() == []


class TestManyProcesses:
    """Eight at once. None of these can fail by chance: that one gets it is certain."""

    def test_one_of_eight_gets_it(self, folder: Folder, dead: Holder) -> None:
        crowd = [process(folder, "rounds") for _ in range(8)]
        try:
            for i in range(30):
                last = dataclasses.replace(dead, token=token())
                if i % 3:
                    put(folder, LOCK, last.to_json())
                if i % 3 == 2:
                    claim = dataclasses.replace(dead, token=token()).to_json()
                    folder.create(f"lock-{last.token}.stale", claim)
                said = self._tell(crowd)
                assert said.count("got\n") == 1, said
                winner = crowd[said.index("got\n")].pid
                refusals = [line for line in said if line != "got\n"]
                assert all(f"in use by process {winner} on" in line for line in refusals), said
                assert self._tell(crowd) == ["released\n"] * 8
                assert folder.names() == []
        finally:
            for one in crowd:
                _, errors = one.communicate(timeout=60)
                assert errors == ""

    def _tell(self, crowd: list[subprocess.Popen[str]]) -> list[str]:
        """Give all of them a line; what each one says to it."""
        for one in crowd:
            assert one.stdin is not None
            one.stdin.write("now\n")
            one.stdin.flush()
        return [one.stdout.readline() for one in crowd if one.stdout is not None]

    def test_nobody_is_ever_in_company(self, folder: Folder) -> None:
        """Each holds it many times, and is often killed while it does."""
        crowd = [process(folder, "churn", "12", str(seed)) for seed in range(8)]
        ended = [one.communicate(timeout=120) for one in crowd]
        assert [one.returncode for one in crowd] == [0] * 8, ended
        counts = [tuple(map(int, said.split())) for said, _ in ended]
        assert [had for had, _ in counts] == [12] * 8
        assert sum(killed for _, killed in counts) > 8
        with RunLock(folder) as lock:  # the last one may have been killed
            lock.check()
        assert folder.names() == []


class TestProcesses:
    def test_where_the_system_says_little(
        self, monkeypatch: pytest.MonkeyPatch, dead_pid: int
    ) -> None:
        """As on a system without /proc: by `ps`, or by the number alone."""
        monkeypatch.setattr(processes, "Path", lambda path: Path("/nonexistent") / path[1:])
        assert processes.boot_id() == ""
        assert processes.process_start(dead_pid) is None
        assert processes.process_start(2**70) is None
        monkeypatch.setenv("PATH", "/nonexistent")
        assert processes.process_start(os.getpid()) == ""

    def test_another_users_process_lives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(pid: int, number: int) -> None:
            raise PermissionError

        monkeypatch.setattr(processes, "Path", lambda path: Path("/nonexistent"))
        monkeypatch.setattr(os, "kill", refuse)
        assert processes.process_start(1) is not None

    def test_one_that_does_not_say_when_it_started_is_not_dead(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = this_process(token())
        assert is_alive(dataclasses.replace(mine, process_started=""))
        monkeypatch.setattr("seqproc.runs.store.holder.process_start", lambda pid: "")
        assert is_alive(mine)


def test_a_lock_file_that_vanishes_is_no_lock(folder: Folder) -> None:
    assert holder_of(folder) is None
    with pytest.raises(MissingFileError):
        folder.read(LOCK)
