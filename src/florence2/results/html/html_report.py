"""HTML report of scores in one file: the score table, and the worst examples as images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from florence2.data.sample import OpenedImage
from florence2.errors import UserError
from florence2.metrics.by_task import ScoreDifference, TaskScores
from florence2.metrics.match_predictions import EvalExample
from florence2.metrics.report import format_number, table_header, table_rows, task_title
from florence2.model.answer import Answer
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType
from florence2.results.html.inline_image import IMAGE_SIDE, image_tag
from florence2.results.render import draw_answer

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
    """One example of the report: a heading, and its reference and predictions side by side."""

    example: EvalExample
    heading: str
    sides: Sequence[tuple[str, EvalExample | None]]  # None is the reference


def html_report(tasks: Sequence[TaskScores | ScoreDifference], notes: Sequence[str], title: str, num_worst: int) -> str:
    """Return the page; `notes` are printed below the title."""
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="note">{escape(note)}</p>' for note in notes), _table(tasks)]
    for task in tasks:
        if isinstance(task, ScoreDifference):
            heading, cases = f"{task.after.task}: largest losses from A to B", list(_largest_losses(task, num_worst))
        else:
            heading, cases = f"{task.task}: worst examples", list(_worst_cases(task, num_worst))
        parts += [f"<h2>{escape(heading)}</h2>"] if cases else []
        parts += [_section(case) for case in cases]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _table(tasks: Sequence[TaskScores | ScoreDifference]) -> str:
    lines = [_table_row("th", table_header(tasks))]
    for task in tasks:
        lines.append(f'<tr><th colspan="{len(table_header(tasks))}">{escape(task_title(task))}</th></tr>')
        lines += [_table_row("td", row) for row in table_rows(task)]
    return f"<table>{''.join(lines)}</table>"


def _table_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _worst_cases(task: TaskScores, num_worst: int) -> Iterator[WorstCase]:
    for example, quality in task.worst(num_worst):
        if quality < 1:
            heading = f"{_name(example)}: {format_number(quality)}"
            yield WorstCase(example, heading, [("reference", None), ("prediction", example)])


def _largest_losses(task: ScoreDifference, num_worst: int) -> Iterator[WorstCase]:
    change_E = task.after.scores.quality_E - task.before.scores.quality_E
    for e in change_E.argsort(kind="stable")[: max(num_worst, 0)]:
        if change_E[e] < 0:
            old, new = task.before.examples[e], task.after.examples[e]
            yield WorstCase(new, f"{_name(new)}: {change_E[e]:+.3f}", [("reference", None), ("A", old), ("B", new)])


def _name(example: EvalExample) -> str:
    prompt = f", {example.task.prompt}" if example.task.is_custom else ""
    task_input = example.sample.input if example.task.input_type is InputType.WORDS else ""
    return f"{example.sample.id}{prompt}" + (f", {task_input}" if task_input else "")


def _section(case: WorstCase) -> str:
    head = f"<h3>{escape(case.heading)}</h3>"
    try:
        opened = case.example.sample.open(min_size=(IMAGE_SIDE, IMAGE_SIDE))
    except UserError as error:
        return f'<section class="case">{head}<p>{escape(error.what)}</p></section>'
    is_text = case.example.task.output_type is OutputType.TEXT
    figures = [_figure(image_tag(_with_region(opened, case.example)), "")] if is_text else []
    for name, example in case.sides:
        answer = case.example.reference if example is None else example.answer
        image = "" if is_text else image_tag(draw_answer(_thumbnail(opened), answer, size=opened.size))
        figures.append(_figure(image, f"{name}: {_caption(case, example, answer)}"))
    return f'<section class="case">{head}{"".join(figures)}</section>'


def _caption(case: WorstCase, example: EvalExample | None, answer: Answer | str) -> str:
    if example is None and isinstance(answer, str):
        return " | ".join(case.example.targets)
    if example is not None and (example.prediction is None or example.prediction.error is not None):
        return f"({example.prediction.error})" if example.prediction else "(no prediction)"
    if isinstance(answer, str):
        return answer or "(nothing)"
    return ", ".join(filter(None, answer.labels)) or (f"({len(answer)} found)" if len(answer) else "(nothing)")


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _thumbnail(opened: OpenedImage) -> Image.Image:
    image = opened.image.copy()
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return image


def _with_region(opened: OpenedImage, example: EvalExample) -> Image.Image:
    """Draw the input region on the image, if the task has one."""
    if example.task.input_type is not InputType.REGION:
        return _thumbnail(opened)
    region = decode(OutputType.REGIONS, example.sample.input, opened.size)
    return draw_answer(_thumbnail(opened), region, size=opened.size)
