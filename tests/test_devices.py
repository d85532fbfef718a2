import pytest
import torch

from florence2.devices import LARGE, faster_choice, has_bfloat16, pick_device, pick_dtype, slow_choice
from florence2.errors import UserError

CPU = torch.device("cpu")


def test_wrong_dtype_and_device():
    with pytest.raises(UserError, match="`int4` is no floating type"):
        pick_dtype("int4", CPU)
    with pytest.raises(UserError, match="device `tpu9` cannot be used"):
        pick_device("tpu9")


@pytest.mark.parametrize("unit", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_half_precision_is_for_answering_on_a_cpu_that_has_it(monkeypatch, unit: str | None):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda has_unit=name == unit: has_unit)
    assert has_bfloat16(CPU) is (unit is not None)
    assert pick_dtype("auto", CPU, learns=False) == (torch.bfloat16 if unit else torch.float32)
    assert pick_dtype("auto", CPU) == torch.float32
    assert bool(slow_choice(torch.bfloat16, CPU)) is (unit is None)
    assert slow_choice(torch.float16, CPU)
    assert not slow_choice(torch.float32, CPU)
    assert not slow_choice(torch.bfloat16, torch.device("cuda"))
    assert bool(faster_choice(torch.float32, CPU, LARGE)) is (unit is not None)
    assert not faster_choice(torch.float32, CPU, LARGE - 1)
    assert not faster_choice(torch.bfloat16, CPU, LARGE)
    assert not faster_choice(torch.float32, torch.device("cuda"), LARGE)
