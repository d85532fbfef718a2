"""The model of prediction equals transformers' model to the last bit, or is left to it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BartConfig
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from florence2.data.sample import Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig
from florence2.errors import UserError
from florence2.model.inference.architecture import Architecture, TextArchitecture, VisionArchitecture
from florence2.model.inference.load_inference_model import load_inference_model
from florence2.model.load import load
from florence2.model.processing import Preprocessor
from florence2.model.storage.checkpoint_files import find_folder
from tests.model.original import TINY, copy_tiny, edit_json
from tests.model.test_load import FAULTS, LAYOUTS, native_copy
from tests.tiny import save_tiny

CPU = torch.device("cpu")


def load_both(folder: Path, dtype: torch.dtype = torch.float32):
    folder = find_folder(str(folder))
    loaded = load_inference_model(folder, str(folder), dtype=dtype, device=CPU)
    assert loaded is not None
    model, processor = load(folder, dtype=dtype, device="cpu")
    return (model, Preprocessor.from_processor(processor)), loaded


@torch.inference_mode()
def assert_models_equal(theirs, ours, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels_BCHW = torch.randn(2, 3, size, size, generator=generator).to(theirs.dtype)
    features = [
        each.model.multi_modal_projector(each.model.vision_tower(pixels_BCHW).last_hidden_state)
        for each in (theirs, ours)
    ]
    assert torch.equal(*features)
    mask_BN = torch.ones(features[0].shape[:2], dtype=torch.long)
    mask_BN[0, -2:] = 0
    for mask in (None, mask_BN):
        states = [
            each.get_encoder()(inputs_embeds=features[0], attention_mask=mask).last_hidden_state
            for each in (theirs, ours)
        ]
        assert torch.equal(*states)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert ModelGenerationConfig.from_model(ours) == ModelGenerationConfig.from_model(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["demo", "tiny", "legacy", "untied"])
def test_modules_equal_those_of_transformers(name: str, dtype: torch.dtype, tmp_path: Path):
    folders = {"demo": lambda: "demo", "tiny": lambda: save_tiny(tmp_path), "legacy": lambda: copy_tiny(tmp_path)}
    folder = folders[name]() if name in folders else TINY / "exported"
    (theirs, their_preprocessor), (ours, preprocessor) = load_both(folder, dtype)
    assert_models_equal(theirs, ours, preprocessor.size[0])
    for field in dataclasses.fields(Preprocessor):
        if field.name != "tokenizer":
            assert getattr(preprocessor, field.name) == getattr(their_preprocessor, field.name)
    assert len(preprocessor.tokenizer) == len(their_preprocessor.tokenizer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout: str, tmp_path: Path):
    (theirs, _), (ours, preprocessor) = load_both(LAYOUTS[layout](tmp_path))
    assert_models_equal(theirs, ours, preprocessor.size[0])


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_predictions_equal(num_beams: int, dtype: torch.dtype):
    config = EngineConfig(generation=GenerationConfig(num_beams=num_beams), batch_size=3)
    images = [Image.effect_mandelbrot((90 + n, 120), (-2, -1.5, 1 + n / 9, 1.5), 50).convert("RGB") for n in range(3)]
    samples = [
        Sample(f"{n}.png", image, task, text)
        for n, image in enumerate(images)
        for task, text in (("caption", ""), ("od", ""), ("caption_to_phrase_grounding", "a red dot"))
    ]
    predictions = []
    for model, preprocessor in load_both("demo", dtype):
        with Engine(model, preprocessor, config) as engine:
            predictions.append(sorted(engine.run(samples), key=lambda each: each.key))
    assert predictions[0] == predictions[1]
    assert all(each.error is None for each in predictions[0])


@pytest.fixture(scope="module")
def preprocessors():
    (_, theirs), (_, ours) = load_both("demo")
    return theirs, ours


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(["<loc_1>", " ", "cat", "<poly>", "\n", "dogs", "é", "</ocr>"])).map("".join)
)
@settings(deadline=None, max_examples=60)
def test_tokenizers_are_equal(preprocessors, text: str):
    theirs, ours = preprocessors
    ids = ours.target_ids(text)
    assert ids == theirs.target_ids(text)
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.char_spans(ids) == theirs.char_spans(ids)


def test_defaults_are_those_of_transformers():
    for ours, theirs in ((VisionArchitecture(), Florence2VisionConfig()), (TextArchitecture(), BartConfig())):
        for name, value in dataclasses.asdict(ours).items():
            assert getattr(theirs, name) == value, name


UNUSUAL = {
    "relu": lambda folder: edit_json(folder / "config.json", text_config__activation_function="relu"),
    "no mean": lambda folder: edit_json(folder / "preprocessor_config.json", image_mean=None),
    "size of one side": lambda folder: edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 64}),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "word for a number": lambda folder: edit_json(folder / "config.json", text_config__encoder_layers="six"),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_is_unusual_is_left_to_transformers(case: str, tmp_path: Path):
    UNUSUAL[case](copy_tiny(tmp_path))
    assert load_inference_model(tmp_path, str(tmp_path), dtype=torch.float32, device=CPU) is None


def test_stages_must_agree():
    vision = {"depths": [1, 1], "embed_dim": [8, 16, 24]}
    assert Architecture.read({"vision_config": vision, "text_config": {}}) is None
    assert Architecture.read({"vision_config": {"num_heads": [3, 8, 16, 32]}, "text_config": {}}) is None
    assert Architecture.read({"vision_config": {}, "text_config": {}}) is not None


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_checkpoints_are_refused_by_the_same_words(case: str, tmp_path: Path):
    damage, message = FAULTS[case]
    damage(copy_tiny(tmp_path))
    with pytest.raises(UserError, match=message) as expected:
        load(tmp_path, device="cpu")
    if case in {"no tokenizer", "string for a number"}:  # found by transformers
        assert load_inference_model(tmp_path, str(tmp_path), dtype=torch.float32, device=CPU) is None
        return
    with pytest.raises(UserError) as caught:
        load_inference_model(tmp_path, str(tmp_path), dtype=torch.float32, device=CPU)
    assert (caught.value.what, caught.value.hint) == (expected.value.what, expected.value.hint)


def test_weights_survive_the_removal_of_their_file(tmp_path: Path):
    folder = native_copy(tmp_path)
    loaded = load_inference_model(folder, str(folder), dtype=torch.float32, device=CPU)
    assert loaded is not None
    before = {name: tensor.clone() for name, tensor in loaded[0].state_dict().items()}
    (folder / "model.safetensors").write_bytes(b"")
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded[0].state_dict().items())


HEAVY = ("transformers", "peft", "accelerate", "datasets", "huggingface_hub", "pandas", "scipy", "sklearn", "sympy")
HEAVY += ("bitsandbytes", "matplotlib", "pyarrow", "torch._dynamo", "torch._inductor", "wandb", "tensorflow")
SCRIPT = "import sys; from florence2.cli.program import main; code = main(sys.argv[1:]); print(code, *sys.modules)"


def modules_after(*arguments: object) -> set[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    assert output[0] == "0"
    return set(output[1:])


def test_a_caption_imports_only_what_it_needs(tmp_path: Path):
    """The first caption comes in a fraction of the time that transformers' imports alone take."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    output = tmp_path / "captions.jsonl"
    modules = modules_after("predict", "--model_path", "demo", "--input_path", tmp_path, "--output_path", output)
    assert '"text"' in output.read_text()
    assert "torch" in modules
    assert not modules & set(HEAVY)


def test_checking_a_dataset_imports_no_torch(tmp_path: Path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("a red square")
    modules = modules_after("data", "check", tmp_path)
    assert not modules & {*HEAVY, "torch"}
