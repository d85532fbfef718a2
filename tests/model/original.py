"""The original code's outputs for the tiny checkpoint, and the comparison of a loaded model with them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny-legacy"
HUB = FIXTURES / "hub"
ROWS = 1500  # the original vocabulary size; the native one has `<image>` as well
IMAGE_TOKENS = 10
TOLERANCE = {"atol": 1e-4, "rtol": 0}


def expected(name: str = "expected") -> dict[str, torch.Tensor]:
    """Return the inputs of all cases, and the outputs of one without their prefix `out.`."""
    tensors = load_file(TINY / "expected.safetensors")
    inputs = {key: value for key, value in tensors.items() if key.startswith("in.")}
    outputs = load_file(TINY / f"{name}.safetensors")
    return inputs | {key.removeprefix("out."): value for key, value in outputs.items()}


def inputs_of(case: dict[str, torch.Tensor], prompt: str = "caption") -> dict[str, torch.Tensor]:
    ids = case[f"in.input_ids.{prompt}"]
    image = torch.full((len(ids), IMAGE_TOKENS), ROWS)
    return {"input_ids": torch.cat([image, ids], dim=1), "pixel_values": case["in.pixel_values"]}


@torch.no_grad()
def assert_equals_original(model, case: dict[str, torch.Tensor]) -> None:
    inputs = inputs_of(case)
    output = model(**inputs, decoder_input_ids=case["in.decoder_input_ids"])
    features = model.get_image_features(case["in.pixel_values"]).pooler_output
    torch.testing.assert_close(features, case["image_features"], **TOLERANCE)
    torch.testing.assert_close(output.encoder_last_hidden_state, case["encoder_last_hidden.caption"], **TOLERANCE)
    torch.testing.assert_close(output.logits[..., :ROWS], case["logits.caption"], **TOLERANCE)
    loss = model(**inputs, labels=case["in.labels"]).loss
    torch.testing.assert_close(loss, case["loss.caption"].reshape(()), **TOLERANCE)
    for key in (key for key in case if key.startswith("generate.") and not key.endswith("scores")):
        _, prompt, search = key.split(".")
        beams = {} if search == "beam3" else {"num_beams": 1}
        ids = model.generate(**inputs_of(case, prompt), max_new_tokens=24, **beams)
        assert ids.tolist() == case[key].tolist(), key


def copy_tiny(folder: Path, weights: str | None = "model.safetensors") -> Path:
    """Copy the tiny checkpoint with one file of weights, or without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in TINY.iterdir():
        if path.name in ("config.json", "generation_config.json", "preprocessor_config.json", weights) or (
            path.name.startswith("tokenizer")
        ):
            shutil.copyfile(path, folder / path.name)
    return folder


def split_weights(folder: Path, suffix: str) -> Path:
    """Replace the weights of a folder by two shards and an index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    source = folder / f"{stem}.{suffix}"
    state = load_file(source) if suffix == "safetensors" else torch.load(source, weights_only=True)
    names = sorted(state)
    weight_map = {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        path = folder / f"{stem}-0000{n}-of-00002.{suffix}"
        tensors = {name: state[name].contiguous() for name in part}
        save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
        weight_map |= dict.fromkeys(part, path.name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source.unlink()
    return folder


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file; `part__key` is a nested key."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *parts, key = name.split("__")
        content_part = content
        for part in parts:
            content_part = content_part[part]
        content_part[key] = value
    path.write_text(json.dumps(content))
