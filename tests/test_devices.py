import pytest
import torch

from florence2.devices import (
    LARGE_MODEL_PARAMETERS,
    depends_on_model_size,
    dtype_warning,
    has_bfloat16,
    inference_dtype,
    pick_device,
    training_dtype,
)
from florence2.errors import UserError

CPU = torch.device("cpu")


def test_unknown_dtype_and_device_are_refused():
    with pytest.raises(UserError, match="`int4` is not a supported dtype"):
        training_dtype("int4", CPU)
    with pytest.raises(UserError, match="device `tpu9` cannot be used"):
        pick_device("tpu9")


@pytest.mark.parametrize("unit", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_cpu_defaults_to_bfloat16_where_it_has_native_support_and_in_training_for_large_models(
    monkeypatch, unit: str | None
):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda has_unit=name == unit: has_unit)
    assert has_bfloat16(CPU) is (unit is not None)
    assert inference_dtype("auto", CPU) == (torch.bfloat16 if unit else torch.float32)
    large = training_dtype("auto", CPU, LARGE_MODEL_PARAMETERS)
    assert large == (torch.bfloat16 if unit else torch.float32)
    assert training_dtype("auto", CPU, LARGE_MODEL_PARAMETERS - 1) == training_dtype("auto", CPU) == torch.float32
    assert training_dtype("float32", CPU, LARGE_MODEL_PARAMETERS) == torch.float32
    assert depends_on_model_size("auto", CPU) is (unit is not None)
    assert not depends_on_model_size("float32", CPU)
    assert not depends_on_model_size("auto", torch.device("cuda"))
    assert bool(dtype_warning(torch.bfloat16, CPU)) is (unit is None)
    assert dtype_warning(torch.float16, CPU)
    assert not dtype_warning(torch.float32, CPU)
    assert not dtype_warning(torch.bfloat16, torch.device("cuda"))
