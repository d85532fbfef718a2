import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from florence2.errors import UserError
from florence2.training.performance.memory import checkpoint_activations, estimate_memory, explain_out_of_memory
from florence2.training.performance.memory_estimate import (
    BatchShapes,
    MemoryTracker,
    TrainingStep,
    estimate_step_memory,
)
from tests.tiny import PIXELS, tiny_model


def step(is_checkpointed: bool, trained: str = "") -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Run a forward and backward pass; return the loss, the gradients and the bytes of saved activations."""
    model, processor = tiny_model()
    model.train()
    for block in model.modules():
        if type(block).__name__ == "Florence2DropPath":
            block.drop_prob = 0.5  # recomputation must draw the same random numbers
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained in name)
    if is_checkpointed:
        checkpoint_activations(model)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    ids = torch.tensor([[processor.image_token_id] * 5 + [0, 9, 2]])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(input_ids=ids, pixel_values=torch.randn(1, 3, PIXELS, PIXELS), decoder_input_ids=ids[:, 5:])
        loss = out.logits.logsumexp(-1).mean()
    loss.backward()
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    saved_bytes = sum(size for address, size in saved.items() if address not in weights)
    return loss, [w.grad for w in model.parameters() if w.requires_grad], saved_bytes


def test_checkpointing_keeps_gradients_and_saves_memory() -> None:
    loss, grads, saved_bytes = step(is_checkpointed=False)
    other_loss, other_grads, other_bytes = step(is_checkpointed=True)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))
    assert other_bytes < 0.5 * saved_bytes


def test_checkpointing_covers_the_vision_tower() -> None:
    _, _, saved_bytes = step(is_checkpointed=False, trained="vision_tower")
    _, _, other_bytes = step(is_checkpointed=True, trained="vision_tower")
    assert other_bytes < 0.5 * saved_bytes


def test_checkpointing_does_nothing_in_eval_mode() -> None:
    model, _ = tiny_model()
    pixels = torch.randn(1, 3, PIXELS, PIXELS)
    before = model.get_image_features(pixels).pooler_output
    checkpoint_activations(model)
    assert torch.equal(before, model.get_image_features(pixels).pooler_output)


def shapes(batch: int) -> BatchShapes:
    return BatchShapes(batch, (PIXELS, PIXELS), num_image_tokens=5, prompt_length=12, target_length=16)


def test_estimate_depends_on_trainable_weights_and_batch_size() -> None:
    model, _ = tiny_model()
    two, four = (estimate_memory(model, shapes(batch), torch.float32) for batch in (2, 4))
    assert two.optimizer == 8 * sum(w.numel() for w in model.parameters())
    assert 1.5 * two.activations < four.activations < 2 * two.activations  # gradients do not grow
    model.requires_grad_(False)
    frozen = estimate_memory(model, shapes(2), torch.float32)
    assert frozen.optimizer == 0
    assert frozen.activations < 0.3 * two.activations


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_estimate_equals_the_memory_of_a_step(is_checkpointed: bool) -> None:
    model, _ = tiny_model()
    if is_checkpointed:
        checkpoint_activations(model)
    plain = estimate_step_memory(tiny_model()[0], shapes(8), torch.float32)
    expected = estimate_step_memory(model, shapes(8), torch.float32)
    assert all(weight.grad is None for weight in model.parameters())
    with MemoryTracker() as tracker:
        tracker.ignore(*model.parameters(), *model.buffers())
        TrainingStep(model.train(), shapes(8), torch.float32)()
    assert tracker.peak == pytest.approx(expected, rel=0.02)
    assert expected < 0.5 * plain if is_checkpointed else expected == plain


def test_value_of_a_fake_tensor_is_false() -> None:
    # transformers 5.13 reads such a value to drop layers at random.
    with FakeTensorMode(), MemoryTracker():
        assert not (torch.rand([]) < 2)


def test_out_of_memory_error_names_flags() -> None:
    with pytest.raises(UserError) as caught, explain_out_of_memory(batch_size=4, checkpoints_activations=False):
        torch.empty(2**60)
    assert caught.value.what == "out of memory at batch size 4"
    assert "--gradient_checkpointing" in caught.value.hint
    assert "--batch_size 2 --gradient_accumulation_steps 2" in caught.value.hint


def test_other_errors_are_not_translated() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        explain_out_of_memory(batch_size=1, checkpoints_activations=False),
    ):
        nn.Linear(2, 2)(torch.zeros(3))
