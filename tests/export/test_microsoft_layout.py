"""An export in Microsoft's layout: files, tensors and outputs of the original code's checkpoint come back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence2 import api
from florence2.config import ExportSettings
from florence2.errors import UserError
from florence2.export.export_targets import TARGETS
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy
from tests.export.adapters import trained_adapter
from tests.model.original import HUB, TINY, assert_equals_original, edit_json, expected
from tests.tiny import tiny_model

LAYERS_AND_HEADS = (
    *("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
    "num_hidden_layers",
)
# What names a machine, a revision of the code, or nothing that is read.
IGNORED = ("auto_map", "_name_or_path", "transformers_version", "_valid_processor_keys", "rescale_factor")


def export(source: Path | str, folder: Path, **options: str) -> Path:
    api.export(model_path=str(source), output_path=str(folder), to="microsoft", **options)
    return folder


def settings_of(path: Path) -> dict[str, object]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in IGNORED}


def test_original_checkpoint_comes_back_byte_for_byte(tmp_path: Path) -> None:
    folder = export(TINY, tmp_path / "out")
    assert (folder / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    assert settings_of(folder / "config.json") == settings_of(TINY / "config.json")
    assert settings_of(folder / "preprocessor_config.json") == settings_of(TINY / "preprocessor_config.json")
    assert json.loads((folder / "vocab.json").read_text()) == json.loads((TINY / "vocab.json").read_text())
    assert not list(folder.glob("*.py"))
    model, _ = load(folder, device="cpu")
    assert_equals_original(model, expected())


def test_fine_tune_of_the_original_code_keeps_its_output_layer(tmp_path: Path) -> None:
    folder = export(TINY / "exported", tmp_path / "out")
    found, stored = load_file(folder / "model.safetensors"), load_file(TINY / "exported" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    # Microsoft's code ties the output layer by default; without ties it needs the embedding under each of its names.
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    copies = {f"language_model.model.{part}.embed_tokens.weight" for part in ("encoder", "decoder")}
    assert found.keys() == stored.keys() | copies
    assert all(torch.equal(found[name], found["language_model.model.shared.weight"]) for name in copies)
    assert "ComfyUI-Florence2 ties the two" in (folder / "README.md").read_text()
    model, _ = load(folder, device="cpu")
    assert_equals_original(model, expected("expected_exported"))


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "300KB"}, {"dtype": "float32"}], ids=str)
def test_adapter_is_merged_and_comes_back(tmp_path: Path, options: dict[str, str]) -> None:
    adapter = trained_adapter(tmp_path)
    folder = export(adapter, tmp_path / "out", **options)
    merged, _ = load(adapter, device="cpu")
    again, processor = load(folder, device="cpu")
    assert checkpoint.read_json(folder / "config.json")["torch_dtype"] == "float32"
    assert (folder / "model.safetensors.index.json").exists() == ("max_shard_size" in options)
    for name, tensor in merged.state_dict().items():
        rows = slice(processor.image_token_id if tensor.shape[0] == len(processor.tokenizer) else None)
        assert torch.equal(again.state_dict()[name][rows], tensor[rows]), name
    assert again.generation_config.to_diff_dict() == merged.generation_config.to_diff_dict()
    assert len(processor.tokenizer) == processor.image_token_id + 1


def narrow_copy(name: str, folder: Path) -> Path:
    """Copy the small files of a hub repository, with a model that is eight numbers wide."""
    folder.mkdir()
    for path in (HUB / name).glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "tokenizer.json").write_bytes((HUB / "microsoft-large" / "tokenizer.json").read_bytes())
    vision = {f"vision_config__{key}": [1] * 4 for key in ("depths", "num_heads", "num_groups")}
    sizes = ("encoder_ffn_dim", "decoder_ffn_dim", "d_model")
    text = {f"text_config__{key}": 8 for key in sizes} | {f"text_config__{key}": 1 for key in LAYERS_AND_HEADS}
    narrow = {"projection_dim": 8, "vision_config__projection_dim": 8, "vision_config__dim_embed": [8] * 4}
    edit_json(folder / "config.json", **vision, **text, **narrow)
    raw = checkpoint.read_json(folder / "config.json")
    parts = legacy.config_to_native(raw)
    parts["text_config"]["vocab_size"] = raw["vocab_size"]
    state = Florence2ForConditionalGeneration(Florence2Config(**parts)).state_dict()
    renamed = legacy.to_legacy({key: tensor.half() for key, tensor in state.items()}, raw["vocab_size"])
    save_file({key: tensor.clone() for key, tensor in renamed.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", [pytest.param("microsoft-base", marks=pytest.mark.long), "microsoft-large"])
def test_files_of_the_hub_come_back(tmp_path: Path, name: str) -> None:
    source = narrow_copy(name, tmp_path / name)
    folder = export(source, tmp_path / "out")
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        assert settings_of(folder / file) == settings_of(source / file), file
    found, hub = (Tokenizer.from_file(str(each / "tokenizer.json")) for each in (folder, source))
    assert found.get_vocab() == hub.get_vocab()
    assert {n: t.content for n, t in found.get_added_tokens_decoder().items()} == {
        n: t.content for n, t in hub.get_added_tokens_decoder().items()
    }
    text = "What does the region <loc_1> describe? Ærøskøbing, 3 km"
    assert found.encode(text).ids == hub.encode(text).ids


def test_code_is_named_and_not_copied(tmp_path: Path) -> None:
    folder = export("demo", tmp_path / "out")
    auto_map = checkpoint.read_json(folder / "config.json")["auto_map"]
    assert auto_map["AutoConfig"] == "microsoft/Florence-2-base-ft--configuration_florence2.Florence2Config"
    assert "microsoft/Florence-2-base-ft" in (folder / "README.md").read_text()


def test_added_token_is_refused_by_name(tmp_path: Path) -> None:
    model, processor = tiny_model()
    processor.tokenizer.add_tokens(["<mine>"])
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no place for the token `<mine>`"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_table_of_targets_equals_the_flag() -> None:
    targets = ExportSettings.__dataclass_fields__["to"].type
    assert set(TARGETS) == set(targets.__args__)


def test_dtype_that_a_target_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`--to microsoft` has no `--dtype int8`"):
        export("demo", tmp_path / "out", dtype="int8")
