"""`Engine` equals `generate` token for token on the bundled model, whatever runs in one batch.

This is the short form; FLORENCE2_LONG=1 runs 200 samples with 1, 2, 3 and 5 beams.
"""

import os
import random
from typing import Any

import pytest
import torch

from florence2.data.sample import Prediction, Sample
from florence2.demo.scenes import make_scene
from florence2.demo.targets import all_targets
from florence2.engine.decoding.decoder import TOP_LOGITS_FP32, Decoder
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.model.answer import Answer
from florence2.model.load import load
from florence2.model.tasks import TASKS, Task, find_task

LONG = bool(os.environ.get("FLORENCE2_LONG"))
FIRST_SCENE = 5_000_000


def scene_samples(count: int, tasks: tuple[Task, ...] = TASKS) -> list[Sample]:
    """Make samples of scenes outside the training set, of one task after the other."""
    requests: list[Sample] = []
    for number in range(FIRST_SCENE, FIRST_SCENE + count):
        scene = make_scene(number)
        targets = {target.task: target for target in all_targets(scene, number)}
        rotated = tasks[number % len(tasks) :] + tasks[: number % len(tasks)]
        target = next(targets[task.token] for task in rotated if task.token in targets)
        requests.append(Sample(f"{number}.png", scene.render(), target.task, target.input))
    return requests


def predict_all(
    kind: type[Engine] | type[GenerateEngine], requests: list[Sample], slots: int, **how
) -> list[Prediction]:
    dtype = how.pop("dtype", torch.float32)
    model, processor = load("demo", dtype=torch.float32 if dtype == torch.float64 else dtype, device="cpu")
    model.to(dtype)
    with kind(model, processor, EngineConfig(generation=GenerationConfig(**how), batch_size=slots)) as engine:
        return sorted(engine.run(requests), key=lambda prediction: prediction.file_name)


@pytest.mark.parametrize("num_beams", [1, 2, 3, 5] if LONG else [1, 3])
def test_engine_equals_generate_on_the_bundled_model(num_beams: int):
    requests = scene_samples(200 if LONG else 15)
    expected = predict_all(GenerateEngine, requests, 1, num_beams=num_beams)  # batches of `generate` round differently
    shuffled = random.Random(0).sample(requests, len(requests))
    for slots, order in ((16, requests), (3, shuffled), (1, requests[::-1])) if LONG else ((3, shuffled),):
        predictions = predict_all(Engine, order, slots, num_beams=num_beams)
        unlike = {
            one.file_name
            for one, other in zip(predictions, expected, strict=True)
            if comparable(one) != comparable(other)
        }
        # Of sequences whose scores differ in the last bits, float32 may return either; float64 decides.
        assert len(unlike) <= 0.01 * len(requests), unlike
        again = [sample for sample in requests if sample.id in unlike]
        exact = [
            predict_all(kind, again, slots, num_beams=num_beams, dtype=torch.float64)
            for kind in (Engine, GenerateEngine)
        ]
        assert [comparable(one) for one in exact[0]] == [comparable(other) for other in exact[1]]
        for one, other in zip(predictions, expected, strict=True):
            if one.file_name not in unlike:
                assert [one.score, *object_scores(one.answer)] == pytest.approx(
                    [other.score, *object_scores(other.answer)], rel=1e-3
                )


def comparable(prediction: Prediction) -> tuple[Any, ...]:
    return prediction.file_name, prediction.text, prediction.num_tokens, without_scores(prediction.answer)


def without_scores(answer: Answer | None) -> Any:
    return None if answer is None else [(item.rings, item.label) for item in answer]


def object_scores(answer: Answer | None) -> list[float]:
    """List the scores of objects, one for each."""
    if answer is None:
        return []
    assert answer.has_scores
    assert all(0 < score <= 1 for score in answer.scores)
    return answer.scores


def test_bfloat16_gives_nearly_the_same_captions():
    captions = tuple(find_task(name) for name in ("caption", "detailed_caption", "more_detailed_caption"))
    requests = scene_samples(200 if LONG else 15, captions)
    full, half = (predict_all(Engine, requests, 16, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    differ = [(one.text, other.text) for one, other in zip(full, half, strict=True) if one.text != other.text]
    assert len(differ) <= 0.01 * len(requests), differ


def test_top_logits_in_bfloat16_are_exact():
    model, _ = load("demo", dtype=torch.bfloat16, device="cpu")
    hidden = torch.randn(3, 2, model.config.text_config.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        logits = Decoder(model).logits(hidden)
    exact = (hidden.double() @ model.lm_head.weight.double().T).float()
    best = exact.topk(TOP_LOGITS_FP32 // 2).indices
    torch.testing.assert_close(logits.gather(-1, best), exact.gather(-1, best))
    torch.testing.assert_close(logits, exact, rtol=2**-7, atol=1e-3)
    assert not torch.allclose(logits, exact, rtol=1e-5)
