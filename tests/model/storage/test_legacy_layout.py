import gzip
import json

import pytest
import torch
from safetensors.torch import load_file

from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy
from tests.model.original import HUB, ROWS, TINY

PREFIX = "base_model.model."


def tiny_adapter():
    folder = TINY / "adapter"
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


def test_names_convert_in_both_directions():
    names = json.loads((TINY / "key_map.json").read_text())
    renames = {old: new for old, new in names.items() if new and "transposed" not in new}
    assert len(renames) == len(names) - 2
    assert {old: legacy.native_name(old) for old in renames} == renames
    assert {new: legacy.legacy_name(new) for new in renames.values()} == {new: old for old, new in renames.items()}


@pytest.mark.parametrize("name", ["microsoft-base", "microsoft-large"])
def test_names_of_real_checkpoints_survive_the_round_trip(name):
    shapes = json.loads(gzip.decompress((HUB / name / "shapes.json.gz").read_bytes()))
    shrunk = {key: [min(n, 3 + i) for i, n in enumerate(shape)] for key, shape in shapes.items()}
    state = {key: torch.zeros(shape) for key, shape in shrunk.items()}
    state[legacy.LOGITS_BIAS] = torch.zeros(1, 3)
    converted = legacy.to_legacy(legacy.to_native(state), vocab_size=3)
    assert {key: tensor.shape for key, tensor in converted.items()} == {
        key: tensor.shape for key, tensor in state.items()
    }


@pytest.mark.parametrize("folder", ["", "exported"])
def test_legacy_tensors_survive_the_round_trip(folder):
    model, _ = load(TINY / folder, device="cpu", dtype="float16")
    original = load_file(TINY / folder / "model.safetensors")
    converted = legacy.to_legacy(model.state_dict(), vocab_size=ROWS)
    assert converted.keys() == original.keys()
    for key, tensor in original.items():
        assert torch.equal(converted[key], tensor), key
        assert converted[key].is_contiguous()


@pytest.mark.parametrize("folder", [TINY, TINY / "exported"], ids=["hub", "exported"])
def test_legacy_config_survives_the_round_trip(folder):
    raw = checkpoint.read_json(folder / "config.json")
    model, _ = load(folder, device="cpu")
    converted = legacy.config_to_legacy(model.config.to_dict(), model.generation_config.to_dict())
    assert legacy.config_to_native(converted) == legacy.config_to_native(raw)
    for part in ("text_config", "vision_config"):
        common = converted[part].keys() & raw[part].keys()
        assert {key: converted[part][key] for key in common if key != "model_type"} == {
            key: raw[part][key] for key in common if key != "model_type"
        }
    assert converted["vocab_size"] == converted["text_config"]["vocab_size"] == ROWS
    assert set(legacy.GENERATION_KEYS) <= converted["text_config"].keys()


def test_config_without_required_key_is_refused():
    raw = checkpoint.read_json(TINY / "config.json")
    del raw["vision_config"]["dim_embed"]
    with pytest.raises(UserError, match="lacks 'dim_embed' in `vision_config`"):
        legacy.config_to_native(raw)
    with pytest.raises(UserError, match="`projection_dim` 48, where Florence-2 has 49"):
        legacy.config_to_native(raw | {"text_config": raw["text_config"] | {"d_model": 49}})


def test_adapter_names_convert_to_native():
    state, config = tiny_adapter()
    names = json.loads((TINY / "adapter_key_map.json").read_text())
    renamed, _ = legacy.adapter_to_native(state, config)
    assert set(renamed) == {names[key] for key in state}
    assert all(torch.equal(renamed[names[key]], tensor) for key, tensor in state.items())


def test_target_modules_of_adapter_become_full_paths():
    state, config = tiny_adapter()
    _, translated = legacy.adapter_to_native(state, config)
    assert len(translated["target_modules"]) == len(state) // 2
    assert "model.vision_tower.convs.0.conv" in translated["target_modules"]
    assert translated["task_type"] is None
    assert (translated["r"], translated["lora_alpha"]) == (config["r"], config["lora_alpha"])


def test_adapter_survives_the_round_trip():
    state, config = tiny_adapter()
    converted, translated = legacy.adapter_to_legacy(*legacy.adapter_to_native(state, config), vocab_size=ROWS)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in state.items())
    assert "vision_tower.convs.0.proj" in translated["target_modules"]


def test_patterns_and_saved_modules_are_converted():
    state = {
        f"{PREFIX}vision_tower.blocks.0.0.spatial_block.ffn.fn.net.fc1.lora_A.weight": torch.ones(2, 8),
        f"{PREFIX}language_model.model.encoder.layers.1.fc1.lora_A.weight": torch.ones(4, 8),
        f"{PREFIX}image_pos_embed.row_embeddings.weight": torch.ones(7, 32),
    }
    config = {
        "target_modules": "all-linear",
        "modules_to_save": ["image_pos_embed"],
        "rank_pattern": {"net.fc1": 2, "fc1": 4},
        "alpha_pattern": {".*encoder.*": 16},
        "exclude_modules": ["lm_head"],
    }
    _, translated = legacy.adapter_to_native(state, config)
    vision, language = (
        "model.vision_tower.blocks.0.0.spatial_block.ffn.fc1",
        "model.language_model.encoder.layers.1.fc1",
    )
    assert translated["target_modules"] == [language, vision]
    assert translated["rank_pattern"] == {vision: 2, language: 4}
    assert translated["alpha_pattern"] == {language: 16}
    assert translated["modules_to_save"] == ["model.multi_modal_projector.image_position_embed"]
    assert translated["exclude_modules"] is None


def test_adapter_of_output_layer_is_resized():
    state = {
        f"{PREFIX}lm_head.lora_A.weight": torch.ones(2, 5),
        f"{PREFIX}lm_head.lora_B.weight": torch.ones(10, 2),
        f"{PREFIX}model.vision_tower.convs.0.conv.lora_B.weight": torch.ones(10, 2, 1, 1),
    }
    longer = legacy.resize_adapter(state, 11)
    assert [list(tensor.shape) for tensor in longer.values()] == [[2, 5], [11, 2], [10, 2, 1, 1]]
    assert not longer[f"{PREFIX}lm_head.lora_B.weight"][10:].any()
    converted = legacy.resize_adapter(longer, 10)
    assert all(torch.equal(converted[key], tensor) for key, tensor in state.items())
