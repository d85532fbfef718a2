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
    got = ours.normalize(ours.resize(image))
    assert got.dtype == torch.float32
    assert got.shape == (3, pixels, pixels)
    torch.testing.assert_close(got, theirs, atol=1e-5, rtol=0)


def test_pixels_with_microsofts_own_settings(processor):
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


def test_other_settings_are_honoured(processor):
    processor = with_images(
        processor, resample=2, rescale_factor=1 / 127.5, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    ours = Preprocessor.from_processor(processor)
    image = noise(90, 40)
    theirs = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours.normalize(ours.resize(image)), theirs, atol=1e-5, rtol=0)
    assert ours.resample == Image.Resampling.BILINEAR


def test_a_batch_is_normalized_like_its_images(preprocessor):
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
def test_steps_we_do_not_do_are_refused(processor, settings, named):
    with pytest.raises(UserError, match=named) as error:
        Preprocessor.from_processor(with_images(processor, **settings))
    assert error.value.hint


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_prompts_equal_transformers_processor(processor, preprocessor, task):
    words = {
        InputType.NOTHING: "",
        InputType.WORDS: " a red boat, and Straßen in 日本 ",
        InputType.REGION: "<loc_1><loc_20><loc_300><loc_999>",
    }
    said = words[task.input_type]
    theirs = processor(images=noise(8, 8), text=task.token + said, return_tensors="pt")["input_ids"][0].tolist()
    assert preprocessor.prompt_ids(task, said) == theirs


@pytest.mark.parametrize("text", ["a small red boat", "<VQA>how many?", "<GENERATE_TAGS>", "  spaced  ", "é ü 日本"])
def test_free_prompts_equal_transformers_processor(processor, preprocessor, text):
    theirs = processor(images=noise(8, 8), text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert preprocessor.prompt_ids(find_task(text)) == theirs


def test_prompt_longer_than_the_encoder_is_an_error(preprocessor):
    task = find_task("open_vocabulary_detection")
    ids = preprocessor.prompt_ids(task, "boat " * 10)
    assert preprocessor.prompt_ids(task, "boat " * 10, max_length=len(ids)) == ids
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens, the model takes \d+") as error:
        preprocessor.prompt_ids(task, "boat " * 10, max_length=len(ids) - 1)
    assert "Locate boat" in error.value.hint


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>"])
def test_layout_tokens_in_a_prompt_are_refused(preprocessor, token):
    with pytest.raises(UserError, match=f"the prompt holds the layout token `{token}`"):
        preprocessor.prompt_ids(find_task(f"what {token} is this"))


@pytest.mark.parametrize(
    "text", ["a red plate", "<loc_10><loc_20>car<loc_999>", "é ü 日本", "", "a<sep>b<poly>c</poly>"]
)
def test_targets_are_read_back(preprocessor, text):
    ids = preprocessor.target_ids(text)
    assert (ids[0], ids[-1]) == (0, 2)
    assert preprocessor.decode(ids) == text
    assert preprocessor.decode(torch.tensor([2, *ids, 1, 1])) == text
    assert preprocessor.decode([*ids, -100, preprocessor.image_token_id]) == text


def test_target_too_long_is_cut_before_the_end_token(preprocessor):
    whole, cut = preprocessor.encode_target("xyz" * 20)
    assert not cut
    assert preprocessor.encode_target("xyz" * 20, len(whole)) == (whole, False)
    ids, cut = preprocessor.encode_target("xyz" * 20, 10)
    assert cut
    assert ids == [*whole[:9], 2]
    assert preprocessor.target_ids("xyz" * 20, 10) == ids


def test_layout_tokens_in_a_caption_are_left_out(preprocessor):
    assert preprocessor.target_ids("<s>a boat</s><pad><pad> ") == preprocessor.target_ids("a boat")


def test_decode_equals_transformers_processor(processor, preprocessor):
    ids = preprocessor.target_ids("two cats<loc_1><loc_2><loc_3><loc_4>a dog , it 's<loc_5>")
    theirs = processor.batch_decode([ids], skip_special_tokens=False)[0].replace("<s>", "").replace("</s>", "")
    assert preprocessor.decode(ids) == theirs


def test_positions_are_read_from_the_config():
    model, _ = tiny_model()
    assert max_target_tokens(model.config) == 128


def test_it_travels_to_worker_processes(preprocessor):
    copy = pickle.loads(pickle.dumps(preprocessor))
    image = noise(30, 20)
    assert np.array_equal(copy.resize(image), preprocessor.resize(image))
    assert copy.target_ids("a boat") == preprocessor.target_ids("a boat")


def test_it_cannot_be_changed(preprocessor):
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
    places = [ours.image_token_id] * ours.num_image_tokens
    assert len(expected["prompts"]) == 16
    for asked in expected["prompts"].values():
        task, words = split_prompt(asked["text"])
        assert task.format_prompt(words) == asked["expanded"]
        assert ours.prompt_ids(task, words) == places + asked["input_ids"]


def test_targets_equal_the_original(original):
    ours, expected = original
    for text, ids in expected["labels"].items():
        assert ours.target_ids(text) == ids
        assert ours.decode(ids) == text


def test_pixels_equal_the_original(original):
    ours, _ = original
    known = load_file(FIXTURES / "tiny-legacy" / "expected.safetensors")
    assert (ours.size, ours.num_image_tokens) == ((96, 96), 10)
    for name, pixels in zip("ab", known["in.pixel_values"], strict=True):
        image = Image.fromarray(known[f"in.image_{name}"].numpy())
        torch.testing.assert_close(ours.normalize(ours.resize(image)), pixels, atol=1e-5, rtol=0)


PREPROCESSOR = Preprocessor.from_processor(tiny_processor())


@given(st.lists(st.integers(0, 1500), max_size=40))
def test_ids_say_where_they_stand(ids):
    text, spans = PREPROCESSOR.decode(ids), PREPROCESSOR.char_spans(ids)
    assert {place for span in spans for place in range(*span)} >= set(range(len(text.rstrip("\ufffd"))))
    for number, (start, end) in zip(ids, spans, strict=True):
        alone = PREPROCESSOR.tokenizer.decode([number], clean_up_tokenization_spaces=False)
        if start < end <= len(text) and "\ufffd" not in alone:
            assert text[start:end].strip().endswith(alone.strip())  # a broken letter may stand before it


def test_each_id_stands_on_its_own_characters(preprocessor):
    ids = preprocessor.target_ids("a cat<loc_12>日本!<loc_999>")
    text, spans = preprocessor.decode(ids), preprocessor.char_spans(ids)
    stood = [text[slice(*span)] for span in spans]
    assert stood == ["", "a", " ", "c", "at", "<loc_12>", *"日日日本本本", "!", "<loc_999>", ""]
