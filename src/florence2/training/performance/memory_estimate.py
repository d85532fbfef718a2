"""A step taken with tensors that hold no data, to count what it would hold: nothing is computed, nothing is taken.

Knows the model's parts and torch's fake tensors.

Shapes: B pictures of a batch, H and W the model's picture size, S ids of the prompt, T of the target, D the width.
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
    """What a batch looks like; with `features`, pictures are not looked at."""

    batch_size: int
    image_size: tuple[int, int]
    num_image_tokens: int
    prompt_length: int
    target_length: int
    features: bool = False


class MemoryTracker(TorchDispatchMode):  # type: ignore[misc, no-untyped-call]
    """Counts the bytes of storages from when an operation makes them to when nothing holds them any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known: set[int] = set()

    def know(self, *tensors: torch.Tensor) -> None:
        """Leave tensors out that were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, operation: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        """Run an operation and count what is new in its result.

        Where code asks for a value, as older transformers do to skip layers by chance, it is told `False`: go on.
        """
        if operation is torch.ops.aten._local_scalar_dense.default:
            return False
        made = operation(*given, **(named or {}))
        for each in tree_iter(made):
            if isinstance(each, torch.Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.held -= size


def estimate_step_memory(learner: nn.Module, shapes: BatchShapes, dtype: torch.dtype) -> int:
    """Give the most bytes that one step would hold beside the weights: activations, their gradients, the gradients."""
    training = learner.training
    step = TrainingStep(learner.train(), shapes, dtype)
    fake, ledger = FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in (*step.named_parameters(), *step.named_buffers()):
        state[name] = fake.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)
    ledger.know(*state.values())
    try:
        with torch.random.fork_rng(), fake, ledger:
            torch.func.functional_call(step, state, ())
    finally:
        learner.train(training)
    return ledger.peak


class TrainingStep(nn.Module):
    """Forward and backward in one call, so that the weights stay replaced while activations are recomputed."""

    def __init__(self, learner: nn.Module, shapes: BatchShapes, dtype: torch.dtype) -> None:
        super().__init__()
        self.learner = learner
        self.shapes = shapes
        self.dtype = dtype

    def forward(self) -> None:
        """Take the step; gradients stay in the weights."""
        shapes = self.shapes
        given: Any = self.learner
        whole = given.get_base_model() if hasattr(given, "get_base_model") else given
        device = whole.device
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            embed = whole.get_input_embeddings()
            words_BSD = embed(torch.zeros(shapes.batch_size, shapes.prompt_length, dtype=torch.long, device=device))
            seen_BND = self._look(whole, words_BSD)
            output = whole.model.language_model(
                inputs_embeds=torch.cat([seen_BND, words_BSD], 1),
                decoder_input_ids=torch.zeros(shapes.batch_size, shapes.target_length, dtype=torch.long, device=device),
                use_cache=False,
            )
            logits_NV = whole.lm_head(output.last_hidden_state.flatten(0, 1))
            learnt_N = torch.zeros(len(logits_NV), dtype=torch.long, device=device)
            loss = functional.cross_entropy(logits_NV[:, :-1].float(), learnt_N, reduction="sum")
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def _look(self, whole: Any, words_BSD: torch.Tensor) -> torch.Tensor:
        shapes = self.shapes
        if shapes.features:
            return words_BSD.new_zeros(shapes.batch_size, shapes.num_image_tokens, words_BSD.shape[-1])
        pixels_BCHW = torch.zeros(shapes.batch_size, 3, *shapes.image_size, device=whole.device)
        seen = whole.model.vision_tower(pixels_BCHW.to(memory_format=torch.channels_last)).last_hidden_state
        seen_BND: torch.Tensor = whole.model.multi_modal_projector(seen)
        return seen_BND.to(words_BSD.dtype)
