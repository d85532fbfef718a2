"""The engine on a GPU, where there is one: CUDA graphs, delayed polling, half precision."""

import pytest
import torch

from florence2.data.sample import Prediction
from florence2.devices import FP8, FP8_CAPABILITY
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.quantization.fp8_linear import CAPABILITY_WITH_SCALES, Fp8Linear
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.engine.requests import EngineInput
from florence2.model.load import load
from tests.engine.test_equivalence import scene_samples, without_scores

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def predict_all(
    kind: type[Engine] | type[GenerateEngine], slots: int, dtype: str = "float32", **how
) -> list[Prediction]:
    requests = scene_samples(30)
    model, processor = load("demo", dtype=dtype, device="cuda")
    with kind(model, processor, EngineConfig(generation=GenerationConfig(**how), batch_size=slots)) as engine:
        predictions = sorted(engine.run(requests), key=lambda prediction: prediction.file_name)
        assert kind is GenerateEngine or engine.decode_step.num_graphs, "no graph was recorded"
    return predictions


@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "repetition_penalty": 1.2}])
def test_engine_equals_generate_token_for_token(how: dict):
    expected = predict_all(GenerateEngine, 1, **how)
    for slots in (3, 16):
        for one, other in zip(predict_all(Engine, slots, **how), expected, strict=True):
            assert (one.file_name, one.text, one.num_tokens) == (other.file_name, other.text, other.num_tokens)
            assert without_scores(one.answer) == without_scores(other.answer)
            assert one.score == pytest.approx(other.score, rel=1e-3)


def test_samples_do_not_depend_on_the_batch():
    how = {"do_sample": True, "temperature": 1.3, "top_p": 0.95}
    few, many = predict_all(Engine, 3, **how), predict_all(Engine, 16, **how)
    assert [one.text for one in few] == [one.text for one in many]


def test_half_precision_gives_nearly_the_same_text():
    full, half = predict_all(Engine, 16), predict_all(Engine, 16, dtype="bfloat16")
    same = [one.text == other.text for one, other in zip(full, half, strict=True)]
    assert sum(same) >= len(same) // 2  # boxes move by a bin


def test_fp8_gives_nearly_the_same_captions_inside_a_cuda_graph_and_with_scales_outside_of_products():
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        pytest.skip("this GPU multiplies no fp8")
    expected = [each.text for each in predict_all(Engine, 16, dtype="bfloat16") if each.task == "<CAPTION>"]
    for is_scaled_inside in (torch.cuda.get_device_capability() == CAPABILITY_WITH_SCALES, False):
        model, processor = load("demo", dtype="bfloat16", device="cuda")
        quantize_model(model, FP8)
        for module in model.modules():
            if isinstance(module, Fp8Linear):
                module._is_scaled_inside = is_scaled_inside
        with Engine(model, processor, EngineConfig(batch_size=16)) as engine:
            found = sorted(engine.run(scene_samples(30)), key=lambda prediction: prediction.file_name)
        texts = [each.text for each in found if each.task == "<CAPTION>"]
        assert sum(map(str.__eq__, texts, expected)) >= len(expected) - 1


def test_mixed_configs_equal_each_alone():
    configs = [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 2, "repetition_penalty": 1.2}, {"max_length": 9}]
    model, processor = load("demo", dtype="float32", device="cuda")
    inputs = [EngineInput(s, GenerationConfig(**configs[n % 4])) for n, s in enumerate(scene_samples(30))]
    with Engine(model, processor, EngineConfig(GenerationConfig(num_beams=3), batch_size=16)) as engine:
        together = sorted(engine.run(inputs), key=lambda prediction: prediction.file_name)
        assert engine.decode_step.num_graphs, "no graph was recorded"
    for number, how in enumerate(configs):
        alone = predict_all(Engine, 16, **how)
        assert [each.text for each in together[number::4]] == [each.text for each in alone[number::4]]
