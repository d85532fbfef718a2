"""The HTML page of `florence2 demo`: images with boxes and both captions, and the loss curve.

The page is one file with inline images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from florence2.model.answer import Answer
from florence2.results.html.inline_image import data_url
from florence2.results.render import draw_answer

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.5rem }
figure { margin: 0; border: 1px solid #ddd; border-radius: 8px; overflow: hidden }
figure img { width: 100%; display: block } figcaption { padding: .6rem .8rem; font-size: .9rem }
dt { color: #777; font-size: .75rem } dd { margin: 0 0 .3rem } .correct { color: #177245 } .wrong { color: #b03030 }
.curve { max-width: 100% }
"""


@dataclass(frozen=True)
class DemoResult:
    """One held-out image: reference caption, captions before and after training, and predicted boxes."""

    image: Path
    reference: str
    before: str
    after: str
    boxes: Answer


def write_page(path: Path, results: Sequence[DemoResult], *, num_train_images: int, loss_curve: Path) -> Path:
    """Write the page and return its path."""
    figures = "\n".join(_figure(result) for result in results)
    with Image.open(loss_curve) as image:
        curve_url = data_url(image, "PNG")
    num_correct = sum(result.reference == result.after for result in results)
    path.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>florence2 demo</title><style>{_STYLE}</style>
<h1>A new caption style, trained on {num_train_images} images</h1>
<p>{num_correct} of {len(results)} captions of held-out images match the reference exactly. The boxes are the bundled
model's predictions for another task, object detection.</p>
<main>{figures}</main>
<h2>Training</h2><img class="curve" alt="loss by step" src="{curve_url}">
</html>
""",
        encoding="utf-8",
    )
    return path


def _figure(result: DemoResult) -> str:
    with Image.open(result.image) as image:
        annotated = draw_answer(image, result.boxes)
    is_correct = result.after == result.reference
    reference = "" if is_correct else f"<dt>reference</dt><dd>{escape(result.reference)}</dd>"
    return f"""<figure><img alt="" src="{data_url(annotated)}"><figcaption><dl>
<dt>before</dt><dd>{escape(result.before)}</dd>
<dt>after</dt><dd class="{"correct" if is_correct else "wrong"}">{escape(result.after)}</dd>{reference}
</dl></figcaption></figure>"""
