"""Checkpoints that someone made to run code, to take memory, or to read files elsewhere; and damaged ones."""

import contextlib
import json
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from florence2.errors import CheckpointError
from florence2.model.inference.load_inference_model import load_inference_model
from florence2.model.load import load
from tests.tiny import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
LEGACY = ROOT / "tests" / "fixtures" / "tiny-legacy"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


class Canary:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_pickle_that_runs_code_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (checkpoint / "model.safetensors").unlink()
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"model.weight": Canary(canary)}, checkpoint / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"could run code|is damaged"):
            load(checkpoint, device="cpu")
        assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary works"


def test_remote_code_is_not_imported(checkpoint: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "code.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n")
    (checkpoint / "processor_config.json").write_text(
        json.dumps(
            {
                **json.loads((checkpoint / "processor_config.json").read_text()),
                "auto_map": {"AutoProcessor": "code.Processor"},
            }
        )
    )
    load(checkpoint, device="cpu")
    assert not canary.exists()


def test_adapter_imports_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft imports what `megatron_core` names where there is a `megatron_config`."""
    adapter = Path(shutil.copytree(LEGACY / "adapter", tmp_path / "adapter"))
    (tmp_path / "canary_module.py").write_text("raise SystemExit('the module ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(adapter / "adapter_config.json", "megatron_core", value="canary_module")
    load(adapter, device="cpu", base=LEGACY)
    edit(adapter / "adapter_config.json", "megatron_config", value={"x": 1})
    with pytest.raises(CheckpointError, match="sets `megatron_config`"):
        load(adapter, device="cpu", base=LEGACY)
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank_pattern", 3),
        ("rank_pattern", {"fc1": "x"}),
        ("alpha_pattern", {"(": 2}),
        ("rank_pattern", {r"(\w+\.?)+!": 4}),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("modules_to_save", 7),
        ("r", -1),
        ("r", 2**63),
        ("lora_dropout", [1]),
        ("bias", {"a": 1}),
        ("init_lora_weights", [1]),
    ],
)
def test_absurd_settings_of_an_adapter_are_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    adapter = Path(shutil.copytree(LEGACY / "adapter", tmp_path / "adapter"))
    edit(adapter / "adapter_config.json", key, value=value)
    with pytest.raises(CheckpointError) as caught:
        load(adapter, device="cpu", base=LEGACY)
    assert "\n" not in caught.value.what


def test_index_reads_no_file_outside_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    weights = (checkpoint / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = list(load_file(weights))
    for name in ("../outside.safetensors", str(weights)):
        index = {"weight_map": dict.fromkeys(names, name)}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="outside"):
            load(checkpoint, device="cpu")


def edit(path: Path, *keys: str, value: Any) -> None:
    content = json.loads(path.read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("config.json", ("text_config", "decoder_layers"), 10**9),
        ("config.json", ("text_config", "d_model"), 10**12),
        ("config.json", ("text_config", "max_position_embeddings"), 2**40),
        ("config.json", ("vision_config", "depths"), [1, 1, 10**9, 1]),
        ("config.json", ("vision_config", "embed_dim"), [2**40, 16, 24, 32]),
        ("config.json", ("vision_config", "patch_stride"), [0, 2, 2, 2]),
        ("config.json", ("vision_config",), "davit"),
        ("config.json", ("vision_config", "num_heads"), [1, 0, 1, 1]),
        ("config.json", ("text_config", "encoder_attention_heads"), 0),
        ("config.json", ("text_config", "activation_function"), "ge|u"),
        ("processor_config.json", ("image_processor", "size", "height"), 10**6),
        ("processor_config.json", ("image_processor", "size"), None),
        ("processor_config.json", ("image_processor", "image_std"), [0, 1, 1]),
        ("processor_config.json", ("image_processor", "rescale_factor"), "x"),
        ("processor_config.json", ("post_processor_config",), 7),
        ("generation_config.json", ("eos_token_id",), 10**6),
        ("generation_config.json", ("no_repeat_ngram_size",), -3),
        ("tokenizer_config.json", ("model_max_length",), [1]),
    ],
)
def test_absurd_settings_are_refused_in_one_line_that_names_the_file(
    checkpoint: Path, file: str, keys: tuple[str, ...], value: Any
) -> None:
    edit(checkpoint / file, *keys, value=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(CheckpointError):  # or leave it to `load`
        load_inference_model(checkpoint, "tiny", dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint, device="cpu")
    assert "config.json" in caught.value.what or "wrongly shaped" in caught.value.what
    assert "\n" not in caught.value.what
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000 + "]" * 100_000], ids=["digits", "nested"])
def test_json_that_python_does_not_represent_is_refused(checkpoint: Path, value: str) -> None:
    (checkpoint / "config.json").write_text(f'{{"vision_config": {value}}}')
    with pytest.raises(CheckpointError, match=r"config.json` cannot be read: (an integer|values)"):
        load(checkpoint, device="cpu")


@pytest.mark.parametrize("key", ["visual_temporal_embedding", "image_pos_embed"])
def test_positions_that_are_no_object_are_refused(tmp_path: Path, key: str) -> None:
    checkpoint = Path(shutil.copytree(LEGACY, tmp_path / "checkpoint"))
    edit(checkpoint / "config.json", "vision_config", key, value="COSINE")
    with pytest.raises(CheckpointError, match=f"has `{key}: COSINE`"):
        load_inference_model(checkpoint, "tiny", dtype=torch.float32, device=torch.device("cpu"))


def test_location_tokens_out_of_order_are_refused(checkpoint: Path) -> None:
    text = (checkpoint / "tokenizer.json").read_text()
    swapped = text.replace('"<loc_5>"', '"<loc_x>"').replace('"<loc_6>"', '"<loc_5>"').replace('"<loc_x>"', '"<loc_6>"')
    (checkpoint / "tokenizer.json").write_text(swapped)
    with pytest.raises(CheckpointError, match=r"gives `<loc_5>` the id"):
        load(checkpoint, device="cpu")


def test_lying_header_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    for header_size in (2**60, len(data), 3):
        path.write_bytes(header_size.to_bytes(8, "little") + data[8:])
        with pytest.raises(CheckpointError, match="is damaged"):
            load(checkpoint, device="cpu")


def test_archive_with_compressed_weights_is_not_unpacked(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    path = checkpoint / "pytorch_model.bin"
    torch.save({"x": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(1 << 30) if name.endswith("data/0") else content)
    assert path.stat().st_size < 4 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load(checkpoint, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def make_checkpoints(folder: Path) -> Path:
    """Write a checkpoint of each layout and file format."""
    save_tiny(folder / "native")
    model, processor = tiny_model()
    model.save_pretrained(folder / "sharded", max_shard_size="300KB")
    processor.save_pretrained(folder / "sharded")
    for name, weights in (("legacy", "model.safetensors"), ("pickled", "pytorch_model.bin")):
        (folder / name).mkdir()
        for path in (*LEGACY.glob("*config.json"), LEGACY / "tokenizer.json", LEGACY / "vocab.json", LEGACY / weights):
            shutil.copy(path, folder / name)
    return folder


def run_mutations(folder: Path, first: int, last: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.faults.mutate_checkpoints", str(folder), str(first), str(last)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_mutated_checkpoints_are_refused_or_predict(tmp_path: Path) -> None:
    result = run_mutations(make_checkpoints(tmp_path), 0, 40)
    assert result["failures"] == []
    assert result["endings"]["refused"] > 10
    assert result["endings"]["predicts"] > 5


@pytest.mark.long
def test_a_thousand_mutated_checkpoints_are_refused_or_predict(tmp_path: Path) -> None:
    result = run_mutations(make_checkpoints(tmp_path), 0, 1000)
    assert result["failures"] == []
    assert sum(result["endings"].values()) == 1000


def test_tied_weights_that_differ_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    state = load_file(path)
    state["model.language_model.encoder.embed_tokens.weight"] = state["model.language_model.shared.weight"] + 1
    save_file(state, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="differ"):
        load(checkpoint, device="cpu")
