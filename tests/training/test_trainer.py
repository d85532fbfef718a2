from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from florence2.config import TrainingSettings
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.processing import Preprocessor
from florence2.training.callbacks.nan_guard import NonFiniteGradientGuard
from florence2.training.dataset.caption_augmentation import CaptionAugmentation
from florence2.training.dataset.collator import Florence2Collator
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.optimizer.optimizer_config import OptimizerConfig
from florence2.training.trainer import Florence2Trainer
from florence2.training.trainer_config import TargetTokens, TrainerConfig
from tests.tiny import tiny_model
from tests.training.models import trainable_model

TARGETS = ("a red sun", "sea", "one long caption of many words, longer than all the others", "cat")


def dataset(preprocessor: Preprocessor) -> Florence2Dataset:
    images = [Image.new("RGB", (64, 64), (40 * n, 200 - 40 * n, 90)) for n in range(len(TARGETS))]
    samples = [Sample(f"{n}.png", images[n], "<CAPTION>", target=target) for n, target in enumerate(TARGETS)]
    return Florence2Dataset(samples, preprocessor, CaptionAugmentation())


class Bench:
    """A trainer over four samples in memory, its dropout off."""

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        lora_args: tuple[str, ...] = (),
        freeze: str = "none",
        use_cuda_graphs: bool = False,
        pad_to: int = 1,
        callbacks: Sequence[Any] = (),
        optimizer: Mapping[str, Any] | None = None,
        **args: Any,
    ) -> None:
        model, processor = tiny_model()
        for module in model.modules():
            for name in ("dropout", "attention_dropout", "activation_dropout", "drop_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        self.base = model
        self.preprocessor = Preprocessor.from_processor(processor)
        torch.manual_seed(0)
        self.model = trainable_model(*lora_args, freeze=freeze, model=model, rank=rank, dropout=0.0)
        rates = {"learning_rate": args.get("learning_rate", 0.1), "lr_scheduler_type": "constant"}
        config = TrainerConfig(
            self.preprocessor,
            TargetTokens.from_model(model, self.preprocessor),
            OptimizerConfig(**({"name": "torch.optim.SGD"} | rates | dict(optimizer or {}))),
            save_fn=lambda *_: None,
            use_cuda_graphs=use_cuda_graphs,
        )
        plain = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
        }
        self.args = Seq2SeqTrainingArguments(
            str(folder),
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
            **(plain | args),
        )
        self.dataset = dataset(self.preprocessor)
        self.trainer = Florence2Trainer(
            config,
            model=self.model,
            args=self.args,
            data_collator=Florence2Collator(1, pad_to),
            train_dataset=self.dataset,
            callbacks=list(callbacks),
        )

    def batch(self, *which: int) -> dict[str, torch.Tensor]:
        return Florence2Collator(1)([self.dataset[n] for n in which])

    def loss(self, *which: int, **more: Any) -> torch.Tensor:
        return self.trainer.compute_loss(self.model, self.batch(*which), **more)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("bench"))
    made.model.eval()
    return made


def test_loss_equals_the_loss_of_the_model(bench: Bench) -> None:
    batch = bench.batch(0, 1, 2)
    pixels = bench.preprocessor.normalize(batch["pixels_BHWC"])
    logits = bench.base(
        input_ids=batch["input_ids"],
        pixel_values=pixels,
        labels=batch["labels"],
    ).logits
    log_probs = logits[..., : bench.preprocessor.image_token_id].log_softmax(-1)
    has_label = batch["labels"] != -100
    target_logits = log_probs.gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(bench.loss(0, 1, 2), -target_logits[has_label].mean())


def test_padding_does_not_change_the_loss(bench: Bench) -> None:
    tokens = [len(bench.dataset[n]["labels"]) for n in range(4)]
    alone = sum(bench.loss(n) * tokens[n] for n in range(4)) / sum(tokens)
    torch.testing.assert_close(bench.loss(0, 1, 2, 3), alone, rtol=1e-5, atol=1e-6)


def test_padding_to_a_multiple_does_not_change_the_loss(bench: Bench) -> None:
    which = [bench.dataset[n] for n in (0, 2, 3)]
    loss = bench.trainer.compute_loss(bench.model, Florence2Collator(1, 16)(which))
    torch.testing.assert_close(loss, bench.loss(0, 2, 3), rtol=1e-5, atol=1e-6)


