"""Predictions of a model during training: metrics on the evaluation set, and samples for the trackers.

They are computed by a copy of the model, so that the model in training stays bit-identical.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.errors import OptionError
from florence2.metrics.eval_set import EvalSet, make_eval_set
from florence2.results.annotated_images import AnnotatedImageWriter
from florence2.training.arguments import Interval
from florence2.training.callbacks.samples import SampleCallback, SampleOutput
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.sampler import SampleDraw
from florence2.training.optimizer.schedule_free import eval_weights
from florence2.training.prepare_model import inference_copy
from florence2.training.trackers import log_samples
from florence2.training.trainer import Florence2Trainer
from florence2.training.trainer_config import MetricsFn

NUM_SAMPLE_IMAGES = 4
LOSS = "loss"


@dataclass(frozen=True)
class EvaluationConfig:
    """How checkpoints are compared: `metrics` beside the loss, on at most `max_samples`.

    The first of the metrics selects the best checkpoint. `early_stopping` is a number of evaluations.
    """

    metrics: tuple[str, ...] = ()
    max_samples: int = 100
    early_stopping: int | None = None

    def build_eval_set(self, dataset: Florence2Dataset) -> EvalSet | None:
        """Choose the samples of the metrics; their references are the targets of the evaluation dataset."""
        if not dataset.samples and (self.metrics or self.early_stopping):
            flag = "--eval_metrics" if self.metrics else "--early_stopping"
            raise OptionError(f"`{flag}` needs a validation set", "pass `--val_dataset`, such as `--val_dataset 0.1`")
        names = [name for name in self.metrics if name != LOSS]
        if not names:
            return None
        samples = [
            dataset.augmented(sample, SampleDraw(0, 0, index))[0] for index, sample in enumerate(dataset.samples)
        ]
        return make_eval_set(samples, names, self.max_samples)

    def best_metric(self, eval_set: EvalSet | None) -> tuple[str, bool]:
        """Return the metric that selects the best checkpoint, and whether higher is better."""
        name = next(iter(self.metrics), LOSS)
        return name, eval_set is not None and name != LOSS and eval_set.higher_is_better[name]


@dataclass(frozen=True)
class TrainingPredictor:
    """Predicts with a model in training; `dtype` is that of the copy that predicts."""

    processor: Any
    dtype: torch.dtype
    is_quantized: bool

    def predict(self, model: nn.Module, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Yield predictions as they finish."""
        if self.is_quantized:  # 4-bit weights cannot be merged into, but `generate` works on them
            with GenerateEngine(model.eval(), self.processor) as generate_engine:
                yield from generate_engine.run(samples)
            return
        copy = inference_copy(model, self.dtype)
        with Engine(copy, self.processor, EngineConfig(compile="off")) as engine:
            yield from engine.run(samples)


def build_metrics_fn(eval_set: EvalSet | None, predictor: TrainingPredictor) -> MetricsFn | None:
    """Return the function that computes the metrics of a model; processes split the samples between them."""
    if eval_set is None:
        return None

    def compute_metrics(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            state = PartialState()
            samples = eval_set.unlabeled_samples[state.process_index :: state.num_processes]
            return eval_set.scores(gather_object(list(predictor.predict(model, samples))))

    return compute_metrics


def add_sample_callback(
    trainer: Florence2Trainer, predictor: TrainingPredictor, samples: Sequence[Sample], folder: Path, interval: Interval
) -> None:
    """Let a trainer predict the same few images at an interval, if one is set."""
    if not interval.is_set:
        return
    trainer.require_unsharded("--sample_every_n_" + ("epochs" if interval.epochs else "steps"))
    chosen = list({sample.key: sample for sample in samples}.values())[:NUM_SAMPLE_IMAGES]
    position = {sample.key: index for index, sample in enumerate(chosen)}

    def predict(image_folder: Path) -> list[SampleOutput]:
        writer = AnnotatedImageWriter(str(image_folder), chosen)
        with eval_weights(trainer.optimizer):
            predictions = list(predictor.predict(trainer.trainable_model, chosen))
        return [
            SampleOutput(prediction.file_name, prediction.text, writer.write(prediction))
            for prediction in sorted(predictions, key=lambda prediction: position[prediction.key])
        ]

    def log(step: int, outputs: list[SampleOutput]) -> None:
        texts = {output.file_name: output.text for output in outputs}
        should_log = trainer.control.should_log
        trainer.log({f"samples/{name}": text for name, text in texts.items()})
        trainer.control.should_log = should_log  # `log` resets it, and the log of this step is still due
        images = {output.file_name: output.annotated_image for output in outputs if output.annotated_image}
        log_samples(trainer.callback_handler.callbacks, step, images, texts)

    trainer.add_callback(SampleCallback(predict, log, folder, interval))
