"""Configuration of `Florence2Trainer` beyond transformers' training arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from florence2.model.processing import Preprocessor
from florence2.training.optimizer.optimizer_config import OptimizerConfig
from florence2.training.saving.checkpoint_trainer import SaveFn

MetricsFn = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class TargetTokens:
    """Special ids of the decoder, and the number of ids that may be a target."""

    vocab_size: int
    decoder_start_token_id: int
    pad_token_id: int

    @classmethod
    def from_model(cls, model: Any, preprocessor: Preprocessor) -> Self:
        """Read the ids from a model's config; the image token and the padding rows behind it are no targets."""
        text_config, image_token_id = model.config.text_config, preprocessor.image_token_id
        is_last_token = image_token_id + 1 >= len(preprocessor.tokenizer)
        return cls(
            vocab_size=image_token_id if is_last_token else text_config.vocab_size,
            decoder_start_token_id=text_config.decoder_start_token_id,
            pad_token_id=text_config.pad_token_id,
        )


@dataclass(frozen=True)
class TrainerConfig:
    """What the trainer needs beyond transformers' training arguments.

    `save_fn` writes model and processor into a folder. `compute_metrics` scores the model after each evaluation of the
    loss. With `use_cuda_graphs` training steps are captured as CUDA graphs.
    """

    preprocessor: Preprocessor
    tokens: TargetTokens
    optimizer: OptimizerConfig
    save_fn: SaveFn
    use_cuda_graphs: bool = False
    compute_metrics: MetricsFn | None = None
