"""What the log says when a layer begins, when it first meets its database, and when it ends."""

from __future__ import annotations

import logging
from importlib.metadata import version

from forebay.errors import ForebayError
from forebay.settings import Settings, remedy_of, unknown_variables
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay")


def began(settings: Settings, location: str) -> None:
    """What runs, and which variables set nothing."""
    logger.info(
        "started version=%s database=%s durability=%s writer=%s journal_dir=%s metrics_address=%s",
        *(version("forebay"), location, settings.durability, settings.writer),
        *(settings.journal_dir if settings.durability == "journal" else "none", settings.metrics_address),
    )
    for name, near in unknown_variables().items():
        logger.warning("variable without effect name=%s remedy=%s", name, remedy_of(near))


class Acquaintance:
    """Says once that the database can't be used, and once that it can."""

    def __init__(self) -> None:
        self._usable: bool | None = None

    def met(self, failure: ForebayError | None) -> None:
        """What the database has answered to a question; None: all is well."""
        before, self._usable = self._usable, failure is None
        if failure is not None and before is not False:
            logger.error("not usable reason=%s remedy=`forebay doctor`", failure)
        elif failure is None and before is False:
            logger.warning("usable again")
        elif before is None:
            logger.info("database answers, journal folder is in order")


def ended(counts: Counts) -> None:
    """What has become of everything."""
    logger.info(
        "stopped accepted=%d written=%d handed_over=%d dead_lettered=%d dropped=%d not_yet_written=%d",
        *(counts.accepted.total(), counts.written.total() + counts.coalesced.total(), counts.handed_over),
        *(counts.dead_lettered.total(), counts.dropped.total(), counts.pending),
    )
