"""Estimate of the memory of a training step: a forward and backward pass with fake tensors, which hold no data.

Shapes: B images of a batch, H and W the model's image size, S ids of the prompt, T of the target, N image tokens, D
the width.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True)
class BatchShapes:
    """Shapes of a batch; with `features` it has cached image features instead of pixels."""

    batch_size: int
    image_size: tuple[int, int]
    num_image_tokens: int
    prompt_length: int
    target_length: int
    features: bool = False


class MemoryTracker(TorchDispatchMode):  # type: ignore[misc, no-untyped-call]
    """Counts the bytes of the storages that operations allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated = self.peak = 0
        self._known: set[int] = set()

    def ignore(self, *tensors: torch.Tensor) -> None:
        """Do not count tensors that exist already."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the new storages of its result.

        Fake tensors have no values. Code that reads one gets False, so older transformers skip no layer.
        """
        if operation is torch.ops.aten._local_scalar_dense.default:
            return False
        result = operation(*args, **(kwargs or {}))
        for output in tree_iter(result):
            if isinstance(output, torch.Tensor):
                self._count(output.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.allocated += storage.nbytes()
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.allocated -= size


def estimate_step_memory(model: nn.Module, shapes: BatchShapes, dtype: torch.dtype) -> int:
    """Return the peak bytes of a step beside the weights: activations and gradients."""
    training = model.training
    step = TrainingStep(model.train(), shapes, dtype)
    fake, tracker = FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in (*step.named_parameters(), *step.named_buffers()):
        state[name] = fake.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)
    tracker.ignore(*state.values())
    try:
        with torch.random.fork_rng(), fake, tracker:
            torch.func.functional_call(step, state, ())
    finally:
        model.train(training)
    return tracker.peak


class TrainingStep(nn.Module):
    """Forward and backward pass in one call, so that `functional_call` also replaces the weights of recomputation."""

    def __init__(self, model: nn.Module, shapes: BatchShapes, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.shapes = shapes
        self.dtype = dtype

    def forward(self) -> None:
        """Run the step; gradients accumulate in the weights."""
        shapes = self.shapes
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        device = base.device
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            embed = base.get_input_embeddings()
            prompts_BSD = embed(torch.zeros(shapes.batch_size, shapes.prompt_length, dtype=torch.long, device=device))
            images_BND = self._image_embeddings(base, prompts_BSD)
            output = base.model.language_model(
                inputs_embeds=torch.cat([images_BND, prompts_BSD], 1),
                decoder_input_ids=torch.zeros(shapes.batch_size, shapes.target_length, dtype=torch.long, device=device),
                use_cache=False,
            )
            logits_NV = base.lm_head(output.last_hidden_state.flatten(0, 1))
            labels_N = torch.zeros(len(logits_NV), dtype=torch.long, device=device)
            loss = functional.cross_entropy(logits_NV[:, :-1].float(), labels_N, reduction="sum")
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def _image_embeddings(self, base: Any, prompts_BSD: torch.Tensor) -> torch.Tensor:
        shapes = self.shapes
        if shapes.features:
            return prompts_BSD.new_zeros(shapes.batch_size, shapes.num_image_tokens, prompts_BSD.shape[-1])
        pixels_BCHW = torch.zeros(shapes.batch_size, 3, *shapes.image_size, device=base.device)
        features = base.model.vision_tower(pixels_BCHW.to(memory_format=torch.channels_last)).last_hidden_state
        images_BND: torch.Tensor = base.model.multi_modal_projector(features)
        return images_BND.to(prompts_BSD.dtype)
