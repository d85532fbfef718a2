"""Where the predictions of a job in shards go: to a folder with an output for each shard, or to one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self

from florence2.config import OutputSettings
from florence2.data.stores.store_path import AnyPath, StorePath, to_path
from florence2.data.streams.image_blocks import ImageBlocks
from florence2.data.streams.outputs.job_outputs import is_job_folder, output_suffix
from florence2.errors import OptionError
from florence2.recipes.predict_spec import PredictSpec
from florence2.recipes.shards.shard_samples import ShardedImages
from florence2.results.affixes import Affixes
from florence2.results.shards.job_folder import JobFolder, output_names
from florence2.results.shards.output_lock import OutputLock
from florence2.results.shards.shard_output import JournalOptions, ShardOutput, restore_journal


class JobOutput(Protocol):
    """The output of a job; a context manager. `todo` lists the shards that are not done."""

    @property
    def todo(self) -> list[int]: ...  # noqa: D102

    def has_journal(self, index: int) -> bool: ...  # noqa: D102

    def target(self, index: int) -> AnyPath: ...  # noqa: D102

    def open(self, index: int, image_dir: str) -> ShardOutput: ...  # noqa: D102

    def finish(self, index: int, output: ShardOutput) -> None: ...  # noqa: D102

    def fail(self, index: int, output: ShardOutput | None, error: str) -> None: ...  # noqa: D102

    def complete(self) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class SingleOutput:
    """One file for all shards; `complete` puts it in place."""

    def __init__(self, address: str, num_shards: int, options: JournalOptions, image_dir: str) -> None:
        self.todo = list(range(num_shards))
        target = to_path(address) if address != "-" else Path("-")
        # the journal locks a local file
        self._lock = OutputLock(target, address) if isinstance(target, StorePath) else None
        self._temporary = tempfile.TemporaryDirectory(prefix="florence2-")
        path = Path(self._temporary.name) / "journal.jsonl"
        if isinstance(target, Path):
            is_journal = target.suffix.lower() != ".parquet"
            path = target if is_journal else target.with_name(f".{target.name}.journal.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            restore_journal(target, path)
            self._output = ShardOutput(target, path, options.open(path, image_dir))
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal, and release the lock."""
        self._output.close()
        self._release()

    def _release(self) -> None:
        self._temporary.cleanup()
        if self._lock is not None:
            self._lock.release()

    def has_journal(self, index: int) -> bool:  # noqa: ARG002
        """Return whether there may be predictions of a shard."""
        return True

    def target(self, index: int) -> AnyPath:  # noqa: ARG002
        """Return the path of the file."""
        return self._output.target

    def open(self, index: int, image_dir: str) -> ShardOutput:  # noqa: ARG002
        """Return the one output."""
        return self._output

    def finish(self, index: int, output: ShardOutput) -> None:
        """Do nothing; the file grows until the job ends."""

    def fail(self, index: int, output: ShardOutput | None, error: str) -> None:
        """Do nothing; the summary names the shard."""

    def complete(self) -> None:
        """Put the file in place."""
        if self._lock is not None:
            self._lock.check()
        self._output.finish()


class FolderOutput(JobFolder):
    """A folder with an output for each shard, each in place as soon as it is complete."""

    def complete(self) -> None:
        """Do nothing; every output is in place."""


def open_job_output(spec: PredictSpec, images: ShardedImages) -> JobOutput:
    """Open the output of a job."""
    settings = spec.output
    _check_output(settings)
    spec.check_min_score(images.pipeline.tasks, may_have_others=not isinstance(images.source, ImageBlocks))
    path = settings.output_path
    options = JournalOptions(spec.run_id, Affixes(settings.prefix, settings.suffix), settings.overwrite_output)
    if is_folder_output(path):
        folder = to_path(path.rstrip("/"))
        if isinstance(folder, Path) and folder.is_file():
            raise OptionError(f"{folder} is a file", "pass another folder, or a name that does not end in `/`")
        outputs = [folder / f"{name}{output_suffix(folder)}" for name in output_names(images.names)]
        _check_no_input(outputs, images)
        return FolderOutput(path, images.names, options, images.job_id(spec.run_id, folder / "output"))
    if path != "-":
        _check_no_input([to_path(path)], images)
    return SingleOutput(path, images.source.num_shards, options, images.image_dir(to_path(path)))


def _check_no_input(outputs: Iterable[AnyPath], images: ShardedImages) -> None:
    """Refuse to write an output over a table that is read."""
    inputs = {_absolute(path) for path in images.source.paths}
    for output in outputs:
        if _absolute(output) in inputs:
            raise OptionError(
                f"the output {output} would replace a table of `--input_path`", "pass another `--output_path`"
            )


def _absolute(path: AnyPath) -> AnyPath:
    return path if isinstance(path, StorePath) else path.resolve()


def is_folder_output(path: str) -> bool:
    """Return whether predictions go to a folder: a name that ends in `/`, or the folder of an earlier job."""
    return path.endswith("/") or (path != "-" and is_job_folder(path))


def _check_output(settings: OutputSettings) -> None:
    """Refuse what is written about all images at once, and targets that cannot be written."""
    path = settings.output_path
    first_format = (settings.export or ("",))[0].partition("=")[0]
    flags = {
        "--sidecar": (settings.sidecar, "data convert {} FOLDER --to folder"),
        "--export": (settings.export, f"data convert {{}} FOLDER --to {first_format}"),
        "--save_images": (settings.save_images, "data preview {}"),
    }
    for flag, (value, command) in flags.items():
        if value:
            raise OptionError(
                f"`{flag}` writes beside one local file of predictions, and these come in shards or go to a store",
                f"remove `{flag}`, and run `florence2 {command.format(path)}` afterwards",
            )
    suffix = to_path(path).suffix.lower()
    if path != "-" and not is_folder_output(path) and suffix not in (".jsonl", ".ndjson", ".parquet"):
        raise OptionError(
            f"`--output_path {path}` is neither a .jsonl or .parquet file nor a folder",
            "end the name of a folder with `/`",
        )
    if path.startswith(("http://", "https://")):
        raise OptionError(f"{path} cannot be written", "pass s3://, gs://, hf:// or a local path")
