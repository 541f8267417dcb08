"""What messages say: numbers with their nouns, and of which data they are."""

import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

logger = logging.getLogger(__name__)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Puts a number before its noun: "1 file", "2 files", "1,280,000 images"; `plural` where an s does not make it."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def folded(line: str) -> str:
    """A line as a terminal shows it, broken between words at its width; elsewhere, where programs read it, as it is."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    wrapped = width > 20 and textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapped or line


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, with "..." where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def without_arguments(message: str) -> str:
    """A message for people who run no command: without the parts that name arguments such as --channels; may be empty."""
    parts = re.sub(r" \(--[^)]*\)", "", message).split("; ")
    return "; ".join(part for part in parts if "--" not in part)


def as_text(name: str) -> str:
    """A file's or folder's name with bytes that are no UTF-8 escaped, which tables and files of text cannot hold."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def as_file(text: str) -> str:
    """The name of a file for a text, also where the system's encoding is ASCII, as in containers without a locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def name_of(path: str) -> str:
    """What people call a path or glob: its last part, which reveals nothing about the machine."""
    return as_text(os.path.basename(os.path.abspath(os.path.expanduser(path)))) or "files"


@dataclass(frozen=True)
class Place:
    """Where data lie, and what messages call them: by default the last part of the path."""

    path: str
    called: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.called or name_of(self.path)

    def warn(self, message: str) -> None:
        """Logs a line about the data, once however often a command opens them."""
        _warn_once(os.path.abspath(self.path), f"{self.name}: {message}")


@lru_cache(maxsize=4096)
def _warn_once(path: str, message: str) -> None:
    logger.warning(message)
