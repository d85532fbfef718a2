"""EVA: a LoRA whose A matrices begin as the directions in which a layer's inputs vary most, and whose ranks go there.

peft does the sums. This file hands it the pictures of the first epoch, says which places hold no padding, and sees to
it that it ends.

Shapes: B pictures, S ids of the longest prompt, T ids of the longest target, D a layer's width, N places kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import nn

from florence2.errors import UserError
from florence2.model.processing import IGNORED_LABEL
from florence2.training.dataset.florence2_dataset import Florence2Dataset

IMAGES = 8  # in a batch, at least
MOST = 300  # batches after which what has not settled will not

Batch = dict[str, Any]


def needs_eva_init(model: nn.Module) -> bool:
    """Tell whether a LoRA is to begin from data."""
    return isinstance(model, PeftModel) and any(c.init_lora_weights == "eva" for c in model.peft_config.values())


def initialize_eva(
    model: nn.Module,
    dataset: Florence2Dataset,
    collate: Callable[[Any], Batch],
    answer: Callable[[nn.Module, Batch], Any],
) -> None:
    """Look at the inputs of every layer while `answer` runs batches through the model, and begin from them.

    Every process looks at the same batches, so all begin alike.
    """
    whole: Any = model
    (config,) = whole.peft_config.values()
    # A layer may get this much of a rank, and needs as many places in a batch to find it.
    most = int(max(config.r, *(config.rank_pattern or {"": 0}).values()) * config.eva_config.rho)
    narrow = min(layer.in_features for layer in model.modules() if isinstance(layer, LoraLayer))
    if most > narrow:
        what = f"EVA looks for {most} directions, rank times rho, and a layer has {narrow}"
        raise UserError(what, "give a lower `--rank`, or `--lora_args eva_config='{\"rho\": 1}'`")
    initialize_lora_eva_weights(
        whole,
        _Shown(dataset, collate, most),
        forward_fn=answer,
        prepare_model_inputs_fn=lambda batch, _: batch,
        prepare_layer_inputs_fn=_places,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()


@dataclass(frozen=True)
class _Shown:
    """Batches of the first epoch, again and again but not for ever, each with at least so many learnt tokens."""

    dataset: Florence2Dataset
    collate: Callable[[Any], Batch]
    tokens: int
    shown: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        items: list[Any] = []
        tokens, before = 0, len(self.shown)
        for draw in self.dataset.sampler(self.dataset.seed, 1, False):
            items.append(self.dataset[draw])
            tokens += len(items[-1]["labels"])
            if tokens >= self.tokens and len(items) >= min(IMAGES, len(self.dataset)):
                yield self._batch(items)
                items, tokens = [], 0
        if len(self.shown) == before:
            what = f"EVA needs {self.tokens} tokens of captions to begin from, and there are {tokens}"
            raise UserError(what, "give more pictures, or a lower `--rank`")

    def _batch(self, items: list[Any]) -> Batch:
        self.shown.append(len(items))
        if len(self.shown) > MOST:
            hint = "pass `--lora_args init_lora_weights=eva eva_config='{\"tau\": 0.9}'`, or another beginning"
            raise UserError(f"EVA has not settled after {MOST} batches", hint)
        return self.collate(items)


def _places(layer_input: Any, batch: Batch, name: str) -> torch.Tensor:
    """Take what is no padding from a layer's input: (B, S or T or cells, D) -> (N, D)."""
    hidden: torch.Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    flat = hidden.reshape(-1, hidden.shape[-1]).float()
    if ".language_model." not in name:
        return flat
    reads_image = name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
    is_answer = ".decoder." in name and not reads_image
    kept = batch["labels"] != IGNORED_LABEL if is_answer else batch.get("attention_mask")
    return flat if kept is None else flat[kept.bool().flatten().to(flat.device)]
