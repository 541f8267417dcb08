"""What decoding did to the images of a stream: the first image of each kind logged at once, all counted."""

import logging
from collections.abc import Sequence

from hf_geossl.data.blocks import Position
from hf_geossl.data.broken import ReportedNames
from hf_geossl.data.notes import NOTES, Note

logger = logging.getLogger(__name__)


class NotedImages:
    """Counts the notes of a stream's images by kind, and logs the first image of each kind.

    All parts of a stream, in all workers of a loader, share what has been logged.
    """

    def __init__(self) -> None:
        self._reported = ReportedNames(slots=64 * len(NOTES))

    def count(self, position: Position, key: str, notes: Sequence[Note]) -> None:
        """Counts the notes of the image read last, each kind once.

        Args:
            position (`Position`): of the logical stream.
            key (`str`): name of the image.
            notes (`Sequence[Note]`): that decoding it made.
        """
        for entry in {entry.kind: entry for entry in reversed(notes)}.values():
            position.count_note(entry.kind)
            if self._reported.add(entry.kind):
                logger.warning("%s: %s; further ones are counted and not logged one by one", key, entry)
