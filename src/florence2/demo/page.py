"""The page that `florence2 demo` leaves: pictures with their boxes and both captions, and how the loss fell.

One HTML file that needs no other: pictures are inside. Knows no model.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.results.html.inline_image import data_url
from florence2.results.render import draw_answer

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.5rem }
figure { margin: 0; border: 1px solid #ddd; border-radius: 8px; overflow: hidden }
figure img { width: 100%; display: block } figcaption { padding: .6rem .8rem; font-size: .9rem }
dt { color: #777; font-size: .75rem } dd { margin: 0 0 .3rem } .right { color: #177245 } .wrong { color: #b03030 }
.curve { max-width: 100% }
"""


@dataclass(frozen=True)
class DemoResult:
    """One held-out picture: what is true in the new style, what was said before and after, and the boxes found."""

    image: Path
    truth: str
    before: str
    after: str
    boxes: dict[str, Any]


def write_page(path: Path, shown: list[DemoResult], *, learnt: int, curve: Path) -> Path:
    """Write the page and return its path."""
    figures = "\n".join(_figure(each) for each in shown)
    with Image.open(curve) as opened:
        loss = data_url(opened, "PNG")
    right = sum(each.truth == each.after for each in shown)
    path.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>florence2 demo</title><style>{_STYLE}</style>
<h1>A new caption style, learnt from {learnt} pictures</h1>
<p>{right} of {len(shown)} captions of pictures that were not learnt from are right to the letter. The boxes are the
bundled model's answer to another task, object detection.</p>
<main>{figures}</main>
<h2>Training</h2><img class="curve" alt="loss by step" src="{loss}">
</html>
""",
        encoding="utf-8",
    )
    return path


def _figure(shown: DemoResult) -> str:
    with Image.open(shown.image) as opened:
        image = draw_answer(opened, shown.boxes)
    judged = "right" if shown.after == shown.truth else "wrong"
    truth = "" if judged == "right" else f"<dt>in truth</dt><dd>{escape(shown.truth)}</dd>"
    return f"""<figure><img alt="" src="{data_url(image)}"><figcaption><dl>
<dt>before</dt><dd>{escape(shown.before)}</dd><dt>after</dt><dd class="{judged}">{escape(shown.after)}</dd>{truth}
</dl></figcaption></figure>"""
