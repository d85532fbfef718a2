"""The trainer: transformers' `Seq2SeqTrainer` with our loss, sampler, optimizer and CUDA graphs.

The loss is the cross entropy of the target ids, computed at positions with labels only: logits of padding are never
made. It is divided by the number of labels of the whole optimizer step, over all batches and processes, so the same
step in other batches gives the same gradients.

Shapes: B images, H and W the model's image size, T ids of the longest target, D the model's width, N labels of the
batch, V rows of the vocabulary.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from florence2.errors import OptionError, UserError
from florence2.model.processing import IGNORED_LABEL
from florence2.training import eva_init as eva
from florence2.training.callbacks.nan_guard import NonFiniteGradientGuard
from florence2.training.callbacks.training_progress import Throughput, images_per_step
from florence2.training.dataset.collator import shift_right
from florence2.training.dataset.florence2_dataset import Florence2Dataset, UnreadableImages, raise_lost_worker
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
from florence2.training.prepare_model import frozen_modules
from florence2.training.saving.checkpoint_trainer import CheckpointTrainer
from florence2.training.trackers import protect_training
from florence2.training.trainer_config import TrainerConfig


@contextmanager
def select_label_positions(output_layer: nn.Module, positions_N: torch.Tensor) -> Iterator[None]:
    """Compute logits at some positions only: inside the context the output layer gets (N, D) instead of (B, T, D)."""

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].flatten(0, 1).index_select(0, positions_N),)

    hook = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


class Florence2Trainer(CheckpointTrainer):
    """Trains on a `Florence2Dataset`; what is not overridden here is transformers'."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, config: TrainerConfig, **kwargs: Any) -> None:
        super().__init__(config.save_fn, **kwargs)
        self.config = config
        self.model_accepts_loss_kwargs = True  # lets transformers count the labels of a step for `compute_loss`
        if config.compute_metrics is not None:
            self.require_unsharded("--eval_metrics")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # sharding needs contiguous weights
            self.model.to(memory_format=torch.contiguous_format)
        self.remove_callback(PrinterCallback)
        self.throughput = Throughput()
        protect_training(self.callback_handler.callbacks)
        self.add_callback(self.throughput)
        self.graphed_step: GraphedStep | None = None
        self.unreadable_images = UnreadableImages()
        self._frozen_modules = frozen_modules(self.model)
        self._gradient_guards = [c for c in self.callback_handler.callbacks if isinstance(c, NonFiniteGradientGuard)]
        self._output_layer: nn.Module = self.model.get_output_embeddings()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the summed cross entropy divided by the labels of the whole step."""
        positions_N = inputs["label_positions_N"]
        labels_N = inputs["labels"].flatten()[positions_N.clamp(min=0)].masked_fill(positions_N < 0, IGNORED_LABEL)
        with select_label_positions(self._output_layer, positions_N.clamp(min=0)):
            logits_NV = self._forward_logits(model, inputs)
        loss = functional.cross_entropy(
            logits_NV[:, : self.config.tokens.vocab_size].float(),
            labels_N,
            ignore_index=IGNORED_LABEL,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor,
        )
        loss = loss / ((positions_N >= 0).sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Add the gradients of a batch; replay a CUDA graph if there is one for its shapes."""
        if not self.config.use_cuda_graphs or num_items_in_batch is None:
            eager_loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return eager_loss
        if self.graphed_step is None:
            step = partial(super().training_step, model)
            self.graphed_step = GraphedStep(step, self.trainable_model)
        if hasattr(self.optimizer, "train"):  # back from Schedule-Free's evaluation weights, outside of the graph
            self.optimizer.train()
        items = torch.as_tensor(num_items_in_batch, device=self.args.device)
        return self.graphed_step(self._prepare_inputs(inputs), items)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        for guard in self._gradient_guards:
            guard.set_norm(norm if isinstance(norm, torch.Tensor) else None)  # a float is DeepSpeed's own affair
        return norm

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if "error" in inputs:
            raise UserError(*inputs["error"])
        self.unreadable_images.add(inputs.pop("unreadable", ()))
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def _forward_batch(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return self._forward_logits(model, self._prepare_inputs(batch))

    def _forward_logits(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        for module in self._frozen_modules:
            module.eval()
        tokens = self.config.tokens
        images = inputs.get("features_BND")
        if images is None:
            images = self.config.preprocessor.normalize(inputs["pixels_BHWC"])
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            pixel_values=images,
            decoder_input_ids=shift_right(inputs["labels"], tokens.decoder_start_token_id, tokens.pad_token_id),
            use_cache=False,
        )
        logits: torch.Tensor = output.logits
        return logits

    def require_unsharded(self, flag: str) -> None:
        """Raise UserError for a flag that needs a copy of the model, if processes hold shards of it."""
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise OptionError(
                f"`{flag}` needs a copy of the model, and its weights are sharded over processes",
                f"remove `{flag}`, and run `florence2 predict` and `florence2 evaluate` on checkpoints",
            )

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate the loss, then the metrics, if there are any; the random state of training does not change."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.config.compute_metrics is not None:
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                scores = self.config.compute_metrics(self.trainable_model)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return output

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Log values, and the throughput with every loss."""
        if "loss" in logs:
            images_per_second = self.throughput.steps_per_second(self.state) * images_per_step(self.args)
            logs["images_per_second"] = round(images_per_second, 3)
        super().log(logs, *args, **kwargs)

    def scores(self, start_time: float) -> dict[str, Any]:
        """Return steps, losses, time and memory of the run that began at a time of the monotonic clock."""
        state = self.state
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        scores: dict[str, Any] = {"steps": state.global_step, "loss": round(losses[-1], 4) if losses else None}
        if state.best_metric is not None:
            best = {f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}": round(state.best_metric, 4)}
            scores |= best | {"best": f"checkpoint-{state.best_global_step}"}
        scores["seconds"] = round(time.monotonic() - start_time, 1)
        scores["peak_memory_gib"] = round(peak_memory(self.args.device) / GIB, 2)
        return scores

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer with our parameter groups."""
        if self.optimizer is None:
            trainable = self.model if model is None else model
            self.optimizer = create_optimizer(self.args, trainable, self.config.optimizer)
        try:
            optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        except (ImportError, ValueError, TypeError) as error:
            raise optimizer_error(self.config.optimizer.name, error) from error
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after an initialization of LoRA from data if `init_lora_weights` is `eva`."""
        if eva.needs_eva_init(self.model):
            eva.initialize_eva(self.model, self.train_dataset, self.data_collator, self._forward_batch)
        try:
            return super().train(*args, **kwargs)
        except RuntimeError as error:
            raise_lost_worker(error)
            raise
        finally:
            self.unreadable_images.log_summary()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the learning rate schedule: torch's one cycle, or one of transformers."""
        if self.config.optimizer.uses_one_cycle and self.lr_scheduler is None:
            self.lr_scheduler = one_cycle(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True  # transformers saves its state with checkpoints
        set_decay_steps(self.args, num_training_steps)
        warms_up = self.lr_scheduler is None and self.args.get_warmup_steps(num_training_steps) > 0
        scheduler = super().create_scheduler(num_training_steps + warms_up, optimizer)
        if warms_up and isinstance(scheduler, LambdaLR):
            skip_zero_step(scheduler)
        return scheduler

    def get_train_dataloader(self) -> Any:
        """Load training batches; a stream shards itself over processes and starts behind the consumed batches."""
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

    def _run_epoch(self, *, steps_trained_in_current_epoch: int, **kwargs: Any) -> None:
        if isinstance(self.train_dataset, StreamingDataset):
            # A stream starts behind the consumed batches, so transformers has none to skip.
            fraction = steps_trained_in_current_epoch / kwargs["steps_in_epoch"]
            kwargs |= {"epoch": kwargs["epoch"] + fraction, "epochs_trained": kwargs["epochs_trained"] + fraction}
            steps_trained_in_current_epoch = 0
        super()._run_epoch(steps_trained_in_current_epoch=steps_trained_in_current_epoch, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        dataset: Florence2Dataset = self.train_dataset if train_dataset is None else train_dataset
        is_grouped = self.args.train_sampling_strategy == "group_by_length"
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return dataset.sampler(seed, self.args.train_batch_size, is_grouped)
