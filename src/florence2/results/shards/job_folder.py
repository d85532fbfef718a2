"""The folder of a job in shards, local or in a store: its outputs, and beside them what is known of each shard.

    OUT/00000.jsonl              the output of a shard that is done
    OUT/_run/job.json            the shards of the job
    OUT/_run/shards/00000.json   numbers of lines and errors of a shard, or why it failed
    OUT/_run/open/00000.jsonl    the journal of a shard in work, in a local folder

A shard is done when its output is in place and its state names the job: a digest of the run, its tasks and the place of
its images. The output is put in place first. An output of another job is continued: its lines stay, but for those that
the job replaces. Images that failed in a finished shard are predicted again by the first command that finds no shard
unfinished.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from florence2.data.stores.store_path import AnyPath, StorePath, to_path
from florence2.data.stores.write_store import read_files, write_text
from florence2.data.streams.outputs.job_outputs import RUN_FOLDER, list_names, output_suffix, parse_shard_names
from florence2.errors import DatasetError
from florence2.files import atomic_write, parse_json, to_json
from florence2.log import count_noun, logger
from florence2.results.shards.output_lock import OutputLock
from florence2.results.shards.shard_output import JournalOptions, ShardOutput, restore_journal


@dataclass(frozen=True)
class ShardState:
    """What is known of a shard: its numbers once it is done, `error` where it failed.

    `first_error` is that of the first image that failed.
    """

    job_id: str
    lines: int = 0
    errors: int = 0
    error: str | None = None
    first_error: str | None = None


@dataclass(frozen=True)
class JobState:
    """A job as its folder tells it: its shards, their states, and the names of the outputs in place."""

    job_id: str
    shards: tuple[str, ...]
    states: Mapping[str, ShardState]
    outputs: frozenset[str]
    open_lines: int = 0

    def is_done(self, shard: str) -> bool:
        """Return whether the output of a shard is complete."""
        state = self.states.get(shard)
        return shard in self.outputs and state is not None and state.error is None and state.job_id == self.job_id

    def error(self, shard: str) -> str | None:
        """Return why a shard of this job failed."""
        state = self.states.get(shard)
        return state.error if state is not None and state.job_id == self.job_id else None

    def has_failed_images(self, shard: str) -> bool:
        """Return whether the output of a shard is complete but for images that failed."""
        return self.is_done(shard) and self.states[shard].errors > 0


class JobFolder:
    """The folder that a job writes; a context manager, which locks it against a second process."""

    def __init__(self, address: str, shards: Sequence[str], options: JournalOptions, job_id: str) -> None:
        self.path, self.options, self.job_id = to_path(address.rstrip("/")), options, job_id
        self.suffix = output_suffix(self.path)
        self.names = tuple(output_names(shards))
        self._lock = OutputLock(self.path / f"{RUN_FOLDER}/job.json", str(self.path))
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(self.path, Path):
            self._journals = self.path / RUN_FOLDER / "open"
            self._journals.mkdir(parents=True, exist_ok=True)
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="florence2-")
            self._journals = Path(self._temporary.name)
        try:
            self._outputs: frozenset[str] = frozenset()
            self.todo = self._read_todo()
            self._write("job.json", {"job_id": job_id, "shards": self.names})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, and remove temporary journals."""
        if self._temporary is not None:
            self._temporary.cleanup()
        self._lock.release()

    def _read_todo(self) -> list[int]:
        """List the shards to predict: those that are not done, or done but for images that failed."""
        job = read_job_files(self.path)
        self._outputs = job.outputs
        strangers = sorted(job.outputs - set(self.names)) if job.job_id else []
        if strangers:
            logger.warning(
                f"{self.path}: {count_noun(len(strangers), 'file')} of no shard of this run; the first: {strangers[0]}"
            )
        job = replace(job, job_id=self.job_id)
        if self.options.overwrite:
            return list(range(len(self.names)))
        todo = [index for index, name in enumerate(self.names) if not job.is_done(name)]
        is_interrupted = any(job.error(self.names[index]) is None for index in todo)
        repeated = {
            index
            for index, name in enumerate(self.names)
            if job.has_failed_images(name) and (not is_interrupted or self._journal_path(index).exists())
        }
        if repeated:
            logger.info(f"{count_noun(len(repeated), 'finished shard')} with images that failed: these are tried again")
        return sorted([*todo, *repeated])

    def has_journal(self, index: int) -> bool:
        """Return whether an earlier run left predictions of a shard."""
        return self.names[index] in self._outputs or self._journal_path(index).exists()

    def _journal_path(self, index: int) -> Path:
        return self._journals / f"{self.names[index]}.jsonl"

    def target(self, index: int) -> AnyPath:
        """Return the path of the output of a shard."""
        return self.path / f"{self.names[index]}{self.suffix}"

    def open(self, index: int, image_dir: str) -> ShardOutput:
        """Open the output of a shard."""
        target, path = self.target(index), self._journal_path(index)
        for each in (path, target):
            if isinstance(each, Path):
                each.parent.mkdir(parents=True, exist_ok=True)
        if self.names[index] in self._outputs:
            restore_journal(target, path)
        return ShardOutput(target, path, self.options.open(path, image_dir))

    def finish(self, index: int, output: ShardOutput) -> None:
        """Put a complete output in place, and note its numbers."""
        self._lock.check()
        output.finish()
        state = ShardState(self.job_id, output.num_lines, output.num_errors, first_error=output.first_error)
        self._write_state(index, state)

    def fail(self, index: int, output: ShardOutput | None, error: str) -> None:
        """Close an output that is incomplete, where it could be opened, and note why its shard failed."""
        self._lock.check()
        if output is not None:
            output.close()
        self._write_state(index, ShardState(self.job_id, error=error))

    def _write_state(self, index: int, state: ShardState) -> None:
        values = {key: value for key, value in asdict(state).items() if value is not None}
        self._write(f"shards/{self.names[index]}.json", values)

    def _write(self, name: str, value: Any) -> None:
        path = self.path / f"{RUN_FOLDER}/{name}"
        if isinstance(path, StorePath):
            write_text(path, to_json(value))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(to_json(value))


