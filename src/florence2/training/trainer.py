"""One step of learning: transformers' `Seq2SeqTrainer` with our loss and our order of pictures.

The loss is the cross entropy of what the decoder says where labels are, computed for those places only: logits of
padding are never made. It is divided by the number of learnt tokens of the whole step, over all batches and processes,
so that the way a step is parted changes nothing. Knows neither settings nor where samples come from.

Shapes: B pictures, H and W the model's picture size, T ids of the longest target, D the model's width, N learnt
tokens of the batch, V words of the vocabulary.
"""

import time
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from florence2.errors import UserError
from florence2.model.processing import IGNORED_LABEL
from florence2.training import eva_init as eva
from florence2.training.callbacks.reporting import Throughput
from florence2.training.dataset.florence2_dataset import Florence2Dataset, shift_right
from florence2.training.dataset.streaming import ResumableDataLoader, StreamingDataset
from florence2.training.optimizer.create import (
    create_optimizer,
    one_cycle,
    optimizer_error,
    set_decay_steps,
    skip_zero_step,
)
from florence2.training.performance.cuda_graph_step import GraphedStep
from florence2.training.performance.memory import GIB, peak_memory
from florence2.training.saving.checkpoint_trainer import CheckpointTrainer
from florence2.training.trainer_config import SelectLabelPositions, TrainerConfig