def test_logits_are_computed_at_label_positions_only(bench: Bench) -> None:
    made: list[torch.Size] = []
    hook = bench.base.lm_head.register_forward_hook(lambda _, __, out: made.append(out.shape))
    bench.loss(1, 2)
    hook.remove()
    assert made == [(sum(len(bench.dataset[n]["labels"]) for n in (1, 2)), bench.base.lm_head.out_features)]


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_accumulation_changes_nothing(tmp_path: Path, rank: int) -> None:
    one_batch = Bench(tmp_path, rank=rank)
    four_batches = Bench(tmp_path, rank=rank, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    one_batch.trainer.train()
    four_batches.trainer.train()
    before, after = one_batch.weights(), four_batches.weights()
    assert all(torch.allclose(before[name], after[name], atol=2e-6) for name in before)
    losses = [bench.trainer.state.log_history[-1]["train_loss"] for bench in (one_batch, four_batches)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("rank", "freeze", "still"),
    [
        (0, "vision", ("model.vision_tower.", "model.multi_modal_projector.")),
        (0, "language", ("model.language_model.", "lm_head.")),
        (2, "vision", ("model.vision_tower.",)),
        (2, "none", ()),
    ],
)
def test_only_trainable_weights_change(tmp_path: Path, rank: int, freeze: str, still: tuple[str, ...]) -> None:
    bench = Bench(tmp_path, rank=rank, freeze=freeze, num_train_epochs=2)
    before = bench.weights()
    bench.trainer.train()
    moved = {name for name, weight in bench.weights().items() if not torch.equal(weight, before[name])}
    assert not [name for name in moved if name.removeprefix("base_model.model.").startswith(still)] or not still
    trained = {name for name, weight in bench.model.named_parameters() if weight.requires_grad}
    assert moved <= trained
    if rank:
        assert moved == trained
        assert all(".lora_" in name for name in moved)
    else:  # positions that no image and no target reaches have no gradient
        assert {name for name in trained - moved if not name.endswith(("embeddings.weight", "k_proj.bias"))} == set()


def test_frozen_component_stays_in_eval_mode(tmp_path: Path) -> None:
    bench = Bench(tmp_path, freeze="vision")
    tower = bench.base.model.vision_tower
    bench.trainer.train()
    assert not any(module.training for module in tower.modules())
    assert bench.base.model.language_model.training


def test_non_finite_steps_change_nothing_and_stop_training(tmp_path: Path) -> None:
    guard = NonFiniteGradientGuard(limit=3)
    bench = Bench(tmp_path, num_train_epochs=9, callbacks=[guard], optimizer={"name": "adamw_torch"}, weight_decay=0.1)
    nn.Module.register_forward_hook(bench.base.lm_head, lambda _, __, out: out * float("nan"))
    before = bench.weights()
    bench.trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in bench.weights().items())
    assert (guard.skipped, bench.trainer.state.global_step, guard.is_exceeded) == (3, 3, True)


class Rates(TrainerCallback):
    """Records the learning rate of each step."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_pre_optimizer_step(self, *_: Any, optimizer: torch.optim.Optimizer, **__: Any) -> None:
        self.taken.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup", "warmup_stable_decay"])
def test_first_step_has_a_learning_rate_above_zero(tmp_path: Path, schedule: str) -> None:
    rates = Rates()
    Bench(tmp_path, num_train_epochs=8, callbacks=[rates], lr_scheduler_type=schedule, warmup_steps=3).trainer.train()
    assert rates.taken[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert len(rates.taken) == 8
    assert 0 < rates.taken[-1] <= rates.taken[2] == max(rates.taken)


@pytest.mark.parametrize(("kwargs", "expected"), [(None, [0.05]), ({"num_decay_steps": 4}, [0.0854, 0.05, 0.0146])])
def test_default_schedule_decays_over_the_last_fifth(tmp_path: Path, kwargs: Any, expected: list[float]) -> None:
    rates, schedule = Rates(), TrainingSettings().lr_scheduler_type
    more = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs}
    Bench(tmp_path, num_train_epochs=9, callbacks=[rates], **more).trainer.train()
    assert rates.taken == pytest.approx([0.1] * (9 - len(expected)) + expected, rel=1e-2)


@pytest.mark.parametrize("use_cuda_graphs", [False, True])
def test_non_finite_step_is_skipped_and_its_checkpoint_postponed(tmp_path: Path, use_cuda_graphs: bool) -> None:
    guard, saves = NonFiniteGradientGuard(limit=3), {"save_strategy": "steps", "save_steps": 2}
    bench = Bench(tmp_path, use_cuda_graphs=use_cuda_graphs, num_train_epochs=4, callbacks=[guard], **saves)
    calls: list[int] = []

    def break_the_second(_: nn.Module, __: Any, out: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return out * float("inf") if len(calls) == 2 else out

    bench.base.lm_head.register_forward_hook(break_the_second)
    bench.trainer.train()
    assert (guard.skipped, guard.consecutive, bench.trainer.state.global_step) == (1, 0, 4)
    # The save of the skipped step happens after the next finite step.
    assert sorted(path.name for path in tmp_path.rglob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert all(torch.isfinite(weight).all() for weight in bench.weights().values())


def test_freezing_all_target_modules_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all `--target_modules` are in the frozen component"):
        trainable_model(freeze="vision", target_modules=("qkv",))


@pytest.mark.parametrize("rank", [0, 2])
def test_vision_tower_stays_channels_last(tmp_path: Path, rank: int) -> None:
    bench = Bench(tmp_path, rank=rank)
    weight = bench.base.model.vision_tower.convs[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    bench.trainer.train()
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_require_unsharded_raises_for_sharded_weights(tmp_path: Path) -> None:
    trainer = Bench(tmp_path).trainer
    trainer.require_unsharded("--eval_metrics")  # all weights are here
    trainer.is_fsdp_enabled = True
    with pytest.raises(UserError, match="`--sample_every_n_steps` needs a copy of the model"):
        trainer.require_unsharded("--sample_every_n_steps")
