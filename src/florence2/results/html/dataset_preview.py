"""HTML preview of a dataset: images with their prompts and the exact training targets.

The positions drawn are decoded from the target text, so that the page shows what the text can express.
"""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from PIL import Image

from florence2.data.image import ImageError, OpenedImage
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType, find_task
from florence2.results.html.inline_image import IMAGE_SIDE, image_tag
from florence2.results.render import draw_answer

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem; }
article { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .8rem; overflow-wrap: anywhere; }
img { max-width: 100%; display: block; margin-bottom: .6rem; }
h2 { font-size: 1rem; margin: 0 0 .4rem; } dt { color: #777; font-size: .85em; } dd { margin: 0 0 .4rem; }
.at { color: #999; font-size: .8em; } .note { color: #b00; }
"""


def preview_page(title: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the page in parts; an image that cannot be read is replaced by the error."""
    yield f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    yield f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<main>\n"
    for sample in samples:
        yield _article(sample)
    yield "</main></html>\n"


def _article(sample: Sample) -> str:
    task = find_task(sample.task)
    try:
        prompt = task.format_prompt(sample.input)
        opened = sample.open(min_size=(IMAGE_SIDE, IMAGE_SIDE))
    except UserError as error:
        image = f'<p class="note">{html.escape(error.what)}</p>'
        prompt = f"{sample.task} {sample.input}" if not isinstance(error, ImageError) else prompt
    else:
        image = image_tag(_annotated_image(sample, opened))
    target = _format_text(sample.target) if sample.target else '<span class="note">nothing</span>'
    rows = f"<dt>{html.escape(task.name)}</dt><dd>{_format_text(prompt)}</dd><dt>target</dt><dd>{target}</dd>"
    return f"<article>{image}<h2>{html.escape(sample.id)}</h2><dl>{rows}</dl></article>\n"


def _annotated_image(sample: Sample, opened: OpenedImage) -> Image.Image:
    """Draw the target's positions, or the input region of a text target."""
    task = find_task(sample.task)
    target = sample.target or ""
    if task.output_type is not OutputType.TEXT:
        return draw_answer(opened.image, decode(task, target, opened.size), size=opened.size)
    if task.input_type is not InputType.REGION:
        return opened.image
    region = decode(OutputType.REGIONS, sample.input, opened.size)
    items = tuple(replace(item, label=target) for item in region)
    return draw_answer(opened.image, replace(region, items=items), size=opened.size)


def _format_text(text: str) -> str:
    """Escape a text and set its location tokens in a smaller font."""
    return re.sub(r"(?:&lt;loc_\d+&gt;)+", r'<span class="at">\g<0></span>', html.escape(text, quote=False))
