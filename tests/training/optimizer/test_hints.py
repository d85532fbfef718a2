import pytest

from florence2.training.optimizer.hints import learning_rate_hints
from florence2.training.optimizer.optimizer_config import OptimizerConfig


@pytest.mark.parametrize(
    ("optim", "rate", "scheduler", "args", "hints"),
    [
        ("prodigy", 1e-4, "cosine", {}, ["pass `--learning_rate 1`"]),
        ("prodigy", 1.0, "cosine", {}, []),
        ("prodigy", 1e-4, "cosine", {"lr": 1.0}, []),
        ("DAdaptAdam", 1e-4, "cosine", {}, ["pass `--learning_rate 1`"]),
        ("prodigyplus.ProdigyPlusScheduleFree", 1e-4, "constant", {}, ["pass `--learning_rate 1`"]),
        ("lion", 1e-4, "cosine", {}, ["`--learning_rate` 1e-05 to 3e-05"]),
        ("lion_8bit", 1e-3, "cosine", {}, ["`--learning_rate` 0.0001 to 0.0003"]),
        ("lion", 3e-5, "cosine", {}, []),
        ("torch.optim.SGD", 1e-4, "cosine", {}, ["pass `--learning_rate 0.01` or more"]),
        ("adamw_torch", 1.0, "cosine", {}, ["pass `--learning_rate 1e-4`"]),
        ("adamw_torch", 1e-4, "cosine", {}, []),
        ("schedule_free_adamw", 1e-3, "cosine", {}, ["pass `--lr_scheduler_type constant_with_warmup`"]),
        ("schedule_free_adamw", 1e-3, "constant_with_warmup", {}, []),
        (
            "prodigyplus.ProdigyPlusScheduleFree",
            1e-4,
            "onecycle",
            {},
            ["--learning_rate 1", "--lr_scheduler_type constant"],
        ),
        ("package.OfMine", 7.0, "cosine", {}, []),
    ],
)
def test_unsuitable_learning_rates_and_schedules_get_hints(
    optim: str, rate: float, scheduler: str, args: dict[str, float], hints: list[str]
) -> None:
    lines = list(learning_rate_hints(OptimizerConfig(optim, rate, scheduler, args)))
    assert len(lines) == len(hints)
    assert all(hint in line for hint, line in zip(hints, lines, strict=True))
