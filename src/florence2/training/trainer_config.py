"""How a step is taken, beyond transformers' arguments: which words count, which modules rest, who keeps and scores.

Knows the settings that choose a method; takes no step itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from florence2.config import TrainingSettings
from florence2.model.processing import Preprocessor
from florence2.training.arguments import ONECYCLE
from florence2.training.optimizer.create import parse_optimizer_args
from florence2.training.performance.cuda_graph_step import can_use_cuda_graphs
from florence2.training.prepare_model import frozen_modules
from florence2.training.saving.checkpoint_trainer import SaveFn

MetricsFn = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class TrainerConfig:
    """How a step is taken, beyond what transformers' arguments say.

    `words` is the number of vocabulary rows that stand for words: rows behind them, such as that of the picture's
    place, are never an answer. `resting` modules stay in eval mode. With `records` a GPU records its steps. `keep`
    writes model and processor into a folder, `examine` scores the learner whenever the loss is measured.
    """

    preprocessor: Preprocessor
    vocab_size: int
    decoder_start_token_id: int
    pad_token_id: int
    save_fn: SaveFn
    optim: str
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    lora_plus_ratio: float | None = None
    vision_learning_rate: float | None = None
    one_cycle: bool = False
    frozen_modules: tuple[nn.Module, ...] = ()
    use_cuda_graphs: bool = False
    compute_metrics: MetricsFn | None = None

    @classmethod
    def of(
        cls,
        learning: TrainingSettings,
        learner: Any,
        preprocessor: Preprocessor,
        keep: SaveFn,
        examine: MetricsFn | None,
    ) -> "TrainerConfig":
        """Read the method from the settings, and its numbers from the model."""
        text, place = learner.config.text_config, preprocessor.image_token_id
        return cls(
            preprocessor=preprocessor,
            # The row of the picture's place is the last that has a name, and no word.
            vocab_size=place if place + 1 >= len(preprocessor.tokenizer) else text.vocab_size,
            decoder_start_token_id=text.decoder_start_token_id,
            pad_token_id=text.pad_token_id,
            save_fn=keep,
            optim=learning.optim,
            optimizer_args=parse_optimizer_args(learning.optimizer_args),
            lora_plus_ratio=learning.lora_plus_ratio,
            vision_learning_rate=learning.vision_learning_rate,
            one_cycle=learning.lr_scheduler_type.lower() == ONECYCLE,
            frozen_modules=frozen_modules(learner),
            use_cuda_graphs=can_use_cuda_graphs(learner, learning),
            compute_metrics=examine,
        )


class SelectLabelPositions:
    """Leaves out, in front of the output layer, the places where nothing is learnt: (B, T, D) -> (N, D)."""

    positions_N: torch.Tensor | None = None

    def __call__(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Choose among what the output layer is given, as a hook of it."""
        return None if self.positions_N is None else (given[0].flatten(0, 1).index_select(0, self.positions_N),)
