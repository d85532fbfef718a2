"""CUDA graphs of training steps: one launch runs forward and backward pass.

The host needs longer to launch the thousands of kernels of a small batch than the GPU to run them. A graph reads and
writes fixed addresses: a batch is copied into input buffers, and gradients accumulate in gradient buffers. The collator
pads batches to a multiple of `PAD_TO`, so that shapes repeat.
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
MIN_CALLS = 3  # steps of a shape before its capture, which takes as long as one or two steps
MAX_GRAPHS = 32  # each has some thousand kernels and some ten megabytes

Step = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]


def can_use_cuda_graphs(model: nn.Module, optim: str, *, checkpoints_activations: bool, is_compiled: bool) -> bool:
    """Return whether every step of a shape runs the same kernels on one GPU, without a value that the host reads.

    Gradient checkpointing reads the random state, several processes communicate, some optimizers step within the
    backward pass, and LayerDrop skips layers. Compiled models and variants of LoRA are not tested.
    """
    name = optim.lower()
    if checkpoints_activations or is_compiled or "lomo" in name or "layerwise" in name:
        return False
    is_cuda = next(model.parameters()).device.type == "cuda" and torch.version.hip is None
    is_single_process = PartialState().distributed_type == DistributedType.NO
    is_plain_lora = all(type(layer) is FusedLoraLinear and not layer.lora_variant for layer in _lora_layers(model))
    drops_layers = any(getattr(module, "layerdrop", 0) for module in model.modules())
    return is_cuda and is_single_process and is_plain_lora and not drops_layers


class GraphedStep:
    """Runs steps that accumulate gradients, `step(batch, num_items) -> loss`, as CUDA graphs of their shapes."""

    def __init__(self, step: Step, model: nn.Module) -> None:
        self._step = step
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        is_cuda = self._weights[0].device.type == "cuda"
        self._graphs = CudaGraphCache(self._run, enabled=is_cuda, min_calls=MIN_CALLS, max_graphs=MAX_GRAPHS)
        self._grad_buffers: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._addresses: list[int] = []
        self._shapes: list[tuple[Any, ...]] = []
        self._input_buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._losses: dict[int, torch.Tensor] = {}

    @property
    def num_graphs(self) -> int:
        """Count the captured graphs."""
        return self._graphs.num_graphs

    def __call__(self, batch: Mapping[str, torch.Tensor], num_items: torch.Tensor) -> torch.Tensor:
        """Add the gradients of a batch to those of the weights, and return its loss."""
        inputs = {**batch, "num_items": num_items}
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        for key, tensor in zip(shape, inputs.values(), strict=True):
            if key not in self._input_buffers:
                self._input_buffers[key] = torch.empty_like(tensor)
            self._input_buffers[key].copy_(tensor, non_blocking=True)
        if shape not in self._shapes:
            self._shapes.append(shape)
        number = self._shapes.index(shape)
        self._check_addresses()
        self._attach_grads()
        if self._grad_buffers:
            self._graphs(number)
        else:
            self._run_first(number)
        return self._losses[number].clone()

    def _run_first(self, number: int) -> None:
        """Run the first step; it shows which weights get gradients and whether there is memory for graphs."""
        device = self._weights[0].device
        before = allocated_memory(device)
        self._graphs(number)
        self._grad_buffers = [(weight, weight.grad) for weight in self._weights if weight.grad is not None]
        # A graph keeps the memory of a step, and eager steps of other shapes need as much again.
        if free_device_memory(device) < 2 * (peak_memory(device) - before) or any(map(_is_hooked, self._weights)):
            self._graphs.disable()

    def _check_addresses(self) -> None:
        """Discard the graphs if an optimizer has moved weights to other addresses."""
        addresses = [weight.data_ptr() for weight in self._weights]
        if self._graphs.num_graphs and addresses != self._addresses:
            self._graphs.clear()
        self._addresses = addresses

    def _run(self, number: int) -> None:
        inputs = {key[0]: self._input_buffers[key] for key in self._shapes[number]}
        self._losses[number] = self._step(inputs, inputs.pop("num_items"))

    def _attach_grads(self) -> None:
        """Attach the gradient buffers to the weights, and clear those of gradients that were removed."""
        removed = []
        for weight, grad in self._grad_buffers:
            if weight.grad is not grad:
                removed.append(grad)
                weight.grad = grad
        if removed:
            torch._foreach_zero_(removed)


def _is_hooked(weight: nn.Parameter) -> bool:
    """Return whether a weight has hooks on its gradient: Python code that a graph does not replay."""
    return bool(weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None))


def _lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
