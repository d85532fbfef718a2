"""Hooks of mkdocs: links out of `docs/` become paths, flags stay on one line, every page exists as Markdown, too."""

import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_FLAG = re.compile(r"<code>(?=--\w+</code>)")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links to files of the repository outside `docs/`, which the site does not have, by their paths."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    return _LINK.sub(lambda match: _replace(match, folder), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark flags, so that no line ends behind their dashes (`stylesheets/site.css`)."""
    return _FLAG.sub('<code class="flag">', html)


def on_post_build(config: Any, **_: Any) -> None:
    """Copy the Markdown of every page beside its HTML, which `llms.txt` links to."""
    for path in sorted(Path(config.docs_dir).rglob("*.md")):
        target = Path(config.site_dir) / path.relative_to(config.docs_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _replace(match: re.Match[str], folder: Path) -> str:
    text, target = match.groups()
    path = (folder / target).resolve()
    if path.is_relative_to(ROOT / "docs"):
        return match[0]
    name = f"`{path.relative_to(ROOT).as_posix()}`"
    return name if text.strip("`").rstrip("/") == name.strip("`") else f"{text} ({name})"
