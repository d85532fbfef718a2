"""The command `florence2 doctor`: it collects the facts, prints them, and returns whether all is sound."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

import florence2
from florence2.apps.doctor.auto_choices import default_device, predict_choices, train_choices
from florence2.apps.doctor.check_path import BUNDLED, PathReport, Problem, check_path
from florence2.apps.doctor.compare_published import DIFFERENT, compare_published, comparison_lines
from florence2.apps.doctor.machine import describe_machine
from florence2.apps.doctor.report_text import report_lines
from florence2.apps.doctor.requirements import report_extras, report_programs, unmet_requirements
from florence2.config import DoctorSettings
from florence2.devices import inference_dtype
from florence2.errors import OptionError, UserError
from florence2.files import to_json
from florence2.log import print_lines


def main(settings: DoctorSettings) -> int:
    """Run `florence2 doctor`; return 0 where all is sound, and 1 where there are problems."""
    if settings.against_published:
        if settings.base_model is not None:
            raise OptionError("no published model is an adapter", "remove `--base_model` or `--against_published`")
        return _print_comparison(settings)
    for flag, value in (("images", settings.images), ("expected", settings.expected)):
        _require_comparison(flag, value is not None)
    _require_comparison("fetch_images", settings.fetch_images)
    report = run_doctor(settings)
    _print(report, None if settings.json else report_lines(report))
    return 1 if report["problems"] else 0


def _print_comparison(settings: DoctorSettings) -> int:
    """Compare a model with published facts; return 1 where something is different."""
    report = compare_published(settings)
    _print(report, None if settings.json else comparison_lines(report))
    return 1 if report["counts"][DIFFERENT] else 0


def _print(report: Mapping[str, Any], lines: Iterable[str] | None) -> None:
    """Print the lines, or the report as JSON."""
    print_lines(to_json(report, indent=2, encoding=sys.stdout.encoding).split("\n") if lines is None else lines)


def _require_comparison(flag: str, is_passed: bool) -> None:
    if is_passed:
        raise OptionError(f"`--{flag}` needs `--against_published`", f"add it, or remove `--{flag}`")


def run_doctor(settings: DoctorSettings) -> dict[str, Any]:
    """Collect the report as one JSON object; `problems` lists everything that has to be fixed."""
    device = default_device()
    dtype = inference_dtype("auto", device)
    checked = _check_named(settings, dtype)
    bundled = check_path(BUNDLED, dtype)
    problems = [*_requirement_problems(), *bundled.problems, *(checked.problems if checked else ())]
    chosen_for = checked if checked and checked.loaded else bundled
    predict: list[dict[str, Any]] = []
    try:
        predict = _predict_choices(chosen_for)
    except (UserError, RuntimeError) as error:
        problems.append(Problem(f"`{chosen_for.path}` does not predict on `{device}`: {error}", "pass `--device cpu`"))
    return {
        **describe_machine(),
        "auto": {
            "model": chosen_for.path,
            "predict": predict,
            "train": [choice.to_json() for choice in train_choices(device, _count_parameters(chosen_for))],
        },
        "extras": [extra.to_json() for extra in report_extras()],
        "programs": report_programs(),
        "checked": checked.to_json() if checked else None,
        "problems": [{"what": problem.what, "hint": problem.hint} for problem in problems],
    }


def _check_named(settings: DoctorSettings, dtype: Any) -> PathReport | None:
    """Check the model or dataset that the command names, if it names one."""
    if settings.path is not None:
        return check_path(settings.path, dtype, settings.revision, settings.base_model)
    if settings.base_model is not None:
        raise OptionError("`--base_model` is for an adapter", "pass the folder of one, or remove `--base_model`")
    return None


def _predict_choices(report: PathReport) -> list[dict[str, Any]]:
    """Make the engine that `predict` makes, and predict one gray image with it."""
    if report.loaded is None:
        return []
    device = default_device()
    model, processor = report.loaded
    with florence2.Engine(model.to(device), processor) as engine:
        choices = [choice.to_json() for choice in predict_choices(device, engine)]
        sample = florence2.Sample("gray", Image.new("RGB", (64, 48), "gray"), "caption")
        prediction = next(engine.run([sample], florence2.GenerationConfig(max_length=4)))
    if prediction.error is not None:
        raise UserError(prediction.error)
    return choices


def _count_parameters(report: PathReport) -> int:
    return sum(weight.numel() for weight in report.loaded[0].parameters()) if report.loaded else 0


def _requirement_problems() -> Iterator[Problem]:
    for requirement in unmet_requirements():
        yield Problem(f"florence2 requires {requirement}", "pip install --upgrade florence2")
