"""A GPU's training steps, recorded: forward and backward start with one call.

A host needs longer to ask for the thousands of kernels of a small batch than a GPU to run them. A recording knows
places, not tensors: a batch is copied to where the recorded one lay, and gradients gather in tensors that stay. Batches
are padded to a few lengths (`PAD_TO`), so that shapes come again. Knows nothing of what is learnt.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft.tuners.lora import LoraLayer
from torch import nn

from florence2.cuda_graphs import CudaGraphCache
from florence2.training.performance.lora_linear import FusedLoraLinear
from florence2.training.performance.memory import allocated_memory, free_device_memory, peak_memory

PAD_TO = 16  # tokens
MIN_CALLS = 3  # steps in one shape: recording takes as long as one or two
MAX_GRAPHS = 32  # graphs of some thousand kernels, and some ten megabytes, each

Step = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]


def can_use_cuda_graphs(model: nn.Module, optim: str, *, checkpoints_activations: bool, is_compiled: bool) -> bool:
    """Tell whether every step of a shape is the same work, on one GPU, and nothing in it waits for a value.

    Recomputing asks for the state of the random numbers, several processes talk to each other, some optimizers step
    within the backward pass, skipped layers are other work; what is compiled, or more than plain LoRA, was not tried.
    """
    name = optim.lower()
    if checkpoints_activations or is_compiled or "lomo" in name or "layerwise" in name:
        return False
    on_gpu = next(model.parameters()).device.type == "cuda" and torch.version.hip is None
    alone = PartialState().distributed_type == DistributedType.NO
    plain = all(type(layer) is FusedLoraLinear and not layer.lora_variant for layer in _adapted(model))
    skips = any(getattr(module, "layerdrop", 0) for module in model.modules())
    return on_gpu and alone and plain and not skips


class GraphedStep:
    """Takes steps that gather gradients, `step(batch, items) -> loss`, by heart where their shape has come before."""

    def __init__(self, step: Step, learner: nn.Module) -> None:
        self._step = step
        self._weights = [weight for weight in learner.parameters() if weight.requires_grad]
        on_gpu = self._weights[0].device.type == "cuda"
        self._replay = CudaGraphCache(self._take, enabled=on_gpu, min_calls=MIN_CALLS, max_graphs=MAX_GRAPHS)
        self._loans: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._addresses: list[int] = []
        self._shapes: list[tuple[Any, ...]] = []
        self._places: dict[tuple[Any, ...], torch.Tensor] = {}
        self._losses: dict[int, torch.Tensor] = {}

    @property
    def num_graphs(self) -> int:
        """Count the shapes that have a graph."""
        return self._replay.num_graphs

    def __call__(self, batch: Mapping[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
        """Add the gradients of a batch to the weights', and give its loss."""
        given = {**batch, "items": items}
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in given.items())
        for key, tensor in zip(shape, given.values(), strict=True):
            if key not in self._places:
                self._places[key] = torch.empty_like(tensor)
            self._places[key].copy_(tensor, non_blocking=True)
        if shape not in self._shapes:
            self._shapes.append(shape)
        number = self._shapes.index(shape)
        self._check_addresses()
        self._attach_grads()
        if self._loans:
            self._replay(number)
        else:
            self._begin(number)
        return self._losses[number].clone()

    def _begin(self, number: int) -> None:
        """Take the first step, and see what gets gradients, and whether there is room for recordings."""
        device = self._weights[0].device
        before = allocated_memory(device)
        self._replay(number)
        self._loans = [(weight, weight.grad) for weight in self._weights if weight.grad is not None]
        # A recording keeps the memory of a step for good, and steps in other shapes need as much again.
        if free_device_memory(device) < 2 * (peak_memory(device) - before) or any(map(_is_hooked, self._weights)):
            self._replay.disable()

    def _check_addresses(self) -> None:
        """Forget what was recorded where an optimizer has moved weights to other places."""
        addresses = [weight.data_ptr() for weight in self._weights]
        if self._replay.num_graphs and addresses != self._addresses:
            self._replay.clear()
        self._addresses = addresses

    def _take(self, number: int) -> None:
        lying = {key[0]: self._places[key] for key in self._shapes[number]}
        self._losses[number] = self._step(lying, lying.pop("items"))

    def _attach_grads(self) -> None:
        """Let gradients gather where a recording puts them, from nothing where they were dropped."""
        dropped = []
        for weight, grad in self._loans:
            if weight.grad is not grad:
                dropped.append(grad)
                weight.grad = grad
        if dropped:
            torch._foreach_zero_(dropped)


def _is_hooked(weight: nn.Parameter) -> bool:
    """Tell whether something happens when a weight gets its gradient: Python that a recording would leave out."""
    return bool(weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None))


def _adapted(learner: nn.Module) -> list[Any]:
    return [module for module in learner.modules() if isinstance(module, LoraLayer)]
