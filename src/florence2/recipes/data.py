"""Dataset tools: report the errors of a dataset, preview it as an HTML page, or convert it to another format.

Rows come from `data/formats/` and `data/inspection/`. A model is loaded only to count tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from florence2.config import CheckSettings, ConvertSettings, InspectedSettings, PreviewSettings, SourceSettings
from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.inspection.convert import ConversionResult, convert
from florence2.data.inspection.dataset_report import DatasetReport, report_dataset
from florence2.data.inspection.dataset_rows import dataset_rows
from florence2.data.inspection.issues import LengthLimit, check_row, min_token_count
from florence2.data.inspection.low_scores import remove_low_scores
from florence2.data.resolve import split_spec
from florence2.data.sample import Sample
from florence2.data.stores.offline import respects_offline
from florence2.errors import DatasetError
from florence2.files import print_json
from florence2.log import print_lines
from florence2.results.html.dataset_preview import preview_page

MAX_TARGET_TOKENS = 1024  # of every checkpoint that Microsoft published


def main_check(settings: CheckSettings) -> int:
    """Run `florence2 data check`; return 0, or 1 if the dataset has errors."""
    report = run_check(settings)
    if settings.json:
        print_json(report.to_json())
    else:
        print_lines(report.lines())
    return 1 if report.issues else 0


def main_preview(settings: PreviewSettings) -> int:
    """Run `florence2 data preview`."""
    print_lines([str(run_preview(settings))])
    return 0


def main_convert(settings: ConvertSettings) -> int:
    """Run `florence2 data convert`."""
    print_lines(run_convert(settings).lines())
    return 0


@respects_offline
def run_check(settings: CheckSettings) -> DatasetReport:
    """Count the samples of a dataset and list its errors."""
    rows, columns = _rows(settings.data, settings.source), _columns(settings.data, settings.source)
    return report_dataset(settings.data.dataset, rows, columns, _length_limit(settings))


@respects_offline
def run_preview(settings: PreviewSettings) -> Path:
    """Write an HTML page with images and their targets, and return its path."""
    page = Path(settings.output).expanduser()
    samples = _random_samples(settings)
    with page.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(preview_page(settings.data.dataset, samples))
    return page


@respects_offline
def run_convert(settings: ConvertSettings) -> ConversionResult:
    """Write a dataset in another format."""
    rows, columns = _rows(settings.data, settings.source), _columns(settings.data, settings.source)
    removed: Counter[str] = Counter()
    if settings.min_score:
        rows = remove_low_scores(rows, columns, settings.min_score, removed)
    result = convert(rows, columns, Path(settings.output).expanduser(), settings.to, settings.link_mode)
    return replace(result, skipped=result.skipped + removed)


def _rows(data: InspectedSettings, source: SourceSettings) -> Iterator[DatasetRow]:
    spec, split = split_spec(data.dataset, None)
    columns = _columns(data, source)
    return dataset_rows(
        spec,
        columns,
        split=split,
        dataset_dir=source.dataset_dir,
        recursive=source.recursive,
        offline=data.offline,
    )


def _columns(data: InspectedSettings, source: SourceSettings) -> ColumnMapping:
    return ColumnMapping(data.task, image=source.image_column, text=source.text_column)


def _length_limit(settings: CheckSettings) -> LengthLimit:
    """Count tokens with the tokenizer of a model, or count the fewest that any tokenizer produces."""
    if settings.model_id is None:
        return LengthLimit(min_token_count, MAX_TARGET_TOKENS)
    from florence2.model.load import load
    from florence2.model.processing import Preprocessor, max_target_tokens

    model, processor = load(settings.model_id, offline=settings.data.offline, device="cpu")
    preprocessor = Preprocessor.from_processor(processor)
    limit = max_target_tokens(model.config)
    return LengthLimit(lambda text, is_literal: len(preprocessor.target_ids(text, literal=is_literal)), limit)


def _random_samples(settings: PreviewSettings) -> list[Sample]:
    """Choose samples at random, in the order of the dataset."""
    columns = _columns(settings.data, settings.source)
    limit = LengthLimit(min_token_count, MAX_TARGET_TOKENS)
    rows = _rows(settings.data, settings.source)
    samples = [sample for row in rows for sample in check_row(row, columns, limit).samples]
    if not samples:
        raise DatasetError(
            f"{settings.data.dataset} has no valid samples", "run `florence2 data check` for the reasons"
        )
    number = min(settings.num_samples, len(samples))
    chosen = sorted(random.Random(settings.seed).sample(range(len(samples)), number))
    return [samples[index] for index in chosen]
