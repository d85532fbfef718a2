"""An export in transformers' layout, loaded by transformers alone in a process without this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from florence2 import api
from florence2.demo.scenes import make_scene
from florence2.model.load import load
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task

FOREIGN = """
import sys
sys.modules["florence2"] = None  # importing it fails
import json, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image, prompts, result = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
processor = AutoProcessor.from_pretrained(folder)
state = {}
for number, prompt in enumerate(json.loads(prompts)):
    inputs = processor(images=Image.open(image), text=prompt, return_tensors="pt")
    state[f"pixels.{number}"], state[f"ids.{number}"] = inputs["pixel_values"], inputs["input_ids"]
    state[f"generated.{number}"] = model.generate(**inputs, max_new_tokens=24)
    with torch.no_grad():
        state[f"logits.{number}"] = model(**inputs, decoder_input_ids=state[f"generated.{number}"]).logits
save_file({name: tensor.contiguous() for name, tensor in state.items()}, result)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "scene.png"
    make_scene(3).render().convert("RGB").save(path)
    return path


def foreign_outputs(folder: Path, image: Path, prompts: list[str], result: Path) -> dict[str, torch.Tensor]:
    words = [sys.executable, "-c", FOREIGN, str(folder), str(image), json.dumps(prompts), str(result)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return load_file(result)


def test_transformers_alone_computes_the_same(tmp_path: Path, image: Path) -> None:
    result = api.export(model_path="demo", output_path=str(tmp_path / "out"))
    assert (result.dtype, result.comparison.num_images) == ("float16", 3)
    names = ["more_detailed_caption", "od"]
    prompts = [find_task(name).token for name in names]
    found = foreign_outputs(tmp_path / "out", image, prompts, tmp_path / "found.safetensors")
    model, processor = load("demo", device="cpu")
    preprocessor = Preprocessor.from_processor(processor)
    with Image.open(image) as opened:
        pixel_values = preprocessor.normalize(preprocessor.resize(opened))[None]
    for number, name in enumerate(names):
        ids = torch.tensor([preprocessor.prompt_ids(find_task(name))])
        assert torch.equal(found[f"ids.{number}"], ids)
        torch.testing.assert_close(found[f"pixels.{number}"], pixel_values, atol=1e-6, rtol=0)
        inputs = {"pixel_values": found[f"pixels.{number}"], "input_ids": ids}
        generated = model.generate(**inputs, max_new_tokens=24)
        assert torch.equal(found[f"generated.{number}"], generated)
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=generated).logits
        torch.testing.assert_close(found[f"logits.{number}"], logits, atol=1e-5, rtol=0)
