"""The engine's law on a GPU, where there is one: recorded graphs, answers heard late, half precision."""

import pytest
import torch

from florence2.data.sample import Prediction
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.model.load import load
from tests.engine.test_equivalence import places, questions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def answers(kind: type[Engine] | type[GenerateEngine], slots: int, dtype: str = "float32", **how) -> list[Prediction]:
    asked = questions(30)
    model, processor = load("demo", dtype=dtype, device="cuda")
    with kind(model, processor, EngineConfig(generation=GenerationConfig(**how), batch_size=slots)) as engine:
        found = sorted(engine.run(asked), key=lambda prediction: prediction.file_name)
        assert kind is GenerateEngine or engine.decode_step.num_graphs, "no graph was recorded"
    return found


@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "repetition_penalty": 1.2}])
def test_token_for_token(how: dict):
    wanted = answers(GenerateEngine, 1, **how)
    for slots in (3, 16):
        for one, other in zip(answers(Engine, slots, **how), wanted, strict=True):
            assert (one.file_name, one.text, one.num_tokens) == (other.file_name, other.text, other.num_tokens)
            assert places(one.answer) == places(other.answer)
            assert one.score == pytest.approx(other.score, rel=1e-3)


def test_sampling_does_not_depend_on_company():
    how = {"do_sample": True, "temperature": 1.3, "top_p": 0.95}
    few, many = answers(Engine, 3, **how), answers(Engine, 16, **how)
    assert [one.text for one in few] == [one.text for one in many]


def test_half_precision_says_nearly_the_same():
    exact, half = answers(Engine, 16), answers(Engine, 16, dtype="bfloat16")
    same = [one.text == other.text for one, other in zip(exact, half, strict=True)]
    assert sum(same) >= len(same) // 2  # boxes move by a bin
