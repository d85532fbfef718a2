"""Scores as an HTML page in one file: the table, and the questions that went worst, as pictures.

Knows no model. Pictures are small JPEGs inside the page; answers are drawn on them by `render.py`.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from florence2.data.sample import Picture
from florence2.errors import UserError
from florence2.metrics.by_task import Change, Graded
from florence2.metrics.match_predictions import Question
from florence2.metrics.report import head_of, number, rows_of, title_of
from florence2.model.locations import read
from florence2.model.tasks import Answers, Takes
from florence2.results.render import draw

_SIDE = 640  # pixels of the longer side of a picture
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:nth-child(1), td:nth-child(1) { text-align: left; }
.case { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem; margin: 1rem 0 2rem; }
.case h3 { grid-column: 1 / -1; margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
figure { margin: 0; } img { max-width: 100%; max-height: 480px; }
figcaption { overflow-wrap: anywhere; white-space: pre-wrap; }
.note { color: #666; }
"""


@dataclass(frozen=True, eq=False)
class Case:
    """One question to show: a heading, and the sides that answered it."""

    question: Question
    heading: str
    sides: Sequence[tuple[str, Question | None]]  # None is the reference


def page(tasks: Sequence[Graded | Change], said: Sequence[str], title: str, worst: int) -> str:
    """Write the page; `said` are notes that stand under the title."""
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="note">{escape(note)}</p>' for note in said), _table(tasks)]
    for each in tasks:
        graded = each.after if isinstance(each, Change) else each
        cases = list(_changed(each, worst) if isinstance(each, Change) else _worst(each, worst))
        kind = "lost most from A to B" if isinstance(each, Change) else "went worst"
        parts += [f"<h2>{escape(graded.task)}: what {kind}</h2>"] if cases else []
        parts += [_shown(case) for case in cases]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _table(tasks: Sequence[Graded | Change]) -> str:
    lines = [_line("th", head_of(tasks))]
    for each in tasks:
        lines.append(f'<tr><th colspan="{len(head_of(tasks))}">{escape(title_of(each))}</th></tr>')
        lines += [_line("td", row) for row in rows_of(each)]
    return f"<table>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _worst(graded: Graded, worst: int) -> Iterator[Case]:
    for question, good in graded.worst(worst):
        if good < 1:
            yield Case(question, f"{_name(question)}: {number(good)}", [("reference", None), ("prediction", question)])


def _changed(change: Change, worst: int) -> Iterator[Case]:
    lost = change.after.scores.goodness_Q - change.before.scores.goodness_Q
    for q in lost.argsort(kind="stable")[: max(worst, 0)]:
        if lost[q] < 0:
            old, new = change.before.questions[q], change.after.questions[q]
            yield Case(new, f"{_name(new)}: {lost[q]:+.3f}", [("reference", None), ("A", old), ("B", new)])


def _name(question: Question) -> str:
    asked = f", {question.task.prompt}" if question.task.is_free else ""
    words = question.sample.input if question.task.takes is Takes.WORDS else ""
    return f"{question.sample.id}{asked}" + (f", {words}" if words else "")


def _shown(case: Case) -> str:
    head = f"<h3>{escape(case.heading)}</h3>"
    try:
        picture = case.question.sample.open(at_least=(_SIDE, _SIDE))
    except UserError as error:
        return f'<section class="case">{head}<p>{escape(error.what)}</p></section>'
    in_words = case.question.task.answers is Answers.TEXT
    figures = [_figure(_inline(_with_region(picture, case.question)), "")] if in_words else []
    for name, question in case.sides:
        answer = case.question.wanted if question is None else question.answer
        image = "" if in_words else _inline(draw(_small(picture), answer, size=picture.size))
        figures.append(_figure(image, f"{name}: {_words(case, question, answer)}"))
    return f'<section class="case">{head}{"".join(figures)}</section>'


def _words(case: Case, question: Question | None, answer: Any) -> str:
    if question is None and isinstance(answer, str):
        return " | ".join(case.question.targets)
    if question is not None and (question.prediction is None or question.prediction.error is not None):
        return f"({question.prediction.error})" if question.prediction else "(no prediction)"
    if isinstance(answer, str):
        return answer or "(nothing)"
    labels = [label for key in ("labels", "bboxes_labels", "polygons_labels") for label in answer.get(key, [])]
    return ", ".join(label for label in labels if label) or (f"({len(labels)} found)" if labels else "(nothing)")


def _figure(image: str, words: str) -> str:
    return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"


def _small(picture: Picture) -> Image.Image:
    image = picture.image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return image


def _with_region(picture: Picture, question: Question) -> Image.Image:
    """Draw the region that was asked about, if one was."""
    if question.task.takes is not Takes.REGION:
        return _small(picture)
    return draw(_small(picture), read(Answers.REGIONS, question.sample.input, picture.size), size=picture.size)


def _inline(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=78)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
