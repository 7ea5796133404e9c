"""What the operating system is told about this process."""

from __future__ import annotations

import subprocess
import sys

HEAPS = """
import ctypes, sys, threading
from migrate.host import bound_heaps
if sys.argv[1] == "bound":
    bound_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
there = threading.Barrier(16)
def work():
    there.wait()
    libc.malloc(1000)
    there.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""

BUFFERS = """
import ctypes, sys
from migrate.host import bound_heaps
class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Told
if sys.argv[1] == "bound":
    bound_heaps()
before = libc.mallinfo2().hblkhd
for _ in range(2):
    buffer = None
    buffer = bytearray(2 << 20)
print(libc.mallinfo2().hblkhd - before)
"""
HOLES = """
import ctypes, os
from migrate.host import give_back_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
pieces = [libc.malloc(1000) for _ in range(30_000)]
for piece in pieces:
    ctypes.memset(piece, 1, 1000)
for piece in pieces[:-1]:
    libc.free(ctypes.c_void_p(piece))
full = resident()
give_back_memory()
print(full - resident())
"""


def test_large_buffers_stay_outside_of_the_heaps() -> None:
    """The second buffer of an association's size has pages of its own, as the first, which glibc would put into a heap by default."""
    outside = {how: int(_said(BUFFERS, how)) for how in ("bound", "free")}
    assert outside["bound"] >= 2 << 20 > outside["free"]


def test_what_is_free_within_a_heap_goes_back() -> None:
    """Of 28 MiB in small pieces, below one that is still in use, next to nothing stays."""
    assert int(_said(HOLES)) > 20


def _said(program: str, *words: str) -> str:
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True).stdout


def test_threads_do_not_each_get_a_heap_that_keeps_what_it_once_held() -> None:
    """Sixteen threads at once share two heaps of the C library, which gives them more by default."""
    heaps = {}
    for how in ("bound", "free"):
        heaps[how] = _said(HEAPS, how).count("<heap nr=")
    assert heaps["bound"] <= 2 < heaps["free"]
