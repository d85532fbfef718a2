"""The models of benchmarks: the bundled one, and random weights at real size; exported for the rivals that need it.

    python -m benchmarks.benchmark_models base openvino int8 FOLDER

writes an export; rivals do so in a process of its own, so that it does not count as their memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor, GenerationConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import florence2
from florence2.api import export
from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.export.onnx.write_onnx import write_onnx
from florence2.export.openvino.write_openvino import write_openvino
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.checkpoint_files import read_tokenizer

BUNDLED = "demo"
SIZES = ("base", "large", "tiny")  # of random weights; the last to test a script
HUB = Path(__file__).parents[1] / "tests" / "fixtures" / "hub"
TINY_CONFIG = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
TINY_CONFIG |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
FIRST_CALIBRATION_SCENE, NUM_CALIBRATION_SCENES = 5_000_000, 8


def load_model(size: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Load the bundled model, or create a random one."""
    return florence2.load(BUNDLED, dtype=dtype, device=device) if size == BUNDLED else random_model(size, device, dtype)


def random_model(size: str, device: str, dtype: str) -> tuple[Any, Florence2Processor]:
    """Create the real architecture with random weights, and the real tokenizer."""
    source = "large" if size == "large" else "base"
    config = legacy.config_to_native(json.loads((HUB / f"microsoft-{source}" / "config.json").read_text()))
    tokenizer = read_tokenizer(HUB / "microsoft-large")  # the same bytes as base
    if size == "tiny":
        config["text_config"] |= TINY_CONFIG
        config["vision_config"] |= {"embed_dim": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "projection_dim": 32}
        config["vision_config"] |= {"num_heads": (1, 2, 4, 8), "num_groups": (1, 2, 4, 8)}
    config["text_config"]["vocab_size"] = len(tokenizer)
    config["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model: Any = Florence2ForConditionalGeneration(Florence2Config(**config)).eval()
    with torch.no_grad():  # otherwise all tokens are about equally likely, unlike in a real search
        model.model.language_model.shared.weight.mul_(8)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model.generation_config = GenerationConfig(**ids, forced_bos_token_id=0, no_repeat_ngram_size=3)
    images = CLIPImageProcessorPil(
        size={"height": 768, "width": 768},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_seq_length=577,
    )
    return model.to(device, getattr(torch, dtype)), Florence2Processor(images, tokenizer)


def write_export(size: str, target: str, dtype: str, folder: Path) -> None:
    """Export a model to `onnx` or `openvino`; for `microsoft`, write that layout and transformers' beside it."""
    model, processor = load_model(size, "cpu", "float32")
    if target == "onnx":
        write_onnx(model, processor, folder, dtype=dtype)
    elif target == "openvino":
        numbers = range(FIRST_CALIBRATION_SCENE, FIRST_CALIBRATION_SCENE + NUM_CALIBRATION_SCENES)
        samples = [Sample(f"{number}.png", make_scene(number).render(), "caption") for number in numbers]
        write_openvino(model, processor, folder, dtype=dtype, samples=samples)
    else:
        for part in (model, processor):
            part.save_pretrained(folder / "transformers")
        export(model_path=str(folder / "transformers"), output_path=str(folder / target), to=target)  # type: ignore[arg-type]


if __name__ == "__main__":
    write_export(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
