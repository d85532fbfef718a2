"""OpenVINO graphs equal torch in float32, and are near it in smaller dtypes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from florence2.data.sample import Sample
from florence2.demo.dataset import make_dataset
from florence2.demo.scenes import make_scene
from florence2.errors import CheckpointError, MissingPackageError, OptionError
from florence2.export.export_source import ExportSource
from florence2.export.openvino.openvino_target import write
from florence2.export.openvino.write_openvino import write_openvino
from florence2.export.runtime.load_exported import load_exported
from florence2.export.runtime.openvino_graphs import PARTS, OpenVINOGraphs, require_openvino
from florence2.model.load import load
from florence2.model.tasks import TASKS
from tests.export.graphs import FIRST_SCENE, logits_of, predict, step_difference, task_samples


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    write_openvino(*demo, folder)
    return folder


def test_logits_equal_torch(demo, exported: Path) -> None:
    difference = (logits_of(*load_exported(exported)) - logits_of(*demo)).abs().max()
    assert difference < 1e-4


def test_steps_with_the_cache_equal_one_pass(demo, exported: Path) -> None:
    assert step_difference(OpenVINOGraphs(exported, "float32"), demo[0].config.text_config.d_model) < 1e-4


@pytest.mark.parametrize("num_beams", [1, 3])
def test_tokens_equal_generate_for_all_tasks(demo, exported: Path, num_beams: int) -> None:
    samples = task_samples()
    assert len({sample.task for sample in samples}) == len(TASKS)
    found, expected = (predict(*each, num_beams, samples) for each in (load_exported(exported), demo))
    assert [(p.text, p.num_tokens) for p in found] == [(p.text, p.num_tokens) for p in expected]


def test_float16_halves_the_weights(demo, exported: Path, tmp_path: Path) -> None:
    write_openvino(*demo, tmp_path, dtype="float16")
    assert {path.name for path in (tmp_path / "openvino").glob("*.xml")} == {f"{part}_fp16.xml" for part in PARTS}
    sizes = [sum(path.stat().st_size for path in each.rglob("*.bin")) for each in (tmp_path, exported)]
    assert sizes[0] < 0.52 * sizes[1]
    samples = [Sample(f"{n}.png", make_scene(FIRST_SCENE + n).render(), "caption") for n in range(4)]
    found, expected = (predict(*each, 1, samples) for each in (load_exported(tmp_path), demo))
    assert [each.text for each in found] == [each.text for each in expected]


@pytest.mark.long
def test_the_command_calibrates_int8_and_prints_nothing_else(demo, exported: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "images", num_samples=12, seed=1)
    output = tmp_path / "int8"
    command = [sys.executable, "-m", "florence2", "export", "--model_path", "demo", "--to", "openvino"]
    command += ["--dtype", "int8", "--images", str(tmp_path / "images"), "--output_path", str(output), "--json"]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["comparison"]["num_images"] == 3
    assert "calibrating the vision tower on 12 images" in run.stderr
    sizes = [sum(path.stat().st_size for path in each.rglob("*.bin")) for each in (output, exported)]
    assert sizes[0] < 0.35 * sizes[1]
    samples = [Sample(f"{n}.png", make_scene(FIRST_SCENE + n).render(), "caption") for n in range(4)]
    found, expected = (predict(*each, 1, samples) for each in (load_exported(output), demo))
    assert [each.text for each in found] == [each.text for each in expected]


def test_errors_say_what_to_do(demo, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="needs images to calibrate"):
        write_openvino(*demo, tmp_path, dtype="int8")
    with pytest.raises(OptionError, match="cannot be split"):
        write(ExportSource.load("demo"), tmp_path / "split", "float32", "1MB")
    (tmp_path / "openvino").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match="has no `vision_encoder"):
        load_exported(tmp_path)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'florence2\[openvino\]'"):
        require_openvino("this")
