"""Trainer with atomic checkpoints: transformers' `Seq2SeqTrainer` that writes to a staging folder and renames."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Seq2SeqTrainer, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from florence2.errors import OptionError
from florence2.files import full_disk_errors
from florence2.training.optimizer.schedule_free import to_eval_weights
from florence2.training.saving.checkpoints import STATE, commit_checkpoint, remove_staging, staging_dir

TRAINED_WEIGHTS_FILE = "trained_weights.safetensors"

SaveFn = Callable[[nn.Module, Path, Mapping[str, torch.Tensor] | None], None]


def check_zero3_config(config: Mapping[str, Any]) -> None:
    """Raise OptionError for a DeepSpeed config that shards the weights and does not gather them when it saves."""
    zero = config.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise OptionError(
            "ZeRO 3 of DeepSpeed shards the weights, and its config does not gather them to save them",
            "add `zero3_save_16bit_model: true` to the `deepspeed_config` of accelerate's file",
        )


class CheckpointTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """Writes checkpoints that a kill cannot damage; `save_fn` writes model and processor into a folder."""

    optimizer: Any

    def __init__(self, save_fn: SaveFn, **kwargs: Any) -> None:
        self._staging_dir: Path | None = None  # the constructor of transformers asks for the output folder
        super().__init__(**kwargs)
        self.save_fn = save_fn
        if self.is_fsdp_enabled:
            self._exclude_embedding_from_fsdp()
        if self.is_deepspeed_enabled:
            check_zero3_config(self.accelerator.state.deepspeed_plugin.deepspeed_config)

    def _exclude_embedding_from_fsdp(self) -> None:
        """Keep the full embedding in every process: FSDP does not shard a weight that four modules share."""
        embedding = self.model.get_input_embeddings().weight
        if embedding.requires_grad:
            raise OptionError("FSDP cannot shard a trainable embedding", "train LoRA, or use DeepSpeed")
        owners = [module for module in self.model.modules() if getattr(module, "weight", None) is embedding]
        self.accelerator.state.fsdp_plugin.ignored_modules = owners

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and end with the evaluation weights of a Schedule-Free optimizer."""
        result = super().train(*args, **kwargs)
        to_eval_weights(self.optimizer)
        return result

    @property
    def trainable_model(self) -> nn.Module:
        """The model without the wrappers of distributed training and of the compiler."""
        unwrapped: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return unwrapped

    def load_finished(self, checkpoint: Path) -> None:
        """Load the result of a run that was finished at a checkpoint, without a further step."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_best_model()

    def full_state_dict(self) -> dict[str, torch.Tensor] | None:
        """Gather the trainable weights of a sharded model; every process must call this.

        None means that the weights are not sharded.
        """
        if self.is_deepspeed_enabled:
            state_dict: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.deepspeed)
            return state_dict
        if not self.is_fsdp_enabled:
            return None
        if self.accelerator.state.fsdp_plugin.fsdp_version == 1:
            return dict(self.accelerator.get_state_dict(self.model))
        trainable = ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
        return {name: _full_tensor(weight.detach()).cpu() for name, weight in trainable}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model and processor, also beside the sharded weights of an FSDP checkpoint."""
        if self.is_fsdp_enabled:
            self._save(output_dir, self.full_state_dict())
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.trainable_model
        self.save_fn(model, folder, state_dict)
        if hasattr(model, "initial_lora") and state_dict is None:
            # The adapter on disk is the difference to its initialization; resuming needs the raw weights.
            trained = {name: w.detach().contiguous() for name, w in model.named_parameters() if w.requires_grad}
            save_file(trained, folder / TRAINED_WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        raw_weights = Path(resume_from_checkpoint) / TRAINED_WEIGHTS_FILE
        if raw_weights.exists():
            (self.model if model is None else model).load_state_dict(load_file(raw_weights), strict=False)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        to_eval_weights(self.optimizer)
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint into a staging folder and rename it when it is complete."""
        output = Path(self.args.output_dir)
        final = output / f"checkpoint-{self.state.global_step}"
        self._staging_dir = staging_dir(output)
        to_eval_weights(self.optimizer)
        try:
            with full_disk_errors(output):
                super()._save_checkpoint(model, trial)
        finally:
            written, self._staging_dir = self._staging_dir / final.name, None
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(output / f"checkpoint-{self.state.best_global_step}")
        self.accelerator.wait_for_everyone()  # every process writes into it
        if self.args.should_save:
            self.state.save_to_json(str(written / STATE))
            commit_checkpoint(written, final)
            remove_staging(output)
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(str(output), save_total_limit=limit, best_model_checkpoint=best)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging_dir or super()._get_output_dir(trial))


def _full_tensor(weight: Any) -> torch.Tensor:
    full: torch.Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return full
