"""A hook of mkdocs: the built site asks nothing of other hosts."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_LOADED = r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'> ]+|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*href=["']?(?:https?:)?//[^"'> ]+|(?:@import|url\()\s*["']?(?:https?:)?//[^"') ]+"""


def on_post_build(config: MkDocsConfig) -> None:
    """Refuses a site that loads a script, a style, a font or a picture from elsewhere."""
    site = Path(config.site_dir)
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        found = re.search(_LOADED, file.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{file.relative_to(site)} loads from another host: {found[0]}")
