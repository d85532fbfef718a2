"""How far a prediction is: `florence2 predict --status OUT`, read from its output while it runs or afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence2.config import StatusSettings
from florence2.data.stores.store_path import AnyPath, to_path
from florence2.data.streams.outputs.prediction_lines import read_prediction_lines
from florence2.errors import DatasetError
from florence2.files import print_json
from florence2.log import log_lines
from florence2.recipes.shards.job_output import is_folder_output
from florence2.results.shards.job_folder import JobState, read_job
from florence2.results.shards.parquet_rows import check_predictions, read_parquet
from florence2.results.shards.shard_output import is_parquet

MAX_PROBLEMS = 10  # that are printed


@dataclass(frozen=True)
class JobStatus:
    """The numbers of shards and lines of a job; `errors` counts the lines about images that failed.

    A single file is one shard, which is open while its run may add lines. `first_errors` has, for each finished shard
    with images that failed, the first of them.
    """

    shards: int
    done: int
    open: int
    lines: int
    errors: int
    failed: dict[str, str]
    first_errors: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Return 0 where every shard is done without an error, else 1."""
        return 0 if self.done == self.shards and not self.errors else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "shards": self.shards,
            "done": self.done,
            "open": self.open,
            "failed": len(self.failed),
            "lines": self.lines,
            "errors": self.errors,
            "failed_shards": self.failed,
            "first_errors": self.first_errors,
        }

    def report_lines(self) -> list[str]:
        """Return what a person reads."""
        text = f"{self.done} of {self.shards} shards done, {self.open} open, {len(self.failed)} failed; "
        text += f"{self.lines} lines, {self.errors} with an error"
        problems = [*sorted(self.failed.items()), *sorted(self.first_errors.items())]
        return [text, *(f"{name}: {error}" for name, error in problems[:MAX_PROBLEMS])]


def main(settings: StatusSettings) -> int:
    """Print the status as JSON on stdout and in words on stderr; return 0 if everything is done without an error."""
    status = run_status(settings)
    log_lines(status.report_lines())
    print_json(status.to_dict())
    return status.exit_code


def run_status(settings: StatusSettings) -> JobStatus:
    """Read how far a job is."""
    if is_folder_output(settings.status):
        return _folder_status(read_job(settings.status))
    path = to_path(settings.status)
    hint = "pass the `--output_path` of a run; a folder in a store ends in `/`"
    if not settings.status or path.is_dir():
        raise DatasetError(f"{settings.status or 'an empty name'} is not the output of a prediction", hint)
    if not path.is_file():
        raise DatasetError(f"{path} does not exist", hint)
    return _file_status(path)


def _folder_status(job: JobState) -> JobStatus:
    done = [name for name in job.shards if job.is_done(name)]
    failed = {name: error for name in job.shards if (error := job.error(name)) is not None}
    states = [job.states[name] for name in done]
    first_errors = {name: error for name in done if (error := job.states[name].first_error) is not None}
    return JobStatus(
        len(job.shards),
        len(done),
        len(job.shards) - len(done) - len(failed),
        sum(state.lines for state in states) + job.open_lines,
        sum(state.errors for state in states),
        failed,
        first_errors,
    )


def _file_status(path: AnyPath) -> JobStatus:
    lines = errors = 0
    first_errors: dict[str, str] = {}
    if is_parquet(path):
        check_predictions(path)
    for row in read_parquet(path) if is_parquet(path) else read_prediction_lines(path):
        lines += 1
        if row.get("error") is not None:
            errors += 1
            first_errors.setdefault(path.name, f"{row['file_name']}: {row['error']}")
    is_done = isinstance(path, Path) is False or is_parquet(path)
    return JobStatus(1, int(is_done), int(not is_done), lines, errors, {}, first_errors)
