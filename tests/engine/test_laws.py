"""The engine's law on the bundled model: token for token what `generate` says, whatever comes together.

Here in its short form; FLORENCE2_LONG=1 asks 200 questions, with 1, 2, 3 and 5 beams.
"""

import os
import random

import pytest
import torch

from florence2.data.sample import Prediction, Sample
from florence2.demo.scenes import scene
from florence2.demo.targets import all_truths
from florence2.engine.engine import Engine
from florence2.engine.options import EngineSettings, GenerationSettings
from florence2.engine.reference import Reference
from florence2.model.load import load
from florence2.model.tasks import TASKS, find_task

LONG = bool(os.environ.get("FLORENCE2_LONG"))
FIRST_SCENE = 5_000_000


def questions(count: int) -> list[Sample]:
    """Ask about scenes nobody has seen, one task after the other."""
    asked: list[Sample] = []
    for number in range(FIRST_SCENE, FIRST_SCENE + count):
        made = scene(number)
        truths = {told.task: told for told in all_truths(made, number)}
        tasks = TASKS[number % len(TASKS) :] + TASKS[: number % len(TASKS)]
        told = next(truths[task.token] for task in tasks if task.token in truths)
        asked.append(Sample(f"{number}.png", made.picture(), told.task, told.input))
    return asked


def answers(kind: type[Engine] | type[Reference], asked: list[Sample], slots: int, **how) -> list[Prediction]:
    model, processor = load("demo", dtype=how.pop("dtype", "float32"), device="cpu")
    with kind(model, processor, EngineSettings(generation=GenerationSettings(**how), batch_size=slots)) as engine:
        return sorted(engine.run(asked), key=lambda prediction: prediction.file_name)


@pytest.mark.parametrize("num_beams", [1, 2, 3, 5] if LONG else [1, 3])
def test_token_for_token_on_the_bundled_model(num_beams: int):
    asked = questions(200 if LONG else 15)
    wanted = answers(Reference, asked, 8, num_beams=num_beams)
    shuffled = random.Random(0).sample(asked, len(asked))
    for slots, order in ((16, asked), (3, shuffled), (1, asked[::-1])) if LONG else ((3, shuffled),):
        found = answers(Engine, order, slots, num_beams=num_beams)
        for one, other in zip(found, wanted, strict=True):
            assert (one.file_name, one.text, one.num_tokens) == (other.file_name, other.text, other.num_tokens)
            assert one.answer == other.answer
            assert one.score == pytest.approx(other.score, rel=1e-3)


def test_half_the_bits_say_nearly_the_same():
    asked = [question for question in questions(200 if LONG else 15) if "caption" in find_task(question.task).name]
    pairs = [
        (one.text == other.text, one.text, other.text)
        for one, other in zip(answers(Engine, asked, 4), answers(Engine, asked, 4, dtype=torch.bfloat16), strict=True)
    ]
    assert sum(same for same, *_ in pairs) >= 0.99 * len(pairs), pairs