def output_names(shards: Iterable[str]) -> list[str]:
    """Return the names of outputs: those of the shards without their extensions, unless two would be equal."""
    names = list(shards)
    plain = [name.rpartition(".")[0] or name for name in names]
    return plain if len(set(plain)) == len(plain) else names


def read_job(address: str) -> JobState:
    """Read the state of a job from its folder."""
    job = read_job_files(to_path(address.rstrip("/")))
    if not job.job_id:
        exists = bool(list_names(to_path(address.rstrip("/"))))
        raise DatasetError(
            f"{address} {'is not the output of a job in shards' if exists else 'does not exist or is empty'}",
            "pass the folder of its `--output_path`",
        )
    return job


def read_job_files(folder: AnyPath) -> JobState:
    """Read what a folder tells of a job; of none, the job id is ""."""
    files = list_names(folder)
    prefix, suffix = f"{RUN_FOLDER}/shards/", output_suffix(folder)
    names = [name for name in files if name.startswith(prefix)]
    has_job = f"{RUN_FOLDER}/job.json" in files
    contents = _read_all(folder, [f"{RUN_FOLDER}/job.json", *names] if has_job else names)
    values = list(map(_parse_values, contents))
    job, states = (values[0], values[1:]) if has_job else ({}, values)
    by_name = {
        name.removeprefix(prefix).removesuffix(".json"): ShardState(**({"job_id": ""} | state))
        for name, state in zip(names, states, strict=True)
    }
    outputs = frozenset(
        name.removesuffix(suffix) for name in files if name.endswith(suffix) and not name.startswith(f"{RUN_FOLDER}/")
    )
    shards = tuple((has_job and parse_shard_names(contents[0])) or ())
    return JobState(job.get("job_id", ""), shards, by_name, outputs, _count_open_lines(folder, files))


def _parse_values(content: bytes) -> dict[str, Any]:
    """Return the values of a file about a job or a shard; none where it is damaged, so that the shard is not done."""
    try:
        values = parse_json(content)
    except ValueError:
        return {}
    names = {"shards", *(each.name for each in fields(ShardState))}
    if not isinstance(values, dict) or not all(isinstance(values.get(name, 0), int) for name in ("lines", "errors")):
        return {}
    return {name: value for name, value in values.items() if name in names}


def _read_all(folder: AnyPath, names: Sequence[str]) -> list[bytes]:
    if isinstance(folder, StorePath):
        return read_files([folder / name for name in names])
    return [(folder / name).read_bytes() for name in names]


def _count_open_lines(folder: AnyPath, files: Sequence[str]) -> int:
    """Count the predictions in the journals of open shards, which a local folder has."""
    if isinstance(folder, StorePath):
        return 0
    total = 0
    for name in files:
        if name.startswith(f"{RUN_FOLDER}/open/") and name.endswith(".jsonl"):
            with contextlib.suppress(FileNotFoundError), (folder / name).open("rb") as lines:  # just put in place
                total += sum(1 for _ in lines)
    return total
