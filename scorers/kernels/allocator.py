"""The C library's allocator, told to keep what is freed between the chunks of a forward pass.

By default glibc gives every large block back to the system and takes fresh pages for the next one.
Scoring makes and frees blocks of some megabytes all the time: faulting their pages in anew takes
longer than the arithmetic on them (6 to 8 times as long for the statistics of a logits chunk, 5 %
of a backbone). Knows nothing of torch; does nothing where there is no glibc.
"""

from __future__ import annotations

import ctypes
import functools
import platform

from seqproc._util.kernels import is_on

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
# Freed memory that the process may hold on to: what a pass makes and frees, and beside it the
# parameters of an override of some 100 million.
KEPT_BYTES = 1 << 30
_LARGEST_BLOCKS = (128 << 20, 32 << 20)  # larger ones still come from the system; old glibc: 32 MB


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep up to 1 GB of freed memory; once, and for good.

    The command line calls it. A program of your own that scores on a CPU may: no other part of
    seqproc changes the process that it runs in.

    Returns:
        Whether the allocator took the setting.
    """
    if platform.libc_ver()[0] != "glibc" or not is_on("allocator"):
        return False
    libc = ctypes.CDLL(None)
    took_blocks = any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_BLOCKS)
    return took_blocks and bool(libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
