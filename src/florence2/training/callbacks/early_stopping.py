"""Early stopping after several evaluations without a better metric."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from florence2.log import logger
from florence2.training.saving.checkpoints import STATE


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Stops training after `patience` evaluations in a row without a better `metric_for_best_model`.

    The evaluations are counted in the trainer's log, so a resumed run continues to count.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def stopped_at(self, checkpoint: Path, args: TrainingArguments) -> bool:
        """Return whether a run had stopped early when it wrote a checkpoint."""
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        return evaluations_since_best(args, state) >= self.patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Stop if the last evaluations have not improved the metric."""
        if evaluations_since_best(args, state) >= self.patience and state.global_step < state.max_steps:
            control.should_training_stop = True
            if state.is_world_process_zero:
                evaluations = "evaluation" if self.patience == 1 else "evaluations"
                metric = str(args.metric_for_best_model).replace("_", " ")
                logger.info(
                    f"stopped at step {state.global_step}: {self.patience} {evaluations} without a better {metric}"
                )
        return control


def evaluations_since_best(args: TrainingArguments, state: TrainerState) -> int:
    """Count the evaluations after the one with the best metric."""
    metric, sign = args.metric_for_best_model, 1 if args.greater_is_better else -1
    values = [row[metric] * sign for row in state.log_history if metric in row]
    return len(values) - 1 - values.index(max(values)) if values else 0
