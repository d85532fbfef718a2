"""A page with pictures and exactly what the model will be trained to say about them, in one HTML file.

What is drawn is read back from the text that is learnt, so that the page shows what the text can say and no more. How
an answer is drawn is told from outside.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from PIL import Image

from florence2.data.image import ImageError, OpenedImage, Size
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType, find_task

Draw = Callable[[Image.Image, Any, Size], Image.Image]

_SIDE = 640  # pixels of the longer side of what is shown
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem; }
article { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .8rem; overflow-wrap: anywhere; }
img { max-width: 100%; display: block; margin-bottom: .6rem; }
h2 { font-size: 1rem; margin: 0 0 .4rem; } dt { color: #777; font-size: .85em; } dd { margin: 0 0 .4rem; }
.at { color: #999; font-size: .8em; } .note { color: #b00; }
"""


def preview_page(title: str, samples: Iterable[Sample], draw: Draw) -> Iterator[str]:
    """Write the page, part by part; a picture that cannot be read is named in its place."""
    yield f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    yield f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<main>\n"
    for sample in samples:
        yield _article(sample, draw)
    yield "</main></html>\n"


def _article(sample: Sample, draw: Draw) -> str:
    task = find_task(sample.task)
    try:
        asked = task.format_prompt(sample.input)
        picture = sample.open(min_size=(_SIDE, _SIDE))
    except UserError as error:
        image = f'<p class="note">{html.escape(error.what)}</p>'
        asked = f"{sample.task} {sample.input}" if not isinstance(error, ImageError) else asked
    else:
        image = f'<img alt="" src="{_inline(_drawn(sample, picture, draw))}">'
    target = sample.target or ""
    said = _marked(target) if target else '<span class="note">nothing</span>'
    rows = f"<dt>{html.escape(task.name)}</dt><dd>{_marked(asked)}</dd><dt>the model learns to say</dt><dd>{said}</dd>"
    return f"<article>{image}<h2>{html.escape(sample.id)}</h2><dl>{rows}</dl></article>\n"


def _drawn(sample: Sample, picture: OpenedImage, draw: Draw) -> Image.Image:
    """Draw the answer, or the region that a question in words is about."""
    task = find_task(sample.task)
    target = sample.target or ""
    if task.output_type is not OutputType.TEXT:
        return draw(picture.image, decode(task, target, picture.size), picture.size)
    if task.input_type is not InputType.REGION:
        return picture.image
    region = decode(OutputType.REGIONS, sample.input, picture.size)
    return draw(picture.image, {**region, "labels": [target] * len(region["bboxes"])}, picture.size)


def _inline(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _marked(text: str) -> str:
    """Set the location tokens small, so that the words stand out; they are all there."""
    return re.sub(r"(?:&lt;loc_\d+&gt;)+", r'<span class="at">\g<0></span>', html.escape(text, quote=False))
