"""How a training is kept: transformers' `Seq2SeqTrainer` with our way of writing checkpoints and going on from them.

A checkpoint is written aside and moved to its place when it is whole. Knows nothing of how a step is taken.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Seq2SeqTrainer, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from florence2.errors import UserError
from florence2.training.optimizer import schedule_free as averages
from florence2.training.saving.checkpoints import STATE, commit_checkpoint, remove_staging, staging_dir

TRAINED_WEIGHTS_FILE = "trained_weights.safetensors"

SaveFn = Callable[[nn.Module, Path, Mapping[str, torch.Tensor] | None], None]


def check_zero3_config(config: Mapping[str, Any]) -> None:
    """Refuse a config of DeepSpeed that parts the weights and, at the end, would not bring them together."""
    zero = config.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise UserError(
            "DeepSpeed's ZeRO 3 parts the weights, and its config does not let them be saved",
            "add `zero3_save_16bit_model: true` to the `deepspeed_config` of accelerate's file",
        )


class CheckpointTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """Writes what it learns so that no kill can harm it; `keep` writes model and processor into a folder."""

    optimizer: Any
    _staging_dir: Path | None = None

    def __init__(self, keep: SaveFn, **given: Any) -> None:
        super().__init__(**given)
        self.save_fn = keep
        if self.is_fsdp_enabled:
            self._leave_the_embedding_whole()
        if self.is_deepspeed_enabled:
            check_zero3_config(self.accelerator.state.deepspeed_plugin.deepspeed_config)

    def _leave_the_embedding_whole(self) -> None:
        """Let every process hold the matrix that four modules share: FSDP parts what belongs to one module alone."""
        shared = self.model.get_input_embeddings().weight
        if shared.requires_grad:
            raise UserError("FSDP parts no embedding that learns", "train LoRA, or let DeepSpeed part the weights")
        holders = [m for m in self.model.modules() if getattr(m, "weight", None) is shared]
        self.accelerator.state.fsdp_plugin.ignored_modules = holders

    def train(self, *given: Any, **named: Any) -> Any:
        """Train, and leave the weights as they are to be kept."""
        result = super().train(*given, **named)
        averages.to_eval_weights(self.optimizer)
        return result

    @property
    def trainable_model(self) -> nn.Module:
        """Give the model that learns, without what processes and compilers wrap it in."""
        inner: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return inner

    def load_finished(self, checkpoint: Path) -> None:
        """Take the result of a training that was over at a checkpoint, without a further step."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_best_model()

    def full_state_dict(self) -> dict[str, torch.Tensor] | None:
        """Bring together what learns, where each process holds a part; all of them must ask.

        None means that this process holds everything.
        """
        if self.is_deepspeed_enabled:
            whole: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.deepspeed)
            return whole
        if not self.is_fsdp_enabled:
            return None
        if self.accelerator.state.fsdp_plugin.fsdp_version == 1:
            return dict(self.accelerator.get_state_dict(self.model))
        learning = ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
        return {name: _whole(weight.detach()).cpu() for name, weight in learning}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model and processor, also where a checkpoint keeps the weights in parts beside them."""
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
            # What is kept for prediction is the difference to the start; going on needs the weights as they are.
            trained = {name: w.detach().contiguous() for name, w in model.named_parameters() if w.requires_grad}
            save_file(trained, folder / TRAINED_WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        raw = Path(resume_from_checkpoint) / TRAINED_WEIGHTS_FILE
        if raw.exists():
            (self.model if model is None else model).load_state_dict(load_file(raw), strict=False)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        averages.to_eval_weights(self.optimizer)
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and move it to its place when it is whole."""
        output = Path(self.args.output_dir)
        final = output / f"checkpoint-{self.state.global_step}"
        self._staging_dir = staging_dir(output)
        averages.to_eval_weights(self.optimizer)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            written, self._staging_dir = self._staging_dir / final.name, None
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(output / f"checkpoint-{self.state.best_global_step}")
        self.accelerator.wait_for_everyone()  # all processes write into it
        if self.args.should_save:
            self.state.save_to_json(str(written / STATE))
            commit_checkpoint(written, final)
            remove_staging(output)
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(str(output), save_total_limit=limit, best_model_checkpoint=best)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging_dir or super()._get_output_dir(trial))


def _whole(weight: Any) -> torch.Tensor:
    whole: torch.Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return whole
