"""What cannot be right about a learning rate or a schedule, given the optimizer, in a line each."""

from collections.abc import Iterator, Mapping
from typing import Any

# Families by what their names hold, and between which rates they are known to learn. What is not here is not judged.
_OWN_RATE = ("prodigy", "dadapt")
_SIGNS = ("lion", "tiger", "signsgd")
_PLAIN = ("sgd", "torch.optim.sgd")
_ADAMS = ("adam", "ademamix", "adopt", "lamb")
_AVERAGING = ("schedule_free", "schedulefree")
_CONSTANT = ("constant", "constant_with_warmup")


def check_learning_rate(optim: str, learning_rate: float, scheduler: str, given: Mapping[str, Any]) -> Iterator[str]:
    """Say which settings do not suit the optimizer; nothing is changed."""
    name, rate = optim.lower(), given.get("lr", learning_rate)
    if any(family in name for family in _OWN_RATE):
        if rate < 0.1:
            yield f"{optim} finds its learning rate itself and multiplies it by {rate:g}: pass `--learning_rate 1`"
    elif any(family in name for family in _SIGNS):
        if rate >= 1e-4:
            low, high = rate / 10, rate / 3
            yield (
                f"{optim} moves every weight by all of {rate:g}: where AdamW takes that, "
                f"`--learning_rate {low:.1g}` to {high:.1g} suits it"
            )
    elif name in _PLAIN and rate < 1e-3:
        yield f"{optim} does not scale gradients, and at {rate:g} hardly moves: pass `--learning_rate 0.01` or more"
    elif any(family in name for family in _ADAMS) and rate >= 0.1:
        yield f"{optim} at {rate:g} breaks what was learnt: pass `--learning_rate 1e-4` or near it"
    if any(family in name for family in _AVERAGING) and scheduler.lower() not in _CONSTANT:
        yield f"{optim} averages in place of a schedule: pass `--lr_scheduler_type constant_with_warmup`"
