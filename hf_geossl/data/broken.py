"""Broken images of a stream: counted, logged once each, and bounded."""

import hashlib
import logging
from collections import deque
from typing import NoReturn

import torch

from hf_geossl.data.blocks import Position
from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.wording import counted

logger = logging.getLogger(__name__)

_BROKEN_BEFORE_STOPPING = 20  # a few broken samples at the start are not yet a share
_LOGGED_ONE_BY_ONE = 10
_SLOTS_TRIED = 8


class BrokenStreamError(RuntimeError):
    """Too many images of a stream cannot be used, or none can, or it holds no rows."""


class ReportedNames:
    """Remembers which names have been reported, in memory that the worker processes of a loader share.

    A name is remembered by its hash, in one of a few of `slots` slots of 8 bytes; where all are taken it replaces another.
    So the memory is bounded, and among thousands of broken images one may be reported twice.
    """

    def __init__(self, slots: int = 4096) -> None:
        self._hashes = torch.zeros(slots, dtype=torch.int64).share_memory_()
        self._count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def add(self, name: str) -> int:
        """Remembers a name; returns how many names there are with this one, 0 if it was reported before."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        value = int.from_bytes(digest, "little", signed=True) or 1  # 0 is an empty slot
        slots = (value + torch.arange(_SLOTS_TRIED)) % len(self._hashes)
        hashes = self._hashes[slots]
        if value in hashes:
            return 0
        self._hashes[slots[(hashes != 0).int().argmin()]] = value  # the first empty one, else the first
        self._count += 1
        return int(self._count)


class BrokenImages:
    """Counts the broken images of the data `name`, logs each once, and stops when more than `max_share` are broken."""

    def __init__(self, name: str, skip: bool, max_share: float) -> None:
        self.name, self.skip, self.max_share = name, skip, max_share
        self._reported = ReportedNames()
        self._last: deque[str] = deque(maxlen=3)

    def for_part(self) -> "BrokenImages":
        """Returns the same for a part of the stream: what was reported of one part is not logged by another."""
        part = BrokenImages(self.name, self.skip, self.max_share)
        part._reported = self._reported
        return part

    def count(self, position: Position, key: str, reason: str) -> None:
        """Counts the row taken last as broken; `key` is its name.

        Raises:
            BrokenStreamError: if too many are broken.
            BrokenImageError: if broken images are not to be skipped.
        """
        if not self.skip:
            raise BrokenImageError(f"{key}: {reason}; mend or remove it, or pass skip_broken=True")
        position.count_broken()
        self._last.append(f"{key}: {reason}")
        number = self._reported.add(key)
        often = number > _LOGGED_ONE_BY_ONE
        if number and (not often or number & (number - 1) == 0):  # then the 16th, 32nd, 64th, ...
            logger.warning(
                "skipped %s: %s (%d of %s so far%s)",
                key, reason, position.broken, counted(position.rows, "row"),
                "; the next ones are not all logged" if often else "",
            )  # fmt: skip
        if position.broken >= _BROKEN_BEFORE_STOPPING and position.broken > self.max_share * position.rows:
            self.stop(position.broken, position.rows)

    def stop(self, broken: int, rows: int, detail: str = "") -> NoReturn:
        """Raises the `BrokenStreamError` for `broken` broken rows of `rows`; `detail` says more about them."""
        if not self._last:
            raise BrokenStreamError(f"{self.name} holds no rows; pass data with images")
        raise BrokenStreamError(
            f"{broken} of the {counted(rows, 'row')} read from {self.name} {'is' if broken == 1 else 'are'} broken "
            f"({broken / max(1, rows):.0%}, allowed max_broken_share={self.max_share:.0%}{detail}). "
            f"The last: {' | '.join(self._last)}. Mend the data, or raise max_broken_share"
        )


class PassTally:
    """Rows and broken rows of the units that one walk has read from their start, to bound whole passes of `units` units."""

    def __init__(self, units: int, broken: BrokenImages) -> None:
        self._units, self._broken = units, broken
        self._complete: set[int] = set()
        self._rows = self._broken_rows = 0
        self._without_image: set[int] = set()  # units read since the last usable image, none of which gave one

    def add(self, unit: int, position: Position, *, rows: int, broken: int, from_start: bool, usable: bool) -> None:
        """Records a unit that has ended, and stops the stream if a whole pass gave no image or too many broken rows.

        Args:
            unit (`int`): which.
            position (`Position`): of the logical stream, after the unit.
            rows (`int`), broken (`int`): rows tried in the unit, and broken ones of these.
            from_start (`bool`): whether it was read from its first row.
            usable (`bool`): whether it gave an image that could be used.
        """
        if usable:
            self._without_image.clear()
        elif from_start:
            self._without_image.add(unit)
        if from_start and unit not in self._complete:
            self._complete.add(unit)
            self._rows += rows
            self._broken_rows += broken
        if len(self._without_image) == self._units:
            self._broken.stop(position.broken, position.rows, "; a whole pass gave no image")
        if len(self._complete) == self._units and self._broken_rows > self._broken.max_share * self._rows:
            self._broken.stop(self._broken_rows, self._rows)
