"""What the commands share: arguments that are checked before anything heavy is imported, and errors of one line."""

import argparse
import difflib
import errno
import os
import re
import socket
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit


class UsageError(Exception):
    """The command line is wrong; the message is one line."""


# what a user can do about an error of the system that says no more than "[Errno 28]"
_FULL = "the disk is full{file}: make room, and give the same command again"
_MENDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file would be larger than this system allows{file} (see ulimit -f): choose another place",
    errno.EROFS: "the disk is read-only{file}: choose another place",
    errno.EACCES: "permission denied{file}: choose another place, or ask for the right to use it",
    errno.EPERM: "this is not permitted{file}: choose another place, or ask for the right to use it",
    errno.ENAMETOOLONG: "the name of the file is too long{file}: choose a shorter one",
    errno.ENOTDIR: "a folder is wanted where a file lies{file}: choose another place",
    errno.EEXIST: "something else lies there already{file}: choose another place",
    errno.EMFILE: "too many files are open{file}: raise the limit (ulimit -n), or take fewer --num_workers",
}
GO_ON = " --resume_from_checkpoint true"  # at the end of the command of a run that was stopped
_LISTED = 24  # words, in a line that is still read


def nearest(word: str, valid: Sequence[str], prefix: str = "") -> str:
    """Ends an error message: with the valid word that is closest to a wrong one, or with some of the valid ones."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    names = [prefix + name for name in sorted(valid)]
    return f"; valid are {', '.join(names[:_LISTED])}" + (
        f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    )


class Parser(argparse.ArgumentParser):
    """A parser of a command's arguments, whose errors name the nearest valid word.

    Args:
        command (`str`): Its name.
        description (`str`): What it does.
        usage (`str`, *optional*): The line that shows how it is called.
    """

    def __init__(self, command: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=f"geossl {command}",
            usage=usage,
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
        )

    def read(self, argv: Sequence[str]) -> Namespace:
        """Reads a command line; hyphens stand for underscores in names.

        Args:
            argv (`Sequence[str]`): What follows the command.

        Returns:
            `argparse.Namespace`: the values.

        Raises:
            UsageError: With the wrong word and the nearest valid one.
        """
        tokens = _with_negative_numbers(
            [re.sub(r"^--[^=]+", lambda name: f"--{name[0][2:].replace('-', '_')}", token) for token in argv]
        )
        valid = [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")]
        try:
            options, unknown = self.parse_known_args(tokens)
        except UsageError:
            wrong = [token for token in tokens if re.match(r"--\w", token) and _name(token) not in valid]
            if not wrong:
                raise
            unknown = wrong  # says more than what argparse has missed because of it
        wrong = [token for token in unknown if token.startswith("-")] or unknown
        if wrong:
            raise UsageError(f"unknown argument {wrong[0]}{nearest(_name(wrong[0]), valid, '--')}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raises what argparse reports as a `UsageError`."""
        choice = re.search(r"^(?:argument )?(.*): invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        if choice:
            valid = [word.strip(" '") for word in choice[3].split(",")]
            message = f"{choice[1]}: there is no {choice[2]!r}{nearest(choice[2], valid)}"
        raise UsageError(message.removeprefix("argument "))


def _with_negative_numbers(tokens: Sequence[str]) -> list[str]:
    """Joins `--name` and a value such as `-1024,3071`, which argparse would take for another name."""
    result: list[str] = []
    for token in tokens:
        if re.match(r"-[\d.]+,", token) and result and re.fullmatch(r"--\w+", result[-1]):
            result[-1] += f"={token}"
        else:
            result.append(token)
    return result


def _name(token: str) -> str:
    return token.lstrip("-").partition("=")[0]


def next_steps(*steps: tuple[str, str]) -> str:
    """The last lines of a command: what to do next.

    Args:
        steps (`tuple[str, str]`): A command that works when pasted, and what it does.

    Returns:
        `str`: A line each, the purposes behind `#` in a column.
    """
    width = max(len(command) for command, _ in steps)
    return "\n".join(["Next:", *(f"  {command:{width}}  # {purpose}" for command, purpose in steps)])


def require_folder(path: str) -> Path:
    """Checks that a folder is there.

    Args:
        path (`str`): The folder that a command is to read.

    Returns:
        `Path`: the same.

    Raises:
        UsageError: If it is missing, or a file.
    """
    if not Path(path).is_dir():
        raise UsageError(f"{path} is a file, not a folder" if Path(path).exists() else f"there is no folder {path}")
    return Path(path)


def require_if_local(path: str) -> None:
    """Checks what can only be a path on this machine; ids of the Hub, patterns and addresses are left to their readers.

    Args:
        path (`str`): A path, or something else that names a dataset or a model.

    Raises:
        UsageError: If it can only be a path, and nothing is there.
    """
    is_path = path.startswith(("/", "./", "../", "~")) or path.count("/") > 1
    if (
        is_path
        and ":" not in path.split("/")[0]
        and not re.search(r"[*?\[{]", path)
        and not Path(path).expanduser().exists()
    ):
        raise UsageError(f"there is no file or folder {path}")


def require_reachable(*names: str) -> None:
    """Checks that the Hub can be asked for what is nowhere on this machine; its client would try for a minute first.

    Args:
        names (`str`): Paths, ids of the Hub, or whatever else names a dataset or a model.

    Raises:
        UsageError: If there is no network, and a name can only be that of a repository which is not in the cache.
    """
    ids = [name for name in names if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()]
    if not ids:
        return
    from urllib.request import getproxies

    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    if (
        constants.HF_HUB_OFFLINE or getproxies()
    ):  # the client says the first by itself, and a proxy knows names of its own
        return
    cache = Path(constants.HF_HUB_CACHE)
    ids = [name for name in ids if not any(cache.glob(f"*s--{name.replace('/', '--')}"))]
    for pause in (1, 0) if ids else ():
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if not pause:
                raise UsageError(
                    f"there is no file or folder {ids[0]}, and {host} cannot be asked for it: {error}"
                ) from error
            time.sleep(pause)


def sentence_of(error: BaseException) -> str:
    """Says an error in one line; of those of the system, what is wrong with which file and what mends it."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError) or not text.startswith("[Errno "):
        return text
    file = f" ({error.filename})" if error.filename is not None else ""
    if error.errno in _MENDS:
        return _MENDS[error.errno].format(file=file)
    if error.errno == errno.ENOENT and not file and not _has_current_folder():
        return "the folder that this command was started in is no longer there: change to another one"
    return f"{error.strerror}{file}"


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def hide_loading_bars() -> None:
    """Hides the progress bars of transformers' loading and saving, which last no time for models of this size."""
    from transformers.utils import logging

    logging.disable_progress_bar()
