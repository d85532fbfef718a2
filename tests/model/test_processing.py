import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.processing import Preprocessor, max_target_tokens
from florence2.model.tasks import TASKS, InputType, find_task, split_prompt
from tests.tiny import tiny_model, tiny_processor

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def preprocessor(processor):
    return Preprocessor.from_processor(processor)


def with_images(processor, **settings):
    processor = pickle.loads(pickle.dumps(processor))
    for name, value in settings.items():
        setattr(processor.image_processor, name, value)
    return processor


def noise(width: int, height: int) -> Image.Image:
    rows = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rows)


SIZES = [(1, 1), (3, 3), (1, 50), (500, 3), (64, 64), (65, 63), (640, 480), (37, 911), (1024, 768)]


@pytest.mark.parametrize(
    ("width", "height", "pixels"),
    [(*size, 96) for size in SIZES] + [(1, 1, 768), (500, 3, 768), (97, 111, 768), (800, 600, 768)],
)
def test_pixels_equal_transformers_pil_processor(processor, width, height, pixels):
    processor = with_images(processor, size={"height": pixels, "width": pixels})
    ours = Preprocessor.from_processor(processor)
    image = noise(width, height)
    theirs = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    ours_CHW = ours.normalize(ours.resize(image))
    assert ours_CHW.dtype == torch.float32
    assert ours_CHW.shape == (3, pixels, pixels)
    torch.testing.assert_close(ours_CHW, theirs, atol=1e-5, rtol=0)


def test_pixels_with_microsofts_settings_equal_transformers(processor):
    settings = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "do_center_crop": False,
        "image_seq_length": 577,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": {"height": 768, "width": 768},
        "crop_size": {"height": 768, "width": 768},
    }
    processor = pickle.loads(pickle.dumps(processor))
    processor.image_processor = CLIPImageProcessorPil(**settings)
    ours = Preprocessor.from_processor(processor)
    image = noise(320, 200)
    theirs = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours.normalize(ours.resize(image)), theirs, atol=1e-5, rtol=0)
    assert ours.min_size == (768, 768)


def test_pixels_with_other_settings_equal_transformers(processor):
    processor = with_images(
        processor, resample=2, rescale_factor=1 / 127.5, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    ours = Preprocessor.from_processor(processor)
    image = noise(90, 40)
    theirs = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours.normalize(ours.resize(image)), theirs, atol=1e-5, rtol=0)
    assert ours.resample == Image.Resampling.BILINEAR


def test_batch_is_normalized_like_its_images(preprocessor):
    pixels = [preprocessor.resize(noise(20 + n, 30)) for n in range(3)]
    batch = preprocessor.normalize(torch.from_numpy(np.stack(pixels)))
    assert batch.shape == (3, 3, 64, 64)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for one, alone in zip(batch, pixels, strict=True):
        assert torch.equal(one, preprocessor.normalize(alone))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_center_crop": True}, "do_center_crop: true"),
        ({"do_pad": True}, "do_pad: true"),
        ({"do_resize": False}, "do_resize: false"),
        ({"do_rescale": False}, "do_rescale: false"),
        ({"do_normalize": False}, "do_normalize: false"),
        ({"size": {"shortest_edge": 224}}, "shortest_edge"),
        ({"size": {"height": 64, "width": 96}}, "64 x 96"),
        ({"resample": 77}, "resample: 77"),
    ],
)
def test_unsupported_steps_are_refused(processor, settings, named):
    with pytest.raises(UserError, match=named) as error:
        Preprocessor.from_processor(with_images(processor, **settings))
    assert error.value.hint


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_prompts_equal_transformers_processor(processor, preprocessor, task):
    inputs = {
        InputType.NOTHING: "",
        InputType.WORDS: " a red boat, and Straßen in 日本 ",
        InputType.REGION: "<loc_1><loc_20><loc_300><loc_999>",
    }
    task_input = inputs[task.input_type]
    theirs = processor(images=noise(8, 8), text=task.token + task_input, return_tensors="pt")["input_ids"][0].tolist()
    assert preprocessor.prompt_ids(task, task_input) == theirs


