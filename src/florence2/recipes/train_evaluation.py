"""The model in training, asked: what it says about a few pictures, and its scores on those that are held back.

Wiring between `training`, `engine` and `results`, which do not know each other. What is asked is a copy, so that the
one that learns stays as it is to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from florence2.config import TrainSettings
from florence2.data.sample import Prediction, Sample
from florence2.devices import pick_device, training_dtype
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.errors import UserError
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

SHOWN = 4  # pictures whose answers are shown as the model learns
LOSS = "loss"


def build_eval_set(settings: TrainSettings, dataset: Florence2Dataset) -> EvalSet | None:
    """Set the exam that the settings ask for; right answers are what captions are made into for measuring."""
    saving = settings.saving
    names = [name for name in saving.eval_metrics if name != LOSS]
    if not dataset.samples and (saving.eval_metrics or saving.early_stopping):
        flag = "--eval_metrics" if saving.eval_metrics else "--early_stopping"
        raise UserError(f"`{flag}` needs pictures to measure on", "pass `--val_dataset`, such as `--val_dataset 0.1`")
    if not names:
        return None
    answered = [dataset.augmented(each, SampleDraw(0, 0, which))[0] for which, each in enumerate(dataset.samples)]
    return make_eval_set(answered, names, saving.eval_samples)


def best_metric(settings: TrainSettings, exam: EvalSet | None) -> tuple[str, bool]:
    """Say which score makes a checkpoint the best, and whether more of it is better."""
    first = next(iter(settings.saving.eval_metrics), LOSS)
    return first, exam is not None and first != LOSS and exam.higher_is_better[first]


def build_metrics_fn(settings: TrainSettings, exam: EvalSet | None, processor: Any) -> MetricsFn | None:
    """Give the function that scores a learner; processes share the questions and get the same scores."""
    if exam is None:
        return None

    def examine(learner: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            place = PartialState()
            mine = exam.unlabeled_samples[place.process_index :: place.num_processes]
            said = list(_answers(settings, learner, processor, mine))
            return exam.scores(gather_object(said))

    return examine


def add_sample_callback(
    settings: TrainSettings, trainer: Florence2Trainer, samples: Sequence[Sample], processor: Any
) -> None:
    """Ask the model about the same few pictures as it learns, if so wished."""
    saving = settings.saving
    if not (saving.sample_every_n_epochs or saving.sample_every_n_steps):
        return
    trainer.require_unsharded("--sample_every_n_" + ("epochs" if saving.sample_every_n_epochs else "steps"))
    asked = list({sample.key: sample for sample in samples}.values())[:SHOWN]

    def say(folder: Path) -> list[SampleOutput]:
        drawings = AnnotatedImageWriter(str(folder), asked)
        with eval_weights(trainer.optimizer):
            said = list(_answers(settings, trainer.trainable_model, processor, asked))
        order = {sample.key: place for place, sample in enumerate(asked)}
        return [
            SampleOutput(each.file_name, each.text, drawings.write(each))
            for each in sorted(said, key=lambda p: order[p.key])
        ]

    def tell(step: int, said: list[SampleOutput]) -> None:
        words = {each.file_name: each.text for each in said}
        due = trainer.control.should_log
        trainer.log({f"samples/{name}": text for name, text in words.items()})
        trainer.control.should_log = due  # of this step, which a report in between takes as done
        drawn = {each.file_name: each.annotated_image for each in said if each.annotated_image}
        log_samples(trainer.callback_handler.callbacks, step, drawn, words)

    folder = Path(saving.output_dir).expanduser()
    interval = Interval(saving.sample_every_n_epochs, saving.sample_every_n_steps)
    trainer.add_callback(SampleCallback(say, tell, folder, interval))


def _answers(
    settings: TrainSettings, learner: nn.Module, processor: Any, samples: Sequence[Sample]
) -> Iterator[Prediction]:
    dtype = training_dtype(settings.model.dtype, pick_device(settings.model.device))
    if settings.model.quantize:  # packed weights cannot be merged into; `generate` takes them as they are
        with GenerateEngine(learner.eval(), processor) as reference:
            yield from reference.run(samples)
        return
    with Engine(inference_copy(learner, dtype), processor, EngineConfig(compile="off")) as engine:
        yield from engine.run(samples)
