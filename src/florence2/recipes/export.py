"""Export of a model to the layout of another program: written aside, loaded again, compared, then released.

The targets are the rows of `export/export_targets.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from florence2.config import ExportSettings
from florence2.data.resolve import resolve_images
from florence2.data.sample import Sample
from florence2.export.comparison import NUM_IMAGES, compare, make_cases
from florence2.export.export_card import write_card
from florence2.export.export_folder import export_folder
from florence2.export.export_result import ExportResult
from florence2.export.export_source import ExportSource
from florence2.export.export_targets import Target, find_target
from florence2.export.hub_upload import check_login, upload
from florence2.files import print_json
from florence2.log import logger, print_lines
from florence2.model.storage.checkpoint_files import find_folder
from florence2.model.storage.run_metadata import read_run_metadata


def main(settings: ExportSettings, *, as_json: bool = False) -> int:
    """Run `florence2 export`."""
    result = run_export(settings)
    if as_json:
        print_json(result.to_json())
    else:
        print_lines(result.lines())
    return 0


def run_export(settings: ExportSettings) -> ExportResult:
    """Write a model in the layout of another program, and return what was written and how it compares."""
    disable_progress_bar()  # transformers shows one for each file that it reads or writes
    target = find_target(settings.to, settings.dtype)
    if settings.push_to_hub:
        check_login(settings.push_to_hub, offline=settings.hub.offline)
    output_path = Path(settings.output_path).expanduser()
    model_path = find_folder(settings.model.model_path, settings.hub.revision, settings.hub.offline)
    samples = _find_samples(settings.images, model_path) if settings.images else []
    with export_folder(output_path, overwrite=settings.overwrite, model_path=model_path) as folder:
        source = ExportSource.load(
            settings.model.model_path,
            settings.hub.revision,
            offline=settings.hub.offline,
            samples=samples,
            base_model=settings.model.base_model,
        )
        result = _write(settings, target, source, folder)
    if settings.push_to_hub:
        logger.info(f"uploaded to {upload(output_path, settings.push_to_hub)}")
    return result


def _find_samples(images: str, model_path: Path) -> list[Sample]:
    """Find the images to compare, with the task that the model was trained on."""
    metadata = read_run_metadata(model_path)
    return list(resolve_images(images, task=metadata.task if metadata else "caption").samples)


def _write(settings: ExportSettings, target: Target, source: ExportSource, folder: Path) -> ExportResult:
    """Write the files of an export into an empty folder, and compare what they hold with the model."""
    dtype = target.resolve_dtype(settings.dtype, source)
    target.write(source, folder, dtype, settings.max_shard_size)
    cases = make_cases(source, source.samples[:NUM_IMAGES])
    start = time.monotonic()
    export_logits = target.read_logits(source, folder)
    load_seconds = time.monotonic() - start
    result = ExportResult.measure(
        folder,
        Path(settings.output_path),
        target.name,
        dtype,
        source,
        load_seconds=load_seconds,
        comparison=compare(cases, export_logits, source.vocab_size),
    )
    result.require_equal()
    write_card(folder, source, result, target.usage(source, folder))
    result.save(folder)
    return result
