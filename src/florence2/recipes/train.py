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
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from florence2 import settings_io as by_name
from florence2.config import TrainSettings
from florence2.devices import dtype_hint, dtype_warning, pick_device, training_dtype
from florence2.distributed import is_main_process
from florence2.log import logger
from florence2.metrics.eval_set import EvalSet
from florence2.model.load import load
from florence2.model.storage.run_metadata import RunMetadata
from florence2.recipes.train_evaluation import add_sample_callback, best_metric, build_eval_set, build_metrics_fn
from florence2.recipes.train_options import (
    check_options,
    dataset_builder,
    lora_options,
    parse_data_config,
    resume_command,
    run_config,
)
from florence2.results.html.dataset_preview import preview_page
from florence2.system import tune_allocator
from florence2.training.arguments import count_steps, training_arguments
from florence2.training.auto_batch_size import auto_batch_size
from florence2.training.callbacks.bundle import TrainingCallbacks
from florence2.training.callbacks.metrics_logger import save_plot
from florence2.training.callbacks.signals import TrainingInterrupted
from florence2.training.callbacks.training_progress import count_progress
from florence2.training.dataset.collator import Florence2Collator
from florence2.training.dataset.florence2_dataset import Florence2Dataset, preview_examples, preview_text
from florence2.training.dataset.streaming import StreamingDataset
from florence2.training.dataset.training_data import DatasetBuilder, find_training_data
from florence2.training.performance import memory
from florence2.training.performance.compile import compile_model
from florence2.training.performance.cuda_graph_step import PAD_TO, can_use_cuda_graphs
from florence2.training.performance.feature_cache import clear_features, use_cached_features
from florence2.training.prepare_model import (
    TrainableModel,
    is_frozen,
    parse_dropout_rates,
    prepare_model_for_training,
)
from florence2.training.saving.build_metadata import build_metadata
from florence2.training.saving.checkpoints import remove_staging
from florence2.training.saving.model_card import write_model_card
from florence2.training.saving.model_saver import ModelSaver
from florence2.training.saving.resume import check_resume_compatible, resolve_resume
from florence2.training.summary import training_summary
from florence2.training.trackers import open_trackers, resolve_trackers
from florence2.training.trainer import Florence2Trainer
from florence2.training.trainer_config import TargetTokens, TrainerConfig

PREVIEW = "preview.html"


def main(settings: TrainSettings) -> int:
    """Run `florence2 train`; return 0, or 130 where it was stopped and can go on."""
    if not settings.training.gradient_checkpointing:  # else memory counts for more than the time it takes to get it
        tune_allocator()
    disable_progress_bar()  # of transformers, which draws one for every file it writes
    try:
        run_train(settings)
    except TrainingInterrupted as stopped:
        logger.info(str(stopped))
        return 130
    return 0


