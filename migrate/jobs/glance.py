"""A glance at the destination before anything is put there: is it still the one that holds what was proven?"""

from __future__ import annotations

from migrate.errors import DestinationUnreachable
from migrate.jobs.command import Command
from migrate.model import DestinationLost, Outcome
from migrate.stages.checking import Check, check

_GLANCED_AT = 5


def glance(command: Command) -> list[Outcome]:
    """Look whether a few of the proven objects are still listed; returns what is lost of them.

    An empty folder where a disk should be mounted, or another bucket behind the same name, would make all that was proven worth nothing, and
    take the rest. Raises DestinationUnreachable where not one of them is there, and what listing raises.
    """
    facts: list[Outcome] = []
    for item in command.queue.some_verified(_GLANCED_AT):
        facts += check(Check(command.config.destination, (item,), listed=True))[0]
    lost: list[Outcome] = [fact for fact in facts if isinstance(fact, DestinationLost)]
    if lost and len(lost) == len(facts):
        raise DestinationUnreachable(
            f"Of {len(lost)} proven objects that were looked for at the destination, none is there.",
            hint="Is its disk mounted, is it the same bucket? If all is really lost, `verify` puts it on record, and the next `run` fetches it again.",
        )
    return lost
