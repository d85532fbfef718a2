"""Eight captioned images and a model without dropout on disk, for tests of training."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from florence2.api import train
from tests.tiny import tiny_model

CAPTIONS = {
    "red sun": "red",
    "green leaf": "green",
    "blue sea": "blue",
    "white snow": "white",
    "black cat": "black",
    "yellow bus": "yellow",
    "pink pig": "pink",
    "grey stone": "grey",
}


def save_photos(folder: Path, number: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (caption, colour) in enumerate(list(CAPTIONS.items())[:number]):
        image = Image.new("RGB", (90, 70), colour)
        ImageDraw.Draw(image).rectangle((index * 8, 10, index * 8 + 20, 40), fill="orange")
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


def save_calm(folder: Path, dropout: float = 0.0) -> Path:
    """Write the tiny model with one rate for all its dropout, by default none, so that training is deterministic."""
    model, processor = tiny_model()
    text = model.config.text_config
    text.dropout = text.attention_dropout = text.activation_dropout = dropout
    model.config.vision_config.drop_path_rate = dropout
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(folder: Path, name: str = "out", **values: Any) -> Path:
    """Train on `folder/photos` with `folder/model` into `folder/name`."""
    paths = {"dataset": str(folder / "photos"), "model_id": str(folder / "model"), "output_dir": str(folder / name)}
    defaults = {"batch_size": 4, "epochs": 1, "device": "cpu", "learning_rate": 1e-3}
    return train(**(paths | defaults | values))
