"""The PACS's habits: asked for, and put on record for the runs that follow."""

from __future__ import annotations

from migrate.config import Config
from migrate.jobs.command import Command
from migrate.jobs.preflight import borrowed_staging
from migrate.model import HabitLearned
from migrate.sources.probe.habits import DimseProbe


def learn(config: Config) -> list[HabitLearned]:
    """Ask, and put on record what was found, under the manifest's lock. Raises SourceUnreachable, SourceRefused, PortInUse."""
    with Command(config, "probe") as command:
        with borrowed_staging(config) as staging:
            habits = DimseProbe(config.source, config.receiver, command.queue.habits()).run(staging)
        command.manifest.commit([habit for habit in habits if _is_knowledge(habit)])
        command.exit_code = 0
    return habits


def _is_knowledge(habit: HabitLearned) -> bool:
    """Nothing unknown, and a cap only as the number that sweeps reckon with."""
    return habit.value != "unknown" and (not habit.name.startswith("cap") or habit.value.isdigit())
