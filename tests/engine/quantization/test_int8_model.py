import json
from pathlib import Path
from typing import Any

import pytest
import torch

import florence2
from florence2.api import predict
from florence2.config import HubSettings, InferenceSettings
from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.devices import INT8, inference_dtype
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.errors import OptionError
from florence2.recipes.create_engine import EngineSpec, ModelSource, create_engine, parse_devices

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no AVX-512 VNNI")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(6):
        make_scene(seed).render().save(folder / f"{seed}.png")
    return folder


def run_predict(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    predict(model_path="demo", input_path=str(folder), output_path=str(output), **options)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return {row["file_name"]: row for row in rows}


@needs_vnni
def test_captions_of_the_bundled_model_are_the_same_with_one_and_three_beams(scenes: Path, tmp_path: Path):
    for beams in (1, 3):
        texts = {
            dtype: {name: row["text"] for name, row in rows.items()}
            for dtype in ("auto", "int8")
            for rows in [run_predict(scenes, tmp_path / f"{dtype}{beams}.jsonl", dtype=dtype, num_beams=beams)]
        }
        assert texts["int8"] == texts["auto"]


@needs_vnni
def test_a_run_in_8_bits_resumes_itself_and_takes_no_row_of_another_precision(scenes: Path, tmp_path: Path):
    output = tmp_path / "captions.jsonl"
    plain = {row["run_id"] for row in run_predict(scenes, output, dtype="auto").values()}
    output.unlink()
    run_predict(scenes, output, dtype="int8")
    lines = output.read_text(encoding="utf-8").splitlines()
    [run_id] = {json.loads(line)["run_id"] for line in lines}
    assert run_id not in plain
    output.write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    resumed = run_predict(scenes, output, dtype="int8")
    assert output.read_text(encoding="utf-8").splitlines()[:3] == lines[:3]
    assert list(resumed.values()) == sorted((json.loads(line) for line in lines), key=_position(resumed))


def _position(rows: dict[str, Any]) -> Any:
    order = list(rows)
    return lambda row: order.index(row["file_name"])


@needs_vnni
def test_both_classes_of_the_model_give_the_same_features_in_8_bits():
    models = [ModelSource.resolve("demo", HubSettings(), "int8").load("cpu")[0]]
    transformers_model, processor = florence2.load("demo", dtype=inference_dtype("auto", CPU), device="cpu")
    quantize_model(transformers_model, INT8)
    quantize_model(transformers_model, INT8)  # does nothing
    models.append(transformers_model)
    sample = Sample("0", make_scene(0).render(), "more_detailed_caption")
    config = EngineConfig(GenerationConfig(num_beams=3, max_length=20))
    texts, scores = [], []
    for model in models:
        with Engine(model, processor, config) as engine:
            [prediction] = engine.run([sample])
        texts.append(prediction.text)
        scores.append(prediction.score)
    assert texts[0] == texts[1]
    assert scores[0] == pytest.approx(scores[1], rel=1e-2)


@needs_vnni
def test_the_python_object_samples_in_8_bits_and_offers_no_compiling(scenes: Path):
    sampled = GenerationConfig(do_sample=True, temperature=0.7, seed=3)
    with florence2.Florence2("demo", dtype="int8", device="cpu", generation=sampled) as model:
        first, second = (model(scenes / "0.png", "caption").text for _ in range(2))
        assert first == second
        with pytest.raises(OptionError, match="does not go with int8"):
            model._engine.encoder.prepare("on", 1)


def test_int8_is_refused_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OptionError, match="runs on a CPU, and the device is `cuda:0`"):
        inference_dtype("int8", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(OptionError, match="AVX-512 VNNI"):
        inference_dtype("int8", CPU)
    with pytest.raises(OptionError, match="a precision of predictions"):
        florence2.load("demo", dtype="int8")


@needs_vnni
def test_the_generate_engine_refuses_int8():
    model = ModelSource.resolve("demo", HubSettings(), "int8")
    spec = EngineSpec("generate", model, parse_devices(InferenceSettings(dtype="int8"), None), EngineConfig())
    with pytest.raises(OptionError, match="does not compute in `--dtype int8`"):
        create_engine(spec, 1)


@needs_vnni
@pytest.mark.long
def test_two_engines_predict_in_8_bits(scenes: Path, tmp_path: Path):
    one = run_predict(scenes, tmp_path / "one.jsonl", dtype="int8")
    two = run_predict(scenes, tmp_path / "two.jsonl", dtype="int8", devices="cpu,cpu")
    assert {name: row["text"] for name, row in two.items()} == {name: row["text"] for name, row in one.items()}
