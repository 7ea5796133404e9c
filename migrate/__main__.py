"""`python -m migrate` is `pacs-migrate`."""

from migrate.cli import main

main()
