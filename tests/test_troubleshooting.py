"""Every message that docs/troubleshooting.md quotes is a text of an error in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"


def texts(path: Path) -> Iterator[str]:
    """Yield the strings of a module; a value within an f-string, and a literal in backquotes, is `…`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def plain(text: str) -> str:
    return re.sub(r"…+", "…", re.sub(r"`[^`]*`", "…", text))


def test_every_quoted_message_is_in_the_code() -> None:
    known = {plain(text) for path in (ROOT / "src").rglob("*.py") for text in texts(path)}
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 40
    unknown = [message for message in quoted if not any(text.startswith(message) for text in known)]
    assert not unknown
