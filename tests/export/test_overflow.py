"""Exports in float16 whose activations overflow are refused, with the module in which the overflow begins."""

from pathlib import Path

import pytest
import torch

from florence2 import api
from florence2.errors import UserError
from tests.tiny import tiny_model

MODULE = "model.language_model.encoder.layers.1.fc2"


@pytest.fixture
def large_activations(tmp_path: Path) -> Path:
    """Write a model whose weights all fit float16, and whose activations do not."""
    model, processor = tiny_model()
    model.get_submodule(MODULE).weight.data *= 20_000
    weights = torch.cat([each.detach().flatten() for each in model.parameters()])
    assert weights.abs().max() < 60_000
    model.half().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("to", ["transformers", "microsoft"])
@pytest.mark.parametrize("dtype", ["float16", "auto"])
def test_overflow_is_refused_and_named(tmp_path: Path, large_activations: Path, to: str, dtype: str) -> None:
    with pytest.raises(UserError) as caught:
        api.export(model_path=str(large_activations), output_path=str(tmp_path / "out"), to=to, dtype=dtype)  # type: ignore[arg-type]
    assert caught.value.what == (f"this model overflows in float16: `{MODULE}` is not finite for `bundled image 1`")
    assert caught.value.hint == "pass `--dtype bfloat16` or `--dtype float32`"
    assert not (tmp_path / "out").exists()


def test_model_that_overflows_is_exported_in_other_dtypes(tmp_path: Path, large_activations: Path) -> None:
    for dtype in ("bfloat16", "float32"):
        result = api.export(model_path=str(large_activations), output_path=str(tmp_path / dtype), dtype=dtype)  # type: ignore[arg-type]
        assert result.dtype == dtype
        assert result.comparison.num_images == 3


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_graphs_that_would_overflow_on_a_gpu_are_refused(tmp_path: Path, large_activations: Path, to: str) -> None:
    with pytest.raises(UserError) as caught:
        api.export(model_path=str(large_activations), output_path=str(tmp_path / "out"), to=to, dtype="float16")  # type: ignore[arg-type]
    assert caught.value.what == f"this model overflows in float16: `{MODULE}` is not finite for `bundled image 1`"
    assert caught.value.hint == "pass `--dtype float32`"
    assert not (tmp_path / "out").exists()
