"""Hints on learning rates and schedules that do not suit the optimizer."""

from collections.abc import Iterator

from florence2.training.optimizer.optimizer_config import OptimizerConfig

# Parts of optimizer names, by family. An optimizer of no family gets no hint.
_RATE_FREE = ("prodigy", "dadapt")
_SIGN_BASED = ("lion", "tiger", "signsgd")
_SGD = ("sgd", "torch.optim.sgd")
_ADAM_LIKE = ("adam", "ademamix", "adopt", "lamb")
_AVERAGING = ("schedule_free", "schedulefree")
_CONSTANT = ("constant", "constant_with_warmup")


def learning_rate_hints(config: OptimizerConfig) -> Iterator[str]:
    """Yield a hint, a line each, for a learning rate or a schedule that does not suit the optimizer."""
    optim, name, rate = config.name, config.name.lower(), config.args.get("lr", config.learning_rate)
    if any(family in name for family in _RATE_FREE):
        if rate < 0.1:
            yield f"{optim} finds its learning rate itself and multiplies it by {rate:g}: pass `--learning_rate 1`"
    elif any(family in name for family in _SIGN_BASED):
        if rate >= 1e-4:
            low, high = rate / 10, rate / 3
            yield (
                f"{optim} moves every weight by {rate:g} in each step: where AdamW suits that, "
                f"pass `--learning_rate` {low:.1g} to {high:.1g}"
            )
    elif name in _SGD and rate < 1e-3:
        yield f"{optim} barely moves weights at {rate:g}: pass `--learning_rate 0.01` or more"
    elif any(family in name for family in _ADAM_LIKE) and rate >= 0.1:
        yield f"{optim} at {rate:g} destroys the pretrained weights: pass `--learning_rate 1e-4`"
    if any(family in name for family in _AVERAGING) and config.lr_scheduler_type.lower() not in _CONSTANT:
        yield f"{optim} averages weights in place of a schedule: pass `--lr_scheduler_type constant_with_warmup`"
