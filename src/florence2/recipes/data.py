"""A dataset in; what is wrong with it, what it teaches, or the same in another format out.

Read it top to bottom. Rows come from `data/formats/` and `data/inspection/`; a model is named only to count tokens.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2 import settings_io as by_name
from florence2.config import DataCommandSettings
from florence2.data.columns import ColumnMapping
from florence2.data.formats.annotations import DatasetRow
from florence2.data.inspection.convert import ConversionResult, convert
from florence2.data.inspection.dataset_report import DatasetReport
from florence2.data.inspection.dataset_rows import dataset_rows
from florence2.data.inspection.issues import LengthLimit, check_row, min_token_count
from florence2.data.resolve import split_spec
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.results.html.dataset_preview import preview_page
from florence2.results.render import draw_answer

POSITIONS = 1024  # tokens of an answer in every checkpoint that Microsoft published


def main(settings: DataCommandSettings) -> int:
    """Run `florence2 data`; return 0, or 1 where `check` found something wrong."""
    if settings.action == "check":
        found = check(settings)
        text = json.dumps(found.to_json(), ensure_ascii=False) if settings.json else "\n".join(found.lines())
        sys.stdout.write(f"{text}\n")
        return 1 if found.issues else 0
    if settings.action == "preview":
        sys.stdout.write(f"{preview(settings)}\n")
        return 0
    sys.stdout.write("\n".join(convert_dataset(settings).lines()) + "\n")
    return 0


def check(settings: DataCommandSettings | None = None, **values: Any) -> DatasetReport:
    """Count what a dataset holds and name what is wrong with it."""
    settings = settings or by_name.settings_from_dict(DataCommandSettings, {"action": "check", **values})
    return DatasetReport.of(settings.dataset, _entries(settings), _columns(settings), _length(settings))


def preview(settings: DataCommandSettings | None = None, **values: Any) -> Path:
    """Write a page with pictures and what will be learnt about them, and return it."""
    settings = settings or by_name.settings_from_dict(DataCommandSettings, {"action": "preview", **values})
    page = Path(settings.output or "data.html").expanduser()
    samples = _chosen(settings)
    with page.open("w", encoding="utf-8") as text:
        text.writelines(
            preview_page(settings.dataset, samples, lambda image, answer, size: draw_answer(image, answer, size=size))
        )
    return page


def convert_dataset(settings: DataCommandSettings | None = None, **values: Any) -> ConversionResult:
    """Write a dataset in another format."""
    settings = settings or by_name.settings_from_dict(DataCommandSettings, {"action": "convert", **values})
    if settings.output is None:
        raise UserError("`florence2 data convert` needs a folder to write to", "name it behind the dataset")
    folder = Path(settings.output).expanduser()
    return convert(_entries(settings), _columns(settings), folder, settings.to, settings.link_mode)


def _entries(settings: DataCommandSettings) -> Iterator[DatasetRow]:
    spec, split = split_spec(settings.dataset, None)
    return dataset_rows(
        spec, _columns(settings), split=split, images=settings.dataset_dir, recursive=settings.recursive
    )


def _columns(settings: DataCommandSettings) -> ColumnMapping:
    return ColumnMapping(settings.task, image=settings.image_column, text=settings.text_column)


def _length(settings: DataCommandSettings) -> LengthLimit:
    """Count tokens with a model's own tokenizer, or at least as many as any tokenizer would."""
    if settings.model_id is None:
        return LengthLimit(min_token_count, POSITIONS)
    from florence2.model.load import load
    from florence2.model.processing import Preprocessor, max_target_tokens

    model, processor = load(settings.model_id, offline=settings.offline, device="cpu")
    preprocessor = Preprocessor.from_processor(processor)
    return LengthLimit(lambda text: len(preprocessor.target_ids(text)), max_target_tokens(model.config))


def _chosen(settings: DataCommandSettings) -> list[Sample]:
    """Take samples at random, in their order in the dataset."""
    columns, length = _columns(settings), LengthLimit(min_token_count, POSITIONS)
    samples = [sample for entry in _entries(settings) for sample in check_row(entry, columns, length).samples]
    if not samples:
        raise UserError(f"{settings.dataset} holds nothing to show", "`florence2 data check` says why")
    chosen = sorted(random.Random(settings.seed).sample(range(len(samples)), min(settings.num_samples, len(samples))))
    return [samples[i] for i in chosen]
