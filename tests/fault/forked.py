"""The command `pacs-migrate` as real processes without a second of imports each: a process that has imported it forks them.

`Forks.run` arms failpoints in the child only. Run as a module this is that process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.fault.failing_vfs import FailingVfs
from tests.s3_server import ENVIRONMENT

_LIMIT_S = 1800.0  # a capped sweep asks thousands of questions, on a machine that may do much else
_TELLS_S = 30.0  # at most, for a dozen lines of each thread


@dataclass(frozen=True)
class Ended:
    """How a run ended: `code` is negative for a signal, None where it had not ended after half an hour (`err` shows where it stood)."""

    code: int | None
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Forks:
    """Forks runs, one at a time. Use as a context manager."""

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen([sys.executable, "-m", "tests.fault.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def run(self, folder: Path, *words: str, failpoint: str = "", below_sqlite: str = "", kill_after_s: float | None = None) -> Ended:
        """`pacs-migrate WORDS --config FOLDER/migrate.toml`, killed after a while where that is asked for.

        `below_sqlite` is KIND:NTH or KIND:NTH+ as `FailingVfs` has it.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        command = [*words, "--config", str(folder / "migrate.toml")]
        asked = {"words": command, "failpoint": failpoint, "below_sqlite": below_sqlite, "out": str(folder / "out.txt"), "err": str(folder / "err.txt"),
                 "kill_after_s": kill_after_s}  # fmt: skip
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        return Ended(code, (folder / "out.txt").read_text(), (folder / "err.txt").read_text())


def _child(asked: dict[str, str]) -> None:
    from migrate import cli, failpoints

    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    faulthandler.register(signal.SIGUSR1, chain=True)  # tells where all threads are, then dies of it
    failpoints.arm(asked["failpoint"])
    if asked["below_sqlite"]:
        kind, nth = asked["below_sqlite"].split(":")
        FailingVfs(kind, int(nth.removesuffix("+")), lasting=nth.endswith("+"))
    sys.argv = ["pacs-migrate", *asked["words"]]
    cli.main()


def _waited(pid: int, kill_after_s: float | None) -> int | None:
    """How a child ended; None for one that did not end within half an hour, which is made to tell where its threads are."""
    handle = os.pidfd_open(pid)
    try:
        limit_s = _LIMIT_S if kill_after_s is None else kill_after_s
        in_time = bool(select.select([handle], [], [], limit_s)[0])
        if not in_time:
            os.kill(pid, signal.SIGUSR1 if kill_after_s is None else signal.SIGKILL)
            if not select.select([handle], [], [], _TELLS_S)[0]:
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(status) if in_time or kill_after_s is not None else None


def _serve() -> None:
    import migrate.cli
    import migrate.destinations.folder
    import migrate.destinations.s3.bucket  # noqa: F401 - imported here, so that no child has to

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            try:
                _child(asked)
            except BaseException:
                traceback.print_exc()
            os._exit(1)  # main ends by itself, or by what nobody expected
        answers.write(json.dumps(_waited(pid, asked["kill_after_s"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
