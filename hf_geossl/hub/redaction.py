"""Texts that may leave the machine: without tokens and paths of it, and escaped for Markdown where that is written."""

import html
import re
from typing import Any

TOKEN, PLACE = "(removed)", "(local path)"

_TOKENS = r"""
    \b(?:hf|api_org|hf_oauth|hf_jwt)_(?!(?:geossl|transfer|datasets)\b)[A-Za-z0-9]{8,}
    | \b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|pypi-|npm_)[A-Za-z0-9_-]{8,}
    | \bAKIA[0-9A-Z]{12,} | \bAIza[0-9A-Za-z_-]{20,}
    | \beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*
    | (?<=://)[^/\s@]+:[^/\s@]+@
    """
_SECRETS = re.compile(
    rf"""{_TOKENS}
    | (?i:\bbearer\s+)[^\s"']{{6,}}
    | (?i:--[\w-]*(?:token|secret|passw(?:or)?d|key)\s+)\S+
    | (?i:[\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key)["']?\s*[=:]\s*["']?)[^\s"',;&]{{6,}}
    | (?<=://)[^/\s@]+@
    | \b[0-9a-fA-F]{{32,}}\b
    | (?<![\w./-])(?=[A-Za-z0-9+/_-]*[0-9])(?=[A-Za-z0-9+/_-]*[a-z])(?=[A-Za-z0-9+/_-]*[A-Z])[A-Za-z0-9+_-]{{32,}}=*
    """,
    re.VERBOSE,
)
_PLACE = r"(?:file:/+|~[\w.-]*[/\\]|(?:\.\.?[/\\])+|/(?=[^\s/])|[A-Za-z]:[/\\]|\\\\)"
_PLACES = re.compile(
    rf"""(?P<quote>["']){_PLACE}[^"']*(?P=quote) | (?<![^\s"'=(\[{{,;:>|`]){_PLACE}[^\s"',;)\]}}<>|`]*""", re.VERBOSE
)
_MARKUP = re.compile(r"[&<>|`*\[\]\\]|(?<!:)://|(?<=://)")


def redact(text: object) -> str:
    """Takes out what must stay on the machine.

    Args:
        text (`object`): A value; its text is read.

    Returns:
        `str`: One line; what looks like a token or password is `(removed)`, what looks like a path of this machine
        (absolute, from the home folder, or relative with dots) is `(local path)`.
    """
    line = " ".join(str(text).split())
    return _PLACES.sub(PLACE, _SECRETS.sub(TOKEN, line))


def find_secret(text: str) -> int | None:
    """The first line, counted from 1, that holds a token of a well-known form; None where there is none."""
    known = re.compile(_TOKENS, re.VERBOSE)
    return next((number for number, line in enumerate(text.splitlines(), 1) if known.search(line)), None)


def redact_values(value: object) -> Any:
    """`redact` for every text in nested lists and dictionaries; a text that begins as a path is one. Others stay."""
    if isinstance(value, dict):
        return {redact(key): redact_values(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return PLACE if re.match(_PLACE, value) else redact(value)


def escape_markdown(text: object) -> str:
    """Makes a text safe to stand in Markdown: redacted, and every character that would be markup written as an entity.

    Args:
        text (`object`): A value.

    Returns:
        `str`: What a reader sees as the text itself.
    """
    if text is None or isinstance(text, (bool, int, float)):
        return str(text)
    hidden = {"[": "&#91;", "]": "&#93;", "|": "&#124;", "`": "&#96;", "*": "&#42;", "\\": "&#92;", "://": "&#58;//"}
    return _MARKUP.sub(lambda found: hidden.get(found[0], html.escape(found[0])), redact_values(str(text)))


def as_code(text: object) -> str:
    """A text for a fenced block: redacted, in one line, and without what could end the block or be read as a tag."""
    return re.sub(r"[<>`]", "?", redact(text))