@pytest.mark.parametrize("text", ["a small red boat", "<VQA>how many?", "<GENERATE_TAGS>", "  spaced  ", "é ü 日本"])
def test_custom_prompts_equal_transformers_processor(processor, preprocessor, text):
    theirs = processor(images=noise(8, 8), text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert preprocessor.prompt_ids(find_task(text)) == theirs


def test_too_long_prompt_is_refused(preprocessor):
    task = find_task("open_vocabulary_detection")
    ids = preprocessor.prompt_ids(task, "boat " * 10)
    assert preprocessor.prompt_ids(task, "boat " * 10, max_length=len(ids)) == ids
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens, the model takes \d+") as error:
        preprocessor.prompt_ids(task, "boat " * 10, max_length=len(ids) - 1)
    assert "Locate boat" in error.value.hint
    with pytest.raises(UserError, match="the prompt has 50,"):
        preprocessor.prompt_ids(task, "boat " * 10_000, max_length=100)


def test_half_of_a_surrogate_pair_in_a_prompt_is_refused(preprocessor):
    with pytest.raises(UserError, match="surrogate pair"):
        preprocessor.prompt_ids(find_task("what is \ud83d this?"))


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>"])
def test_layout_tokens_in_a_prompt_are_refused(preprocessor, token):
    with pytest.raises(UserError, match=f"the prompt holds the layout token `{token}`"):
        preprocessor.prompt_ids(find_task(f"what {token} is this"))


@pytest.mark.parametrize(
    "text", ["a red plate", "<loc_10><loc_20>car<loc_999>", "é ü 日本", "", "a<sep>b<poly>c</poly>"]
)
def test_targets_survive_the_round_trip(preprocessor, text):
    ids = preprocessor.target_ids(text)
    assert (ids[0], ids[-1]) == (0, 2)
    assert preprocessor.decode(ids) == text
    assert preprocessor.decode(torch.tensor([2, *ids, 1, 1])) == text
    assert preprocessor.decode([*ids, -100, preprocessor.image_token_id]) == text


def test_too_long_target_is_truncated_before_the_end_token(preprocessor):
    ids, is_truncated = preprocessor.encode_target("xyz" * 20)
    assert not is_truncated
    assert preprocessor.encode_target("xyz" * 20, len(ids)) == (ids, False)
    shorter, is_truncated = preprocessor.encode_target("xyz" * 20, 10)
    assert is_truncated
    assert shorter == [*ids[:9], 2]
    assert preprocessor.target_ids("xyz" * 20, 10) == shorter
    for text in ("xyz é " * 50_000, "x" * 50_000):  # of which the end is not read
        every = preprocessor.target_ids(text)
        assert preprocessor.encode_target(text, 10) == ([*every[:9], 2], True)


def test_layout_tokens_in_a_caption_are_removed(preprocessor):
    assert preprocessor.target_ids("<s>a boat</s><pad><pad> ") == preprocessor.target_ids("a boat")


def test_decode_equals_transformers_processor(processor, preprocessor):
    ids = preprocessor.target_ids("two cats<loc_1><loc_2><loc_3><loc_4>a dog , it 's<loc_5>")
    theirs = processor.batch_decode([ids], skip_special_tokens=False)[0].replace("<s>", "").replace("</s>", "")
    assert preprocessor.decode(ids) == theirs


def test_max_target_tokens_is_the_number_of_decoder_positions():
    model, _ = tiny_model()
    assert max_target_tokens(model.config) == 128


def test_preprocessor_survives_pickling(preprocessor):
    copy = pickle.loads(pickle.dumps(preprocessor))
    image = noise(30, 20)
    assert np.array_equal(copy.resize(image), preprocessor.resize(image))
    assert copy.target_ids("a boat") == preprocessor.target_ids("a boat")


def test_preprocessor_is_frozen(preprocessor):
    with pytest.raises(dataclasses.FrozenInstanceError):
        preprocessor.size = (1, 1)


# --- against the original code's own processor -------------------------------------------------------------------


@pytest.fixture(scope="module")
def original():
    return Preprocessor.from_processor(load(FIXTURES / "tiny-legacy")[1]), json.loads(
        (FIXTURES / "tiny-legacy" / "expected_processing.json").read_text(encoding="utf-8")
    )


def test_prompts_equal_the_original(original):
    ours, expected = original
    image_tokens = [ours.image_token_id] * ours.num_image_tokens
    assert len(expected["prompts"]) == 16
    for row in expected["prompts"].values():
        task, task_input = split_prompt(row["text"])
        assert task.format_prompt(task_input) == row["expanded"]
        assert ours.prompt_ids(task, task_input) == image_tokens + row["input_ids"]


def test_targets_equal_the_original(original):
    ours, expected = original
    for text, ids in expected["labels"].items():
        assert ours.target_ids(text) == ids
        assert ours.decode(ids) == text


def test_pixels_equal_the_original(original):
    ours, _ = original
    tensors = load_file(FIXTURES / "tiny-legacy" / "expected.safetensors")
    assert (ours.size, ours.num_image_tokens) == ((96, 96), 10)
    for name, pixels in zip("ab", tensors["in.pixel_values"], strict=True):
        image = Image.fromarray(tensors[f"in.image_{name}"].numpy())
        torch.testing.assert_close(ours.normalize(ours.resize(image)), pixels, atol=1e-5, rtol=0)


PREPROCESSOR = Preprocessor.from_processor(tiny_processor())


@given(st.lists(st.integers(0, 1500), max_size=40))
def test_spans_of_ids_cover_the_text(ids):
    text, spans = PREPROCESSOR.decode(ids), PREPROCESSOR.char_spans(ids)
    assert {index for span in spans for index in range(*span)} >= set(range(len(text.rstrip("\ufffd"))))
    for token_id, (start, end) in zip(ids, spans, strict=True):
        alone = PREPROCESSOR.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if start < end <= len(text) and "\ufffd" not in alone:
            assert text[start:end].strip().endswith(alone.strip())  # an incomplete character may precede it


def test_span_of_each_id_has_its_characters(preprocessor):
    ids = preprocessor.target_ids("a cat<loc_12>日本!<loc_999>")
    text, spans = preprocessor.decode(ids), preprocessor.char_spans(ids)
    pieces = [text[slice(*span)] for span in spans]
    assert pieces == ["", "a", " ", "c", "at", "<loc_12>", *"日日日本本本", "!", "<loc_999>", ""]
