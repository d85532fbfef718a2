"""Samples in, an adapter out: fine-tune Florence-2 on pictures and their captions.

Read it top to bottom. Finding samples is `data`, loading is `model`, learning is `training`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import upload_folder
from rich.console import Console
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from florence2 import settings_io as by_name
from florence2.config import TrainSettings
from florence2.devices import faster_choice, pick_device, pick_dtype, slow_choice
from florence2.metrics.eval_set import Exam
from florence2.model.load import load
from florence2.model.storage.run_metadata import Record, check_alike, command, describe, write_card
from florence2.model.tasks import find_task
from florence2.recipes.train_evaluation import best_by, exam_of, examiner, show_samples
from florence2.results.dataset_preview import contact_page
from florence2.results.render import draw
from florence2.system import leads, tune_allocator
from florence2.training.arguments import plan, trackers, training_arguments
from florence2.training.callbacks import loss_plot as curve
from florence2.training.callbacks.bundle import Watch
from florence2.training.callbacks.reporting import counting
from florence2.training.callbacks.stopping import Stopped
from florence2.training.callbacks.trackers import opened
from florence2.training.dataset import training_data as material
from florence2.training.dataset.florence2_dataset import Collator, Lessons, preview, turns
from florence2.training.dataset.image_augmentation import view_rules
from florence2.training.dataset.streaming import Pouring, refuse_unstreamable
from florence2.training.dataset.training_data import Material
from florence2.training.optimizer.registry import check_name
from florence2.training.performance import memory
from florence2.training.performance.auto_batch_size import fit
from florence2.training.performance.compile import check_compile, compile_parts
from florence2.training.performance.cuda_graph_step import PAD_TO
from florence2.training.performance.feature_cache import clear, with_features
from florence2.training.prepare_model import Keeper, check_base, dropout_rates, equip, introduce, rests
from florence2.training.saving.checkpoints import clear_aside, start_from
from florence2.training.trainer import LessonTrainer
from florence2.training.trainer_config import Method

PREVIEW = "preview.html"


def main(settings: TrainSettings) -> int:
    """Run `florence2 train`; return 0, or 130 where it was stopped and can go on."""
    if not settings.learning.gradient_checkpointing:  # else memory counts for more than the time it takes to get it
        tune_allocator()
    disable_progress_bar()  # of transformers, which draws one for every file it writes
    try:
        train(settings)
    except Stopped as stopped:
        _talk().print(str(stopped), markup=False, soft_wrap=True)
        return 130
    return 0


def train(settings: TrainSettings | None = None, **values: Any) -> Path:
    """Fine-tune on pictures and captions, and return the folder with the result.

    Takes settings, or the flags of `florence2 train` as keywords: `train(dataset="photos", output_dir="out")`. With a
    validation set the result is the checkpoint with the lowest eval loss, without one it is the last state.
    """
    settings = settings or by_name.build(TrainSettings, values)
    output = Path(settings.saving.output_dir).expanduser()
    checkpoint = _begin(settings, output)
    found = material.find(settings, _talk().print)
    model, processor = _load(settings)
    lessons = material.make(settings, found, model, processor)
    if settings.captions.preview:
        _preview(lessons, settings.captions.preview, output)
        return output

    exam = exam_of(settings, lessons, found.held)
    set_seed(settings.learning.seed)
    learner = equip(model, settings.model, settings.lora)
    if settings.learning.gradient_checkpointing:
        memory.checkpoint_activations(learner)
    settings = _fitted(settings, learner, lessons, checkpoint)
    record = describe(settings, str(model.config.name_or_path), found.samples, found.held)
    with (
        Watch(_talk(), output, settings.saving.save_every_n_epochs, settings.saving.early_stopping) as watch,
        opened(trackers(settings.saving.log_with), output, by_name.flat(settings)),
        memory.advice(settings.learning.batch_size, settings.learning.gradient_checkpointing),
    ):
        trainer = _trainer(settings, learner, lessons, found, exam, Keeper(processor, record), watch)
        show_samples(settings, trainer, found.held or found.samples, processor)
        began = time.monotonic()
        if checkpoint and watch.is_over(checkpoint):
            trainer.take_up(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch.conclude(trainer.state, command(settings, resume="auto"))
    weights = trainer.gathered()  # by all processes
    if trainer.is_world_process_zero():
        _finish(trainer, output, replace(record, scores=trainer.scores(began) | watch.scores()), processor, weights)
    return output


def _preview(lessons: Lessons, number: int, output: Path) -> None:
    """Print what is learnt in some epochs; where pictures are changed, draw that on a page, too."""
    print(preview(lessons, number))  # noqa: T201  asked for, so it goes to stdout
    if lessons.views.moves:
        output.mkdir(parents=True, exist_ok=True)
        seen = (lessons.as_seen(sample, at) for sample, at in turns(lessons, number))
        with (output / PREVIEW).open("w", encoding="utf-8") as page:
            page.writelines(
                contact_page("As the model sees it", seen, lambda image, answer, size: draw(image, answer, size=size))
            )
        _talk().print(f"drawn in {output / PREVIEW}")


def _begin(settings: TrainSettings, output: Path) -> Path | None:
    """Check what can be checked before anything is read, and find the checkpoint to go on from."""
    find_task(settings.data.task)
    view_rules(settings.captions.augment)
    refuse_unstreamable(settings)
    check_name(settings.learning.optim)
    check_base(settings)
    check_compile(settings)
    dropout_rates(settings.model)
    checkpoint = start_from(settings.saving.resume, output)
    if checkpoint is not None:
        check_alike(checkpoint, settings)
        _talk().print(f"going on from {checkpoint}")
    if leads():
        clear_aside(output)
    return checkpoint


def _load(settings: TrainSettings) -> tuple[Any, Any]:
    chosen = settings.model
    device = pick_device(chosen.device)
    # What all learns is held in float32; a base under LoRA may be as small as the arithmetic.
    dtype = pick_dtype(chosen.dtype, device) if settings.lora.rank > 0 else torch.float32
    if note := slow_choice(dtype, device):
        _talk().print(note)
    model, processor = load(
        chosen.model_id,
        dtype=dtype,
        device=device,
        revision=chosen.revision,
        offline=chosen.offline,
        merge=False,
        quantize=chosen.quantize,
        dropout=dropout_rates(chosen),
    )
    if chosen.dtype == "auto" and (note := faster_choice(dtype, device, model.num_parameters())):
        _talk().print(note)
    return model, processor


def _fitted(settings: TrainSettings, learner: Any, lessons: Lessons, checkpoint: Path | None) -> TrainSettings:
    dtype = pick_dtype(settings.model.dtype, pick_device(settings.model.device))
    return replace(settings, learning=fit(settings.learning, learner, lessons, dtype, checkpoint, _talk().print))


def _trainer(
    settings: TrainSettings,
    learner: Any,
    lessons: Lessons,
    found: Material,
    exam: Exam | None,
    keeper: Keeper,
    watch: Watch,
) -> LessonTrainer:
    device = pick_device(settings.model.device)
    dtype = pick_dtype(settings.model.dtype, device)
    best = best_by(settings, exam)
    args = training_arguments(
        settings, lessons.drawn, measured=bool(found.held), device=device, dtype=dtype, best_by=best
    )
    length = plan(settings.learning, lessons.drawn, args.world_size, args.max_steps)
    lessons = replace(lessons, rules=lessons.rules.over(length.steps), per_step=length.per_step)
    measured = replace(lessons, samples=found.held, weights=None, fixed=True)
    come_again = args.num_train_epochs > 1 and not lessons.views.moves and found.stream is None
    if rests(learner, "vision") and come_again:
        folder, base = Path(args.output_dir), (keeper.record.base, keeper.record.revision)
        with args.main_process_first():
            looking = partial(counting, _talk(), "looking at pictures")
            lessons, measured = (
                with_features(each, learner, folder, base, dtype, looking) for each in (lessons, measured)
            )
    for line in introduce(settings, learner, lessons, length, dtype):
        _talk().print(line)
    if settings.learning.compile:
        compile_parts(learner)
    examine = examiner(settings, exam, keeper.processor)
    method = Method.of(settings.learning, learner, lessons.processing, keeper, examine)
    return LessonTrainer(
        method,
        model=learner,
        args=args,
        data_collator=Collator(method.pad, PAD_TO, lessons.usual_prompt()) if method.records else Collator(method.pad),
        train_dataset=lessons if found.stream is None else Pouring.of_process(lessons, found.stream, args),
        eval_dataset=measured if found.held else None,
        callbacks=watch.callbacks(length.per_step, *best),
    )


def _finish(trainer: LessonTrainer, output: Path, record: Record, processor: Any, weights: Any) -> None:
    """Write the result and tell how it went."""
    Keeper(processor, record)(trainer.learner, output, weights)
    write_card(output, record)
    curve.save(output)
    clear(output)
    if trainer.args.push_to_hub:
        upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=output,
            revision=trainer.args.hub_revision,
            commit_message="Fine-tune Florence-2",
            ignore_patterns=["checkpoint-*", "wandb/*", "runs/*"],
        )
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record.scores.items())
    _talk().print(f"saved {output} ({told})")


def _talk() -> Console:
    return Console(stderr=True, quiet=not leads(), highlight=False, soft_wrap=True)
