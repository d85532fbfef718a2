"""Write docs/llms.txt: every page of the site with its first sentence, for programs that read the docs.

uv run python scripts/llms.py
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "llms.txt"


def render() -> str:
    """Return the index: the name and description of the project, then the pages in the sections of `nav`."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}", ""]
    for entry in config["nav"]:
        ((section, content),) = entry.items()
        pages = content if isinstance(content, list) else [entry]
        lines += [f"## {section}", "", *(_line(page) for page in pages), ""]
    return "\n".join(lines)


def nav_pages(nav: list[Any]) -> list[str]:
    """Return the paths of all pages of `nav`, relative to docs/."""
    pages: list[str] = []
    for entry in nav:
        content = next(iter(entry.values()))
        pages += nav_pages(content) if isinstance(content, list) else [content]
    return pages


def _line(page: dict[str, str]) -> str:
    ((title, path),) = page.items()
    return f"- [{title}]({path}): {_first_sentence((PAGE.parent / path).read_text(encoding='utf-8'))}"


def _first_sentence(markdown: str) -> str:
    """Return the first sentence of the first paragraph, without links."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    paragraph = next(each.strip() for each in text.split("\n\n") if each.strip() and each.strip()[0] not in "#<!|-")
    paragraph = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    return re.split(r"(?<=\.)\s(?=[A-Z`])", paragraph)[0]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
