"""Hooks of mkdocs: types and defaults of the reference as people read them; the built site asks nothing of other hosts."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_LOADED = r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'> ]+|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*href=["']?(?:https?:)?//[^"'> ]+|(?:@import|url\()\s*["']?(?:https?:)?//[^"') ]+"""

# of a row of parameters the type as docstrings write it (`int`, *optional*, defaults to 3), and the default that stands there
_TYPE = re.compile(r"(<td>\s*)<code>(`[^<]*)</code>")
_ROW = re.compile(r"(<td>\s*)<code>(`[^<]*)</code>((?:(?!</tr>).)*?)<em>required</em>", re.DOTALL)


def on_page_content(html: str, **kwargs: object) -> str:
    """Moves the default of a parameter from its type to its own column, and takes the marks of Markdown out of types."""

    def row(match: re.Match[str]) -> str:
        kind, _, default = match[2].partition(", defaults to ")
        optional = ", *optional*" in kind
        shown = (
            f"<code>{_plain(default)}</code>" if default else "<em>optional</em>" if optional else "<em>required</em>"
        )
        return f"{match[1]}<code>{_plain(kind)}</code>{match[3]}{shown}"

    return _TYPE.sub(lambda match: f"{match[1]}<code>{_plain(match[2])}</code>", _ROW.sub(row, html))


def _plain(text: str) -> str:
    return text.replace("`", "").replace(", *optional*", "")


def on_post_build(config: MkDocsConfig) -> None:
    """Refuses a site that loads a script, a style, a font or a picture from elsewhere."""
    site = Path(config.site_dir)
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        found = re.search(_LOADED, file.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{file.relative_to(site)} loads from another host: {found[0]}")
