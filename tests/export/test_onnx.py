"""ONNX files equal torch in onnxruntime, in the layout that transformers.js reads."""

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import Florence2Processor

from florence2.apps.doctor.check_path import check_path
from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.errors import CheckpointError, MissingPackageError, OptionError
from florence2.export.onnx.graph_builder import OPSET
from florence2.export.onnx.write_onnx import write_onnx
from florence2.export.runtime.exported_model import ExportedModel
from florence2.export.runtime.load_exported import load_exported
from florence2.export.runtime.onnx_graphs import PARTS, SUFFIXES, OnnxGraphs, require_onnx
from florence2.model.load import load
from florence2.model.tasks import TASKS
from tests.export.graphs import FIRST_SCENE, logits_of, predict, step_difference, task_samples
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(*demo, folder)
    return folder


@pytest.mark.parametrize("batch", [1, 2])
def test_logits_equal_torch(demo, exported: Path, batch: int) -> None:
    model, processor = load_exported(exported)
    difference = (logits_of(model, processor, batch=batch) - logits_of(*demo, batch=batch)).abs().max()
    assert difference < 1e-4


def test_padded_windows_and_an_untied_head_equal_torch(tmp_path: Path) -> None:
    model, processor = tiny_model(1)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    write_onnx(model, processor, tmp_path)
    graphs = ExportedModel(model.config, model.generation_config, OnnxGraphs(tmp_path, "float32"))
    # The weights of the tiny model are scaled up, and so is the rounding.
    assert torch.allclose(logits_of(graphs, processor), logits_of(model, processor), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_tokens_equal_generate_for_all_tasks(demo, exported: Path, num_beams: int) -> None:
    samples = task_samples()
    assert len({sample.task for sample in samples}) == len(TASKS)
    expected = predict(*demo, num_beams, samples)
    assert not [prediction.error for prediction in expected if prediction.error]
    found = predict(*load_exported(exported), num_beams, samples)
    assert [(p.text, p.num_tokens) for p in found] == [(p.text, p.num_tokens) for p in expected]


def test_generate_takes_pixels_and_ids_as_transformers_does(demo, exported: Path) -> None:
    image = make_scene(FIRST_SCENE).render()
    model, processor = load_exported(exported)
    inputs = {**processor(text="<CAPTION>", images=image, return_tensors="pt"), "max_new_tokens": 40}
    assert torch.equal(model.generate(**inputs), demo[0].generate(**inputs))


def test_steps_with_the_cache_equal_one_pass(demo, exported: Path) -> None:
    assert step_difference(OnnxGraphs(exported, "float32"), demo[0].config.text_config.d_model) < 1e-4


def test_inputs_and_outputs_are_those_of_transformers_js(exported: Path) -> None:
    graphs = {part: onnx.load(exported / "onnx" / f"{part}.onnx") for part in PARTS}
    for graph in graphs.values():
        onnx.checker.check_model(graph, full_check=True)
        assert [(each.domain, each.version) for each in graph.opset_import] == [("", OPSET)]
    shapes = {
        part: {each.name: _shape(each) for each in (*graph.graph.input, *graph.graph.output)}
        for part, graph in graphs.items()
    }
    assert shapes["vision_encoder"] == {
        "pixel_values": ["batch_size", 3, 128, 128],
        "image_features": ["batch_size", 65, 128],
    }
    assert shapes["embed_tokens"] == {
        "input_ids": ["batch_size", "sequence_length"],
        "inputs_embeds": ["batch_size", "sequence_length", 128],
    }
    assert shapes["encoder_model"] == {
        "inputs_embeds": ["batch_size", "encoder_sequence_length", 128],
        "attention_mask": ["batch_size", "encoder_sequence_length"],
        "last_hidden_state": ["batch_size", "encoder_sequence_length", 128],
    }
    decoder = shapes["decoder_model_merged"]
    cache = [f"{n}.{side}.{part}" for n in range(3) for side in ("decoder", "encoder") for part in ("key", "value")]
    assert set(decoder) == {
        *("inputs_embeds", "encoder_hidden_states", "encoder_attention_mask", "use_cache_branch", "logits"),
        *(f"past_key_values.{name}" for name in cache),
        *(f"present.{name}" for name in cache),
    }
    assert decoder["use_cache_branch"] == [1]
    assert decoder["past_key_values.0.decoder.key"] == ["batch_size", 4, "past_decoder_sequence_length", 32]


def _shape(info: onnx.ValueInfoProto) -> list[int | str]:
    return [each.dim_param or each.dim_value for each in info.type.tensor_type.shape.dim]


@pytest.mark.parametrize(("dtype", "tolerance", "max_size"), [("float16", 0.1, 0.52), ("int8", 3, 0.4), ("q4", 3, 0.4)])
def test_smaller_dtypes_are_near_and_smaller(
    demo, exported: Path, tmp_path: Path, dtype: str, tolerance: float, max_size: float
) -> None:
    write_onnx(*demo, tmp_path, dtype=dtype)
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert names == {f"{part}{SUFFIXES[dtype]}.onnx" for part in PARTS}
    sizes = [sum(path.stat().st_size for path in (each / "onnx").iterdir()) for each in (tmp_path, exported)]
    assert sizes[0] < max_size * sizes[1]
    samples = [Sample(f"{n}.png", make_scene(FIRST_SCENE + n).render(), "caption") for n in range(4)]
    model, processor = load_exported(tmp_path)
    found, expected = (predict(*each, 1, samples) for each in ((model, processor), demo))
    assert [each.text for each in found] == [each.text for each in expected]
    assert (logits_of(model, processor) - logits_of(*demo)).abs().max() < tolerance
    options = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    assert options == {"dtype": {"float16": "fp16", "int8": "q8", "q4": "q4"}[dtype]}


def test_large_weights_lie_beside_the_graph(demo, exported: Path, tmp_path: Path) -> None:
    write_onnx(*demo, tmp_path, max_file_bytes=2_000_000)
    files = {path.name: path.stat().st_size for path in (tmp_path / "onnx").iterdir()}
    options = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    count = options["use_external_data_format"]["vision_encoder.onnx"]
    suffixes = ["", *(f"_{number}" for number in range(1, count))]
    assert count > 2
    assert {f"vision_encoder.onnx_data{suffix}" for suffix in suffixes} < set(files)
    assert "embed_tokens.onnx" not in options["use_external_data_format"]
    assert max(files.values()) <= 2_000_000
    assert torch.equal(logits_of(*load_exported(tmp_path)), logits_of(*load_exported(exported)))


def test_the_folder_has_the_files_of_transformers_js_and_transformers(demo, exported: Path) -> None:
    images = json.loads((exported / "preprocessor_config.json").read_text())
    assert images["processor_class"] == "Florence2Processor"
    assert images["size"] == {"height": 128, "width": 128}
    assert images["task_prompts_without_inputs"]["<CAPTION>"] == "What does the image describe?"
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "florence2"
    assert config["is_encoder_decoder"] is True
    assert json.loads((exported / "generation_config.json").read_text())["no_repeat_ngram_size"] == 3
    processor = Florence2Processor.from_pretrained(exported)
    assert processor.tokenizer("<OD>a cat").input_ids == demo[1].tokenizer("<OD>a cat").input_ids


def test_errors_say_what_to_do(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is no folder of `florence2 export`"):
        load_exported(tmp_path)
    with pytest.raises(OptionError, match="has graphs in float32"):
        load_exported(exported, dtype="q4")
    model, processor = tiny_model(0)
    model.config.text_config.activation_function = "quick_gelu"
    with pytest.raises(Exception, match="`quick_gelu` has no ONNX form"):
        write_onnx(model, processor, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'florence2\[onnx\]'"):
        require_onnx("this")


def test_doctor_knows_an_export_and_loading_it_as_a_model_says_what_runs_it(exported: Path) -> None:
    report = check_path(str(exported), torch.float32)
    assert (report.kind, report.problems) == ("export", ())
    with pytest.raises(CheckpointError, match="the graphs of an export") as caught:
        load(str(exported))
    assert "florence2.load_exported" in caught.value.hint