class Florence2Trainer(CheckpointTrainer):
    """Learns `Lessons`; everything that is not overridden here is transformers'."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, method: TrainerConfig, **given: Any) -> None:
        super().__init__(method.save_fn, **given)
        self.config = method
        self.model_accepts_loss_kwargs = True  # so that a step's tokens are counted for `compute_loss`
        if method.compute_metrics is not None:
            self.require_unsharded("--eval_metrics")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # they part nothing that is laid out otherwise
            self.model.to(memory_format=torch.contiguous_format)
        self.remove_callback(PrinterCallback)
        self.throughput = Throughput()
        self.add_callback(self.throughput)
        self.graphed_step: GraphedStep | None = None
        self._select_labels = (
            SelectLabelPositions()
        )  # no method of ours, so that a copy of the model is none of the trainer
        self.model.get_output_embeddings().register_forward_pre_hook(self._select_labels)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Give the summed cross entropy divided by the tokens of the whole step."""
        places_N = inputs["learnt_N"]
        learnt_N = inputs["labels"].flatten()[places_N.clamp(min=0)].masked_fill(places_N < 0, IGNORED_LABEL)
        self._select_labels.positions_N = places_N.clamp(min=0)
        try:
            logits_NV = self._forward_logits(model, inputs)
        finally:
            self._select_labels.positions_N = None
        loss = functional.cross_entropy(
            logits_NV[:, : self.config.vocab_size].float(),
            learnt_N,
            ignore_index=IGNORED_LABEL,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor,
        )
        loss = loss / ((places_N >= 0).sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Add the gradients of a batch, by heart where a GPU knows batches of its shape."""
        if not self.config.use_cuda_graphs or num_items_in_batch is None:
            plain: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return plain
        if self.graphed_step is None:
            step = partial(super().training_step, model)
            self.graphed_step = GraphedStep(step, self.trainable_model)
        if hasattr(self.optimizer, "train"):  # Schedule-Free's, which measuring and saving switch; no work of a step
            self.optimizer.train()
        items = torch.as_tensor(num_items_in_batch, device=self.args.device)
        return self.graphed_step(self._prepare_inputs(inputs), items)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if "problem" in inputs:
            raise UserError(*inputs["problem"])
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def _forward_batch(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return self._forward_logits(model, self._prepare_inputs(batch))

    def _forward_logits(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        for module in self.config.frozen_modules:
            module.eval()
        method = self.config
        seen = inputs.get("features_BND")
        if seen is None:
            seen = method.preprocessor.normalize(inputs["pixels_BHWC"])
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            pixel_values=seen,
            decoder_input_ids=shift_right(inputs["labels"], method.decoder_start_token_id, method.pad_token_id),
            use_cache=False,
        )
        logits: torch.Tensor = output.logits
        return logits

    def require_unsharded(self, flag: str) -> None:
        """Refuse what asks a copy of the model, where no process has all of its weights."""
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise UserError(
                f"`{flag}` asks a copy of the model, and its weights are spread over processes",
                "leave it out, and ask or score checkpoints by `florence2 predict` and `florence2 evaluate`",
            )

    def evaluation_loop(self, *given: Any, metric_key_prefix: str = "eval", **more: Any) -> Any:
        """Measure the loss, and then the scores, if there is an exam; nothing random of the training is used up."""
        measured = super().evaluation_loop(*given, metric_key_prefix=metric_key_prefix, **more)
        if self.config.compute_metrics is not None:
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                scores = self.config.compute_metrics(self.trainable_model)
            measured.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return measured

    def log(self, logs: dict[str, Any], *given: Any, **more: Any) -> None:
        """Report, and how fast it goes with every report of the loss."""
        if "loss" in logs:
            args = self.args
            images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            logs["pictures_per_second"] = round(self.throughput.of(self.state) * images, 3)
        super().log(logs, *given, **more)

    def scores(self, began: float) -> dict[str, Any]:
        """Say how training went; `began` is when, on the monotonic clock."""
        state = self.state
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        scores: dict[str, Any] = {"steps": state.global_step, "loss": round(losses[-1], 4) if losses else None}
        if state.best_metric is not None:
            best = {f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}": round(state.best_metric, 4)}
            scores |= best | {"best": f"checkpoint-{state.best_global_step}"}
        scores["seconds"] = round(time.monotonic() - began, 1)
        scores["peak_memory_gib"] = round(peak_memory(self.args.device) / GIB, 2)
        return scores

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer with our groups of weights."""
        if self.optimizer is None:
            method, learner = self.config, self.model if model is None else model
            rates = (method.lora_plus_ratio, method.vision_learning_rate)
            self.optimizer = create_optimizer(self.args, learner, method.optim, method.optimizer_args, *rates)
        try:
            made: torch.optim.Optimizer = super().create_optimizer(model)
        except (ImportError, ValueError, TypeError) as error:
            raise optimizer_error(self.config.optim, error) from error
        return made

    def train(self, *given: Any, **named: Any) -> Any:
        """Train, from a start that data may shape."""
        if eva.needs_eva_init(self.model):
            eva.initialize_eva(self.model, self.train_dataset, self.data_collator, self._forward_batch)
        return super().train(*given, **named)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule, ours or transformers'."""
        if self.config.one_cycle and self.lr_scheduler is None:
            self.lr_scheduler = one_cycle(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        set_decay_steps(self.args, num_training_steps)
        warms_up = self.lr_scheduler is None and self.args.get_warmup_steps(num_training_steps) > 0
        made = super().create_scheduler(num_training_steps + warms_up, optimizer)
        if warms_up and isinstance(made, LambdaLR):
            skip_zero_step(made)
        return made

    def get_train_dataloader(self) -> Any:
        """Load the lessons; those of a stream are shared out by themselves, and begin where the training stands."""
        if not isinstance(self.train_dataset, StreamingDataset):
            return super().get_train_dataloader()
        args = self.args
        options = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        return ResumableDataLoader(
            self.train_dataset, lambda: self.state.global_step * args.gradient_accumulation_steps, options
        )

    def _run_epoch(self, *, steps_trained_in_current_epoch: int, **given: Any) -> None:
        if isinstance(self.train_dataset, StreamingDataset):
            # A stream is opened behind what was taken before: there is nothing left to pass over.
            passed = steps_trained_in_current_epoch / given["steps_in_epoch"]
            given |= {"epoch": given["epoch"] + passed, "epochs_trained": given["epochs_trained"] + passed}
            steps_trained_in_current_epoch = 0
        super()._run_epoch(steps_trained_in_current_epoch=steps_trained_in_current_epoch, **given)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        dataset: Florence2Dataset = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return dataset.sampler(seed, self.args.train_batch_size, grouped)
