"""EVA initialization of LoRA: the A matrices start as the principal components of each layer's inputs.

peft computes them, and distributes the ranks among the layers by explained variance. This module supplies the batches
of the first epoch and removes padding from the inputs.

Shapes: B images, S tokens of the longest prompt, T tokens of the longest target, D the width of a layer, N the
positions that are not padding.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import nn

from florence2.errors import OptionError
from florence2.model.processing import IGNORED_LABEL
from florence2.training.dataset.florence2_dataset import Florence2Dataset

MIN_BATCH_SIZE = 8
MAX_BATCHES = 300  # components that have not converged by then do not converge

Batch = dict[str, Any]


def needs_eva_init(model: nn.Module) -> bool:
    """Return whether the configuration of a LoRA asks for EVA initialization."""
    return isinstance(model, PeftModel) and any(c.init_lora_weights == "eva" for c in model.peft_config.values())


def initialize_eva(
    model: nn.Module,
    dataset: Florence2Dataset,
    collate_fn: Callable[[Any], Batch],
    forward_fn: Callable[[nn.Module, Batch], Any],
) -> None:
    """Initialize the LoRA weights from the inputs of each layer while `forward_fn` runs batches through the model.

    Every process uses the same batches, so all start with the same weights.
    """
    peft_model: Any = model
    (config,) = peft_model.peft_config.values()
    # A layer may get a rank of up to `num_components`, which needs as many tokens in each batch.
    max_rank = max(config.r, *(config.rank_pattern or {"": 0}).values())
    num_components = int(max_rank * config.eva_config.rho)
    min_width = min(layer.in_features for layer in model.modules() if isinstance(layer, LoraLayer))
    if num_components > min_width:
        raise OptionError(
            f"EVA computes {num_components} components, rank times rho, but a layer has {min_width} inputs",
            "pass a lower `--rank`, or `--lora_args eva_config='{\"rho\": 1}'`",
        )
    initialize_lora_eva_weights(
        peft_model,
        EvaBatches(dataset, collate_fn, num_components),
        forward_fn=forward_fn,
        prepare_model_inputs_fn=lambda batch, _: batch,
        prepare_layer_inputs_fn=remove_padding,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()


class EvaBatches:
    """Batches of the first epoch with at least `min_tokens` target tokens each.

    peft iterates over them until the components converge; after `MAX_BATCHES` batches that is an error.
    """

    def __init__(self, dataset: Florence2Dataset, collate_fn: Callable[[Any], Batch], min_tokens: int) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.min_tokens = min_tokens
        self.num_batches = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        examples: list[Any] = []
        num_tokens, previous_batches = 0, self.num_batches
        for draw in self.dataset.sampler(self.dataset.seed):
            examples.append(self.dataset[draw])
            num_tokens += len(examples[-1]["labels"])
            if num_tokens >= self.min_tokens and len(examples) >= min(MIN_BATCH_SIZE, len(self.dataset)):
                yield self._collate(examples)
                examples, num_tokens = [], 0
        if self.num_batches == previous_batches:
            raise OptionError(
                f"EVA needs {self.min_tokens} target tokens, but the samples have {num_tokens}",
                "add samples, or pass a lower `--rank`",
            )

    def _collate(self, examples: list[Any]) -> Batch:
        self.num_batches += 1
        if self.num_batches > MAX_BATCHES:
            raise OptionError(
                f"EVA has not converged after {MAX_BATCHES} batches",
                "pass `--lora_args init_lora_weights=eva eva_config='{\"tau\": 0.9}'`, or another initialization",
            )
        return self.collate_fn(examples)


def remove_padding(layer_input: Any, batch: Batch, name: str) -> torch.Tensor:
    """Return the inputs of a layer at positions that are not padding: (B, S or T or image tokens, D) -> (N, D)."""
    hidden: torch.Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    flat = hidden.reshape(-1, hidden.shape[-1]).float()
    if ".language_model." not in name:
        return flat
    is_cross_attention_input = name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
    has_target_positions = ".decoder." in name and not is_cross_attention_input
    mask = batch["labels"] != IGNORED_LABEL if has_target_positions else batch.get("attention_mask")
    return flat if mask is None else flat[mask.bool().flatten().to(flat.device)]
