"""The command `pacs-migrate`, also as `python -m migrate`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The command of a shell. Loading all of it takes a moment, in which Ctrl-C is one like any other."""
    try:
        from migrate.cli import main as command

        command()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        os._exit(130)


if __name__ == "__main__":
    main()
