"""The bundled model really answers: its scores on scenes it never saw, through transformers alone."""

from pathlib import Path

import pytest
import torch
from transformers import Florence2ForConditionalGeneration, Florence2Processor

import florence2.demo
from florence2.demo.scenes import make_scene
from florence2.demo.scores import WANTED, score
from florence2.demo.targets import all_targets, caption
from florence2.model.processing import Preprocessor
from florence2.model.tasks import SPECIAL_TOKENS, TASKS

FOLDER = Path(florence2.demo.__file__).parent / "model"
FRESH_SEED = 7_000_000


@pytest.fixture(scope="module")
def bundled():
    model = Florence2ForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, Florence2Processor.from_pretrained(FOLDER)


def test_scores_on_fresh_scenes(bundled):
    model, processor = bundled
    scenes = [make_scene(FRESH_SEED + i) for i in range(200)]
    tasks = sorted({name.split(":")[0] for name in WANTED})
    scores = score(model, Preprocessor.from_processor(processor), scenes, tasks)
    short = {name: scores[name] for name, wanted in WANTED.items() if scores[name] < wanted}
    assert not short, scores


def test_all_tasks_answer(bundled):
    model, processor = bundled
    scores = score(
        model, Preprocessor.from_processor(processor), [make_scene(FRESH_SEED + 1000 + i) for i in range(12)]
    )
    assert {name.split(":")[0] for name in scores} == {task.name for task in TASKS}
    assert min(scores.values()) > 0.5, scores


def test_answers_as_the_model_card_does(bundled):
    """The published lines: processor, `generate` with the saved settings, `post_process_generation`."""
    model, processor = bundled
    right = 0
    for seed in range(FRESH_SEED + 2000, FRESH_SEED + 2006):
        made = make_scene(seed)
        image = made.render()
        inputs = processor(text="<CAPTION>", images=image, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=60)
        text = processor.batch_decode(ids, skip_special_tokens=False)[0]
        told = processor.post_process_generation(text, task="<CAPTION>", image_size=image.size)["<CAPTION>"]
        right += told == caption(made)
    assert right >= 4


def test_settings_are_those_of_florence_2(bundled):
    model, processor = bundled
    settings = model.generation_config
    assert (settings.num_beams, settings.no_repeat_ngram_size, settings.early_stopping) == (3, 3, True)
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(ids[0], ids[0] + len(SPECIAL_TOKENS)))
    assert processor.image_token_id == ids[-1] + 1 == model.config.image_token_id
    assert processor.num_image_tokens == 65
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 17 * 1024**2


def test_no_text_repeats_three_tokens(bundled):
    """Generation forbids it, so such a text could never be said."""
    _, processor = bundled
    for seed in range(100):
        for told in all_targets(make_scene(seed), seed):
            ids = processor.tokenizer(told.text).input_ids
            threes = list(zip(ids, ids[1:], ids[2:], strict=False))
            assert len(set(threes)) == len(threes), told.text
