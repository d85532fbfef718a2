"""Training: images with annotations in, an adapter or a fine-tuned model out.

`data` finds samples, `model` loads the base model, `training` trains it, `results` writes the preview page.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import upload_folder
from transformers import Seq2SeqTrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from florence2.config import TrainSettings
from florence2.data.stores.offline import respects_offline
from florence2.devices import dtype_warning
from florence2.distributed import is_main_process
from florence2.errors import OptionError
from florence2.files import atomic_write, full_disk_errors, print_json
from florence2.log import log_lines, logger, print_lines
from florence2.metrics.eval_set import EvalSet
from florence2.model.storage.run_metadata import run_metadata_to_dict
from florence2.recipes.training_setup.train_evaluation import TrainingPredictor, add_sample_callback, build_metrics_fn
from florence2.recipes.training_setup.training_spec import TrainingSpec
from florence2.results.html.dataset_preview import preview_page
from florence2.system import tune_allocator
from florence2.training.arguments import count_steps, training_arguments
from florence2.training.auto_batch_size import auto_batch_size
from florence2.training.callbacks.bundle import TrainingCallbacks
from florence2.training.callbacks.signals import TrainingInterrupted
from florence2.training.callbacks.training_progress import count_progress
from florence2.training.curves.metrics_logger import save_plot
from florence2.training.dataset.collator import Florence2Collator
from florence2.training.dataset.florence2_dataset import (
    FeatureSource,
    Florence2Dataset,
    preview_examples,
    preview_lines,
)
from florence2.training.dataset.streaming import StreamingDataset
from florence2.training.dataset.training_data import DatasetBuilder, find_training_data
from florence2.training.performance import memory
from florence2.training.performance.compile import compile_model
from florence2.training.performance.cuda_graph_step import PAD_TO, can_use_cuda_graphs
from florence2.training.performance.feature_cache import clear_features, compute_cached_features
from florence2.training.prepare_model import TrainableModel, is_frozen, prepare_model_for_training
from florence2.training.saving.build_metadata import build_metadata
from florence2.training.saving.checkpoints import remove_staging
from florence2.training.saving.model_card import write_model_card
from florence2.training.saving.model_saver import ModelSaver
from florence2.training.saving.resume import check_resume_data, check_resume_steps
from florence2.training.summary import training_summary
from florence2.training.trackers import open_trackers
from florence2.training.trainer import Florence2Trainer
from florence2.training.trainer_config import TargetTokens, TrainerConfig

PREVIEW_FILE = "preview.html"


def main(settings: TrainSettings, *, as_json: bool = False) -> int:
    """Run `florence2 train`; return 0, or 130 if a signal stopped a run that can be resumed."""
    if as_json and settings.captions.preview:
        raise OptionError("`--preview` prints samples, and `--json` a summary of a run", "remove one of them")
    if not settings.training.gradient_checkpointing:  # which saves memory at the cost of time
        tune_allocator()
    disable_progress_bar()  # transformers shows one for each file that it writes
    try:
        folder = run_train(settings)
    except TrainingInterrupted as interruption:
        log_lines([interruption.what, f"hint: {interruption.hint}"])
        if as_json:
            print_json({"output_dir": settings.saving.output_dir, "is_complete": False, "hint": interruption.hint})
        return 130
    if as_json:
        print_json({"output_dir": str(folder), "is_complete": True, **run_metadata_to_dict(folder)})
    return 0


@respects_offline
def run_train(settings: TrainSettings) -> Path:
    """Fine-tune on images with annotations, and return the folder with the result.

    The result is the checkpoint with the best evaluation where there is a validation set, else the last state.
    """
    spec = TrainingSpec.resolve(settings)
    if spec.checkpoint:
        logger.info(f"resuming from {spec.checkpoint}")
    if is_main_process():
        remove_staging(spec.output_dir)
    data = find_training_data(spec.data)
    base_model, processor = _load_base_model(spec)
    builder = spec.augmentation.dataset_builder(data, base_model, processor)
    if spec.preview:
        _preview(builder.train_dataset(), spec.preview, spec.output_dir)
        return spec.output_dir
    eval_set = spec.evaluation.build_eval_set(builder.eval_dataset())
    set_seed(spec.run.seed)
    model = prepare_model_for_training(
        base_model,
        lora=spec.lora,
        freeze=spec.freeze,
        dtype=spec.dtype,
        num_image_tokens=builder.preprocessor.num_image_tokens,
    )
    if spec.gradient_checkpointing:
        memory.checkpoint_activations(model)
    if spec.auto_batch:
        dataset = builder.train_dataset()
        spec = spec.with_batch(auto_batch_size(spec.run.batch, model, dataset, spec.dtype, spec.checkpoint))
    num_samples = spec.run.batch.samples_per_step
    metadata = build_metadata(spec.settings, spec.dtype, base_model, data.train, data.eval, num_samples)
    check_resume_data(spec.checkpoint, metadata.data)
    saver = ModelSaver(processor, metadata)
    _train(spec, model, builder, eval_set, saver)
    return spec.output_dir


def _train(
    spec: TrainingSpec, model: TrainableModel, builder: DatasetBuilder, eval_set: EvalSet | None, saver: ModelSaver
) -> None:
    """Train the model and write the result; raise an error if the run was stopped."""
    run, checkpoint = spec.run, spec.checkpoint
    with open_trackers(run.trackers, spec.output_dir, dict(spec.settings), offline=spec.base.offline):
        with (
            TrainingCallbacks(spec.output_dir, run.save_interval.epochs, spec.evaluation.early_stopping) as callbacks,
            memory.explain_out_of_memory(run.batch.batch_size, spec.gradient_checkpointing),
        ):
            trainer = _create_trainer(spec, model, builder, eval_set, saver, callbacks)
            start = time.monotonic()
            if checkpoint and callbacks.early_stopped_at(checkpoint, trainer.args):
                trainer.load_finished(checkpoint)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        callbacks.raise_if_stopped(trainer.state, spec.resume_command())
        state_dict = trainer.full_state_dict()  # collective: every process takes part
        if trainer.is_world_process_zero():
            metadata = replace(saver.metadata, scores=trainer.scores(start) | callbacks.scores())
            _save(trainer, spec.output_dir, replace(saver, metadata=metadata), state_dict)


def _load_base_model(spec: TrainingSpec) -> tuple[Any, Any]:
    base, device = spec.base, spec.device
    if note := dtype_warning(base.dtype, device):
        logger.warning(note)
    return base.load(device)


def _create_trainer(
    spec: TrainingSpec,
    model: TrainableModel,
    builder: DatasetBuilder,
    eval_set: EvalSet | None,
    saver: ModelSaver,
    callbacks: TrainingCallbacks,
) -> Florence2Trainer:
    data, run = builder.data, spec.run
    args = training_arguments(
        run,
        data.samples_per_epoch,
        has_eval=bool(data.eval),
        device=spec.device,
        dtype=spec.dtype,
        best_metric=spec.evaluation.best_metric(eval_set),
    )
    length = count_steps(run, data.samples_per_epoch, args.world_size)
    check_resume_steps(spec.checkpoint, length.steps)
    train_features, eval_features = _cached_features(spec, model, builder, saver, args)
    dataset = builder.train_dataset(length.steps, length.samples_per_step, train_features)
    log_lines(training_summary(run, model, dataset, length, spec.dtype))
    if spec.compile:
        compile_model(model)
    predictor = TrainingPredictor(saver.processor, spec.dtype, spec.base.quantize)
    uses_cuda_graphs = can_use_cuda_graphs(
        model,
        run.optimizer.name,
        checkpoints_activations=spec.gradient_checkpointing,
        is_compiled=spec.compile,
    )
    tokens = TargetTokens.from_model(model, dataset.preprocessor)
    metrics_fn = build_metrics_fn(eval_set, predictor)
    trainer = Florence2Trainer(
        TrainerConfig(dataset.preprocessor, tokens, run.optimizer, saver, uses_cuda_graphs, metrics_fn),
        model=model,
        args=args,
        data_collator=Florence2Collator(tokens.pad_token_id, PAD_TO, dataset.common_prompt_length())
        if uses_cuda_graphs
        else Florence2Collator(tokens.pad_token_id),
        train_dataset=dataset if data.stream is None else StreamingDataset.for_process(dataset, data.stream, args),
        eval_dataset=builder.eval_dataset(length.steps, eval_features) if data.eval else None,
        callbacks=callbacks.callbacks,
    )
    add_sample_callback(trainer, predictor, data.eval or data.train, spec.output_dir, spec.sample_interval)
    return trainer


def _cached_features(
    spec: TrainingSpec,
    model: TrainableModel,
    builder: DatasetBuilder,
    saver: ModelSaver,
    args: Seq2SeqTrainingArguments,
) -> tuple[FeatureSource | None, FeatureSource | None]:
    """Compute the image features of both datasets, if every epoch passes the same images through frozen layers."""
    data = builder.data
    repeats_images = spec.run.epochs > 1 and not builder.image_augmentation.changes_images and data.stream is None
    if not is_frozen(model, "vision") or not repeats_images:
        return None, None
    progress = partial(count_progress, "computing image features")
    with args.main_process_first():
        train, evaluation = (
            compute_cached_features(
                Florence2Dataset(samples, builder.preprocessor),
                model,
                spec.output_dir,
                (saver.metadata.base, saver.metadata.revision),
                spec.dtype,
                progress,
            )
            for samples in (data.train, data.eval)
        )
    return train, evaluation


def _save(
    trainer: Florence2Trainer, folder: Path, saver: ModelSaver, state_dict: Mapping[str, torch.Tensor] | None
) -> None:
    """Write the result with its model card and loss plot, and upload it where the trainer is told to."""
    with full_disk_errors(folder):
        saver(trainer.trainable_model, folder, state_dict)
    write_model_card(folder, saver.metadata)
    save_plot(folder)
    clear_features(folder)
    if trainer.args.push_to_hub:
        upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=folder,
            revision=trainer.args.hub_revision,
            commit_message="Fine-tune Florence-2",
            ignore_patterns=["checkpoint-*", "wandb/*", "runs/*"],
        )
    scores = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in saver.metadata.scores.items())
    logger.info(f"saved {folder} ({scores})")


def _preview(dataset: Florence2Dataset, num_samples: int, folder: Path) -> None:
    """Print samples as some epochs augment them; write an HTML page where augmentation changes images."""
    print_lines(preview_lines(dataset, num_samples))
    if not dataset.image_augmentation.changes_images:
        return
    folder.mkdir(parents=True, exist_ok=True)
    examples = (dataset.rendered_example(sample, draw) for sample, draw in preview_examples(dataset, num_samples))
    with atomic_write(folder / PREVIEW_FILE) as page:
        page.writelines(preview_page("Augmented samples", examples))
    logger.info(f"wrote {folder / PREVIEW_FILE}")
