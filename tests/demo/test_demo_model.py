"""The bundled model: its scores on held-out scenes, with transformers alone."""

import pytest
import torch
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2.demo.scenes import make_scene
from florence2.demo.targets import all_targets, caption
from florence2.model.processing import Preprocessor
from florence2.model.tasks import SPECIAL_TOKENS, TASKS
from tools.demo_model.scores import BUNDLED_MODEL, MIN_SCORES, score

EVAL_SEED = 7_000_000


@pytest.fixture(scope="module")
def bundled():
    model = Florence2ForConditionalGeneration.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    return model, Florence2Processor.from_pretrained(BUNDLED_MODEL)


def test_scores_reach_the_minimum(bundled):
    model, processor = bundled
    scenes = [make_scene(EVAL_SEED + i) for i in range(200)]
    tasks = sorted({name.split(":")[0] for name in MIN_SCORES})
    scores = score(model, Preprocessor.from_processor(processor), scenes, tasks)
    too_low = {name: scores[name] for name, minimum in MIN_SCORES.items() if scores[name] < minimum}
    assert not too_low, scores


def test_every_task_has_a_useful_score(bundled):
    model, processor = bundled
    scenes = [make_scene(EVAL_SEED + 1000 + i) for i in range(12)]
    scores = score(model, Preprocessor.from_processor(processor), scenes)
    assert {name.split(":")[0] for name in scores} == {task.name for task in TASKS}
    assert min(scores.values()) > 0.5, scores


def test_model_card_code_gives_the_caption(bundled):
    """The lines of the model card: processor, `generate` with the saved config, `post_process_generation`."""
    model, processor = bundled
    num_correct = 0
    for seed in range(EVAL_SEED + 2000, EVAL_SEED + 2006):
        scene = make_scene(seed)
        image = scene.render()
        inputs = processor(text="<CAPTION>", images=image, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=60)
        text = processor.batch_decode(ids, skip_special_tokens=False)[0]
        answer = processor.post_process_generation(text, task="<CAPTION>", image_size=image.size)["<CAPTION>"]
        num_correct += answer == caption(scene)
    assert num_correct >= 4


def test_generation_config_and_special_tokens_are_those_of_florence_2(bundled):
    model, processor = bundled
    config = model.generation_config
    assert (config.num_beams, config.no_repeat_ngram_size, config.early_stopping) == (3, 3, True)
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(ids[0], ids[0] + len(SPECIAL_TOKENS)))
    assert processor.image_token_id == ids[-1] + 1 == model.config.image_token_id
    assert processor.num_image_tokens == 65
    assert sum(file.stat().st_size for file in BUNDLED_MODEL.iterdir()) < 17 * 1024**2


def test_no_target_repeats_three_tokens(bundled):
    """Generation forbids such a text, so the model could never predict it."""
    _, processor = bundled
    for seed in range(100):
        for target in all_targets(make_scene(seed), seed):
            ids = processor.tokenizer(target.text).input_ids
            trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
            assert len(set(trigrams)) == len(trigrams), target.text
