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


def step(recompute: bool, trained: str = "") -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Take one backward pass; return the loss, the gradients, and the bytes that were kept for it."""
    model, processor = tiny_model()
    model.train()
    for block in model.modules():
        if type(block).__name__ == "Florence2DropPath":
            block.drop_prob = 0.5  # recomputing must draw the same random numbers again
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained in name)
    if recompute:
        checkpoint_activations(model)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    ids = torch.tensor([[processor.image_token_id] * 5 + [0, 9, 2]])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(input_ids=ids, pixel_values=torch.randn(1, 3, PIXELS, PIXELS), decoder_input_ids=ids[:, 5:])
        loss = out.logits.logsumexp(-1).mean()
    loss.backward()
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    held = sum(size for place, size in kept.items() if place not in weights)
    return loss, [w.grad for w in model.parameters() if w.requires_grad], held


def test_recomputing_changes_no_gradient_and_keeps_less() -> None:
    loss, grads, held = step(recompute=False)
    other_loss, other_grads, other_held = step(recompute=True)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))
    assert other_held < 0.5 * held


def test_the_vision_tower_is_covered() -> None:
    _, _, held = step(recompute=False, trained="vision_tower")
    _, _, other_held = step(recompute=True, trained="vision_tower")
    assert other_held < 0.5 * held


def test_recomputing_rests_outside_training() -> None:
    model, _ = tiny_model()
    pixels = torch.randn(1, 3, PIXELS, PIXELS)
    before = model.get_image_features(pixels).pooler_output
    checkpoint_activations(model)
    assert torch.equal(before, model.get_image_features(pixels).pooler_output)


def shapes(batch: int) -> BatchShapes:
    return BatchShapes(batch, (PIXELS, PIXELS), num_image_tokens=5, prompt_length=12, target_length=16)


def test_the_expected_memory_follows_what_is_trained() -> None:
    model, _ = tiny_model()
    two, four = (estimate_memory(model, shapes(batch), torch.float32) for batch in (2, 4))
    assert two.optimizer == 8 * sum(w.numel() for w in model.parameters())
    assert 1.5 * two.activations < four.activations < 2 * two.activations  # gradients do not grow
    model.requires_grad_(False)
    nothing = estimate_memory(model, shapes(2), torch.float32)
    assert nothing.optimizer == 0
    assert nothing.activations < 0.3 * two.activations


@pytest.mark.parametrize("recompute", [False, True])
def test_a_rehearsal_counts_what_a_step_holds(recompute: bool) -> None:
    model, _ = tiny_model()
    if recompute:
        checkpoint_activations(model)
    plain = estimate_step_memory(tiny_model()[0], shapes(8), torch.float32)
    expected = estimate_step_memory(model, shapes(8), torch.float32)
    assert all(weight.grad is None for weight in model.parameters())
    with MemoryTracker() as ledger:
        ledger.know(*model.parameters(), *model.buffers())
        TrainingStep(model.train(), shapes(8), torch.float32)()
    assert ledger.peak == pytest.approx(expected, rel=0.02)
    assert expected < 0.5 * plain if recompute else expected == plain


def test_what_asks_for_a_value_without_data_is_told_to_go_on() -> None:
    # As transformers 5.13 asks, to leave layers out by chance.
    with FakeTensorMode(), MemoryTracker():
        assert not (torch.rand([]) < 2)


def test_out_of_memory_names_the_flags() -> None:
    with pytest.raises(UserError) as caught, explain_out_of_memory(batch=4, recomputing=False):
        torch.empty(2**60)
    assert caught.value.what == "out of memory at batch size 4"
    assert "--gradient_checkpointing" in caught.value.hint
    assert "--batch_size 2 --gradient_accumulation_steps 2" in caught.value.hint


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(batch=1, recomputing=False):
        nn.Linear(2, 2)(torch.zeros(3))