def run_train(settings: TrainSettings) -> Path:
    """Fine-tune on images with annotations, and return the folder with the result.

    The result is the checkpoint with the best evaluation where there is a validation set, else the last state.
    """
    output = Path(settings.saving.output_dir).expanduser()
    checkpoint = _begin(settings, output)
    found = find_training_data(parse_data_config(settings))
    model, processor = _load(settings)
    builder = dataset_builder(settings, found, model, processor)
    if settings.captions.preview:
        _preview(builder.train_dataset(), settings.captions.preview, output)
        return output

    exam = build_eval_set(settings, builder.eval_dataset())
    set_seed(settings.training.seed)
    learner = prepare_model_for_training(
        model,
        lora=lora_options(settings),
        freeze=settings.model.freeze,
        dtype=training_dtype(settings.model.dtype, pick_device(settings.model.device)),
        num_image_tokens=builder.preprocessor.num_image_tokens,
    )
    if settings.training.gradient_checkpointing:
        memory.checkpoint_activations(learner)
    settings = _fitted(settings, learner, builder.train_dataset(), checkpoint)
    record = build_metadata(by_name.settings_to_dict(settings), str(model.config.name_or_path), found.train, found.eval)
    with (
        TrainingCallbacks(output, settings.saving.save_every_n_epochs, settings.saving.early_stopping) as watch,
        open_trackers(resolve_trackers(settings.saving.log_with), output, by_name.settings_to_dict(settings)),
        memory.explain_out_of_memory(settings.training.batch_size, settings.training.gradient_checkpointing),
    ):
        trainer = _trainer(settings, learner, builder, exam, ModelSaver(processor, record), watch)
        add_sample_callback(settings, trainer, found.eval or found.train, processor)
        began = time.monotonic()
        if checkpoint and watch.early_stopped_at(checkpoint, trainer.args):
            trainer.load_finished(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch.raise_if_stopped(trainer.state, resume_command(settings))
    weights = trainer.full_state_dict()  # by all processes
    if trainer.is_world_process_zero():
        _finish(trainer, output, replace(record, scores=trainer.scores(began) | watch.scores()), processor, weights)
    return output


def _preview(dataset: Florence2Dataset, number: int, output: Path) -> None:
    """Print what is learnt in some epochs; where pictures are changed, draw that on a page, too."""
    print(preview_text(dataset, number))  # noqa: T201  asked for, so it goes to stdout
    if dataset.image_augmentation.changes_images:
        output.mkdir(parents=True, exist_ok=True)
        seen = (dataset.rendered_example(sample, at) for sample, at in preview_examples(dataset, number))
        with (output / PREVIEW).open("w", encoding="utf-8") as page:
            page.writelines(preview_page("As the model sees it", seen))
        logger.info(f"drawn in {output / PREVIEW}")


def _begin(settings: TrainSettings, output: Path) -> Path | None:
    """Check what can be checked before anything is read, and find the checkpoint to go on from."""
    check_options(settings)
    checkpoint = resolve_resume(settings.saving.resume, output)
    if checkpoint is not None:
        check_resume_compatible(checkpoint, by_name.settings_to_dict(settings))
        logger.info(f"going on from {checkpoint}")
    if is_main_process():
        remove_staging(output)
    return checkpoint


def _load(settings: TrainSettings) -> tuple[Any, Any]:
    chosen = settings.model
    device = pick_device(chosen.device)
    # What all learns is held in float32; a base under LoRA may be as small as the arithmetic.
    dtype = training_dtype(chosen.dtype, device) if settings.lora.rank > 0 else torch.float32
    if note := dtype_warning(dtype, device):
        logger.info(note)
    model, processor = load(
        chosen.model_id,
        dtype=dtype,
        device=device,
        revision=chosen.revision,
        offline=chosen.offline,
        merge=False,
        quantize=chosen.quantize,
        dropout=parse_dropout_rates(chosen.model_dropout_args),
    )
    if chosen.dtype == "auto" and (note := dtype_hint(dtype, device, model.num_parameters())):
        logger.info(note)
    return model, processor


def _fitted(
    settings: TrainSettings, learner: TrainableModel, dataset: Florence2Dataset, checkpoint: Path | None
) -> TrainSettings:
    if not settings.training.auto_batch:
        return settings
    dtype = training_dtype(settings.model.dtype, pick_device(settings.model.device))
    batch = auto_batch_size(run_config(settings).batch, learner, dataset, dtype, checkpoint)
    return replace(settings, training=replace(settings.training, **vars(batch)))


def _trainer(
    settings: TrainSettings,
    learner: TrainableModel,
    builder: DatasetBuilder,
    exam: EvalSet | None,
    keeper: ModelSaver,
    watch: TrainingCallbacks,
) -> Florence2Trainer:
    device = pick_device(settings.model.device)
    dtype = training_dtype(settings.model.dtype, device)
    best = best_metric(settings, exam)
    data, run = builder.data, run_config(settings)
    args = training_arguments(
        run, data.samples_per_epoch, has_eval=bool(data.eval), device=device, dtype=dtype, best_metric=best
    )
    length = count_steps(run, data.samples_per_epoch, args.world_size)
    repeats_images = args.num_train_epochs > 1 and not builder.image_augmentation.changes_images and data.stream is None
    train_features, eval_features = None, None
    if is_frozen(learner, "vision") and repeats_images:
        folder, base = Path(args.output_dir), (keeper.metadata.base, keeper.metadata.revision)
        with args.main_process_first():
            progress = partial(count_progress, "looking at pictures")
            train_features, eval_features = (
                use_cached_features(
                    Florence2Dataset(samples, builder.preprocessor), learner, folder, base, dtype, progress
                )
                for samples in (data.train, data.eval)
            )
    dataset = builder.train_dataset(length.steps, length.samples_per_step, train_features)
    for line in training_summary(run, learner, dataset, length, dtype):
        logger.info(line)
    if settings.training.compile:
        compile_model(learner)
    examine = build_metrics_fn(settings, exam, keeper.processor)
    records = can_use_cuda_graphs(
        learner,
        run.optimizer.name,
        checkpoints_activations=settings.training.gradient_checkpointing,
        is_compiled=settings.training.compile,
    )
    tokens = TargetTokens.from_model(learner, dataset.preprocessor)
    method = TrainerConfig(dataset.preprocessor, tokens, run.optimizer, keeper, records, examine)
    return Florence2Trainer(
        method,
        model=learner,
        args=args,
        data_collator=Florence2Collator(tokens.pad_token_id, PAD_TO, dataset.common_prompt_length())
        if records
        else Florence2Collator(tokens.pad_token_id),
        train_dataset=dataset if data.stream is None else StreamingDataset.for_process(dataset, data.stream, args),
        eval_dataset=builder.eval_dataset(length.steps, eval_features) if data.eval else None,
        callbacks=watch.callbacks,
    )


def _finish(trainer: Florence2Trainer, output: Path, record: RunMetadata, processor: Any, weights: Any) -> None:
    """Write the result and tell how it went."""
    ModelSaver(processor, record)(trainer.trainable_model, output, weights)
    write_model_card(output, record)
    save_plot(output)
    clear_features(output)
    if trainer.args.push_to_hub:
        upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=output,
            revision=trainer.args.hub_revision,
            commit_message="Fine-tune Florence-2",
            ignore_patterns=["checkpoint-*", "wandb/*", "runs/*"],
        )
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record.scores.items())
    logger.info(f"saved {output} ({told})")
