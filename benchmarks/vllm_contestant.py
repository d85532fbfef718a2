"""vLLM with its plugin for Florence-2 (bart-plugin), a rival on a machine that has both; it knows no beams.

Its prompts and parameters are those of the plugin's example. It was never run here, where no vLLM is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from benchmarks.contestants import TASK, ContestantConfig, Job


class VllmContestant:
    """An `LLM` of vLLM on a checkpoint in Microsoft's layout; it captions all images of a job in one call."""

    def __init__(self, config: ContestantConfig) -> None:
        import vllm_bart_plugin  # type: ignore[import-not-found]  # noqa: F401 - registers the model
        from vllm import LLM  # type: ignore[import-not-found]

        folder = config.export_folder
        self._llm: Any = LLM(
            model=str(folder / "microsoft"),
            tokenizer=str(folder / "transformers"),
            dtype=config.dtype,
            mm_processor_cache_gb=0,
            trust_remote_code=True,
            enforce_eager=True,
        )

    def run(self, job: Job, decoded: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption in one call."""
        from vllm import SamplingParams

        limits = [{"max_tokens": n + 1, "min_tokens": n + 1, "ignore_eos": True} for n in job.lengths]  # with <s>
        params = [
            SamplingParams(**({"temperature": 0.0, "max_tokens": 256, "repetition_penalty": 1.5} | limit))
            for limit in limits or [{}] * len(job.images)
        ]
        images = [decoded.get(path) or Image.open(path).convert("RGB") for path in job.images]
        prompts = [{"prompt": TASK.token, "multi_modal_data": {"image": image}} for image in images]
        outputs = self._llm.generate(prompts, sampling_params=params)
        yield from ((path, output.outputs[0].text) for path, output in zip(job.images, outputs, strict=True))

    def report(self) -> dict[str, Any]:
        """Return nothing more."""
        return {}
