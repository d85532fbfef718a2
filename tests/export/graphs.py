"""What the tests of exported graphs share: samples of all tasks, and the numbers of a model on them."""

from typing import Any

import numpy as np
import torch

from florence2.data.sample import Prediction, Sample
from florence2.demo.scenes import make_scene
from florence2.demo.targets import all_targets
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.export.runtime.exported_model import Graphs
from florence2.model.tasks import TASKS

FIRST_SCENE = 5_000_000


def task_samples() -> list[Sample]:
    """Make one sample of each task, of the first scene that has a target of it."""
    samples = []
    for number, task in enumerate(TASKS):
        for seed in range(FIRST_SCENE + 10 * number, FIRST_SCENE + 10 * number + 10):
            targets = [each for each in all_targets(make_scene(seed), seed) if each.task == task.token]
            if targets:
                samples.append(Sample(f"{seed}.png", make_scene(seed).render(), task.token, targets[0].input))
                break
    return samples


def predict(model: Any, processor: Any, num_beams: int, samples: list[Sample]) -> list[Prediction]:
    config = EngineConfig(generation=GenerationConfig(num_beams=num_beams), batch_size=4)
    with GenerateEngine(model, processor, config) as engine:
        return list(engine.run(samples))


def logits_of(model: Any, processor: Any, seed: int = 0, batch: int = 2) -> torch.Tensor:
    """Compute logits of random images and ids; the second prompt is padded."""
    generator = torch.Generator().manual_seed(seed)
    size = processor.image_processor.size["height"]
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    prompt = torch.full((batch, processor.num_image_tokens + 6), processor.image_token_id)
    prompt[:, -6:] = torch.randint(4, 300, (batch, 6), generator=generator)
    mask = torch.ones_like(prompt)
    mask[1:, -2:] = 0
    ids = torch.randint(4, 300, (batch, 9), generator=generator)
    with torch.inference_mode():
        return model(input_ids=prompt, pixel_values=pixels, attention_mask=mask, decoder_input_ids=ids).logits


def step_difference(graphs: Graphs, width: int) -> float:
    """Decode seven tokens at once and in steps with the cache; return the largest difference of logits."""
    generator = np.random.default_rng(0)
    states = generator.standard_normal((2, 30, width)).astype(np.float32)
    embeds = generator.standard_normal((2, 7, width)).astype(np.float32)
    mask = np.ones((2, 30), np.int64)
    mask[1, 20:] = 0
    expected = graphs.decode(embeds, states, mask, {})["logits"]
    outputs = graphs.decode(embeds[:, :2], states, mask, {})
    logits = [outputs.pop("logits")]
    past = {key.replace("present", "past_key_values"): value for key, value in outputs.items()}
    for start, end in ((2, 3), (3, 6), (6, 7)):
        outputs = graphs.decode(embeds[:, start:end], np.zeros_like(states), mask, past)
        past |= {key.replace("present", "past_key_values"): outputs[key] for key in outputs if "decoder" in key}
        logits.append(outputs["logits"])
    return float(np.abs(np.concatenate(logits, axis=1) - expected).max())
