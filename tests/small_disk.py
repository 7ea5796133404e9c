"""A real file system of a few MiB, for ordinary users too: a tmpfs in a user and mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec cat'


@dataclass(frozen=True)
class SmallDisk:
    """The mounted folder; it is seen by what is run here, not by the test's own process."""

    folder: Path
    pid: int
    limit_s: float = 120.0

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command that sees the disk."""
        enter = ["nsenter", f"--target={self.pid}", "--user", "--mount", "--preserve-credentials", f"--wd={os.getcwd()}"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=self.limit_s)

    def fill(self, leave_bytes: int) -> None:
        """Write a file named `filler` until so much is free."""
        free = int(self.run("df", "--output=avail", "-B1", str(self.folder)).stdout.split()[1])
        filled = self.run("fallocate", "-l", str(free - leave_bytes), str(self.folder / "filler"))
        assert filled.returncode == 0, filled.stderr

    def free(self) -> None:
        """Remove the filler."""
        assert self.run("rm", str(self.folder / "filler")).returncode == 0


@contextmanager
def small_disk(folder: Path, size_bytes: int, *, limit_s: float = 120.0) -> Iterator[SmallDisk]:
    """A disk of that size at `folder`, which must exist. Fails where Linux does not let this user make one."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(size_bytes), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        assert holder.stdin and holder.stdout and holder.stderr
        if holder.stdout.readline() != "mounted\n":
            raise RuntimeError(f"no user namespace with a tmpfs here (kernel.unprivileged_userns_clone?): {holder.stderr.read()}")
        try:
            yield SmallDisk(folder, holder.pid, limit_s)
        finally:
            holder.stdin.close()
