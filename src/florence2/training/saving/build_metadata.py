"""Run metadata from the settings and samples of a run."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from florence2.data.sample import Sample
from florence2.distributed import world_size
from florence2.model.storage.run_metadata import RunMetadata
from florence2.model.tasks import find_task

PACKAGES = ("florence2", "torch", "transformers", "peft", "accelerate")


def build_metadata(
    settings: Mapping[str, Any],
    dtype: torch.dtype,
    base: Any,
    train: Sequence[Sample],
    evaluation: Sequence[Sample],
    samples_per_step: int,
) -> RunMetadata:
    """Describe a run from its settings by flat name, the dtype of its computation, its base model and its samples.

    `samples_per_step` counts the samples of an optimizer step in each process.
    """
    tasks = sorted({sample.task for sample in train})
    # Rows may name their task. The model gets the prompt of that task if all rows name the same one.
    task = find_task(tasks[0] if len(tasks) == 1 else settings["task"])
    return RunMetadata(
        base=str(base.config.name_or_path),
        revision=settings["revision"],
        task=task.token,
        prompt=task.prompt,
        dtype=str(dtype).removeprefix("torch."),
        settings=dict(settings),
        data={
            "dataset": " ".join(settings["dataset"]),
            "num_images": "streamed" if settings["streaming"] else len({sample.id for sample in train}),
            "num_samples": "streamed" if settings["streaming"] else len(train),
            "num_eval_samples": len(evaluation),
            "tasks": tasks,
            "samples_per_step": samples_per_step * world_size(),
            "fingerprint": "streamed" if settings["streaming"] else fingerprint(train),
        },
        versions=package_versions(),
    )


def fingerprint(samples: Sequence[Sample]) -> str:
    """Hash ids, tasks, inputs and targets of samples, in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        for text in (*sample.key, sample.target or ""):
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide a result."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
