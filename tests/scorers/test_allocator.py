"""The allocator's setting: taken on glibc, left alone elsewhere, made once."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator

import pytest

from seqproc.scorers.kernels.allocator import KEPT_BYTES, keep_freed_memory

OLD_GLIBC_LIMIT = 32 << 20


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Each test asks afresh; what one was answered is not remembered after it."""
    keep_freed_memory.cache_clear()
    yield
    keep_freed_memory.cache_clear()


class Libc:
    """A C library that takes the settings that it likes."""

    def __init__(self, takes: Callable[[int, int], bool]) -> None:
        self.takes = takes
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return int(self.takes(option, value))


@pytest.fixture
def install(monkeypatch):
    """`install(takes)`: such a C library in the place of the real one."""

    def make(takes: Callable[[int, int], bool]) -> Libc:
        libc = Libc(takes)
        monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
        monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
        return libc

    return make


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_glibc_takes_the_setting_however_often():
    assert keep_freed_memory() is True
    assert keep_freed_memory() is True
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is True


@pytest.mark.parametrize("name", ["", "musl", "msvcrt"])
def test_another_c_library_is_left_alone(install, monkeypatch, name):
    libc = install(lambda option, value: True)
    monkeypatch.setattr(platform, "libc_ver", lambda: (name, ""))
    assert keep_freed_memory() is False
    assert libc.calls == []


def test_the_setting_is_made_once(install):
    libc = install(lambda option, value: True)
    assert keep_freed_memory() is True
    made = list(libc.calls)
    assert len(made) == 2
    assert KEPT_BYTES in dict(made).values()
    assert keep_freed_memory() is True
    assert libc.calls == made


def test_an_old_glibc_takes_smaller_blocks(install):
    libc = install(lambda option, value: value == KEPT_BYTES or value <= OLD_GLIBC_LIMIT)
    assert keep_freed_memory() is True
    assert OLD_GLIBC_LIMIT in [value for _, value in libc.calls]


@pytest.mark.parametrize("refused", [lambda value: value == KEPT_BYTES, lambda value: True])
def test_a_setting_that_is_refused_is_told(install, refused):
    install(lambda option, value: not refused(value))
    assert keep_freed_memory() is False
