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

from florence2.data.sample import OpenedImage
from florence2.errors import UserError
from florence2.metrics.by_task import ScoreDifference, TaskScores
from florence2.metrics.match_predictions import EvalExample
from florence2.metrics.report import format_number, table_header, table_rows, task_title
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType
from florence2.results.render import draw_answer

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
class WorstCase:
    """One question to show: a heading, and the sides that answered it."""

    question: EvalExample
    heading: str
    sides: Sequence[tuple[str, EvalExample | None]]  # None is the reference


def html_report(tasks: Sequence[TaskScores | ScoreDifference], said: Sequence[str], title: str, worst: int) -> str:
    """Write the page; `said` are notes that stand under the title."""
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="note">{escape(note)}</p>' for note in said), _table(tasks)]
    for each in tasks:
        graded = each.after if isinstance(each, ScoreDifference) else each
        cases = list(_changed(each, worst) if isinstance(each, ScoreDifference) else _worst(each, worst))
        kind = "lost most from A to B" if isinstance(each, ScoreDifference) else "went worst"
        parts += [f"<h2>{escape(graded.task)}: what {kind}</h2>"] if cases else []
        parts += [_shown(case) for case in cases]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _table(tasks: Sequence[TaskScores | ScoreDifference]) -> str:
    lines = [_line("th", table_header(tasks))]
    for each in tasks:
        lines.append(f'<tr><th colspan="{len(table_header(tasks))}">{escape(task_title(each))}</th></tr>')
        lines += [_line("td", row) for row in table_rows(each)]
    return f"<table>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _worst(graded: TaskScores, worst: int) -> Iterator[WorstCase]:
    for question, good in graded.worst(worst):
        if good < 1:
            yield WorstCase(
                question, f"{_name(question)}: {format_number(good)}", [("reference", None), ("prediction", question)]
            )


def _changed(change: ScoreDifference, worst: int) -> Iterator[WorstCase]:
    lost = change.after.scores.quality_Q - change.before.scores.quality_Q
    for q in lost.argsort(kind="stable")[: max(worst, 0)]:
        if lost[q] < 0:
            old, new = change.before.examples[q], change.after.examples[q]
            yield WorstCase(new, f"{_name(new)}: {lost[q]:+.3f}", [("reference", None), ("A", old), ("B", new)])


def _name(question: EvalExample) -> str:
    asked = f", {question.task.prompt}" if question.task.is_custom else ""
    words = question.sample.input if question.task.input_type is InputType.WORDS else ""
    return f"{question.sample.id}{asked}" + (f", {words}" if words else "")


def _shown(case: WorstCase) -> str:
    head = f"<h3>{escape(case.heading)}</h3>"
    try:
        picture = case.question.sample.open(min_size=(_SIDE, _SIDE))
    except UserError as error:
        return f'<section class="case">{head}<p>{escape(error.what)}</p></section>'
    in_words = case.question.task.output_type is OutputType.TEXT
    figures = [_figure(_inline(_with_region(picture, case.question)), "")] if in_words else []
    for name, question in case.sides:
        answer = case.question.references if question is None else question.answer
        image = "" if in_words else _inline(draw_answer(_small(picture), answer, size=picture.size))
        figures.append(_figure(image, f"{name}: {_words(case, question, answer)}"))
    return f'<section class="case">{head}{"".join(figures)}</section>'


def _words(case: WorstCase, question: EvalExample | None, answer: Any) -> str:
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


def _small(picture: OpenedImage) -> Image.Image:
    image = picture.image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return image


def _with_region(picture: OpenedImage, question: EvalExample) -> Image.Image:
    """Draw the region that was asked about, if one was."""
    if question.task.input_type is not InputType.REGION:
        return _small(picture)
    return draw_answer(
        _small(picture), decode(OutputType.REGIONS, question.sample.input, picture.size), size=picture.size
    )


def _inline(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=78)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
