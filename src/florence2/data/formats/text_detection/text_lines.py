"""Text lines as annotations: the label of an object is its text, its outline the quad of the line.

`###` and `*` mark illegible text in ICDAR and PaddleOCR. Such lines are not read; each image names them in
`ignored_shapes`.
"""

from collections.abc import Sequence

from florence2.data.formats.annotations import AnnotatedImage, Annotation
from florence2.model.geometry import bounding_box

ILLEGIBLE = ("###", "*")
TextLine = tuple[list[float], str]
"""Four corners or a box in pixels, and the text."""


def image_with_text(name: str, lines: Sequence[TextLine]) -> AnnotatedImage:
    """Make the annotations of an image from its text lines."""
    legible = [(sides, text) for sides, text in lines if text.strip() and text not in ILLEGIBLE]
    ignored = tuple("illegible text" for _, text in lines if not text.strip() or text in ILLEGIBLE)
    return AnnotatedImage(name, [_annotation(sides, text) for sides, text in legible], ignored_shapes=ignored)


def _annotation(sides: list[float], text: str) -> Annotation:
    if len(sides) == 4:
        return Annotation(text, sides)
    return Annotation(text, bounding_box([sides]), (sides,))
