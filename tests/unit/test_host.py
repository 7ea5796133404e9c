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


def test_threads_do_not_each_get_a_heap_that_keeps_what_it_once_held() -> None:
    """Sixteen threads at once share two heaps of the C library, which gives them more by default."""
    heaps = {}
    for how in ("bound", "free"):
        said = subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True).stdout
        heaps[how] = said.count("<heap nr=")
    assert heaps["bound"] <= 2 < heaps["free"]
