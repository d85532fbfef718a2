import importlib.util
from typing import Any

import pytest

from florence2.errors import UserError
from florence2.training.optimizer import registry
from florence2.training.optimizer.registry import check_name, optimizer_class


@pytest.mark.parametrize(
    ("optim", "class_name"),
    [
        ("prodigy", "Prodigy"),
        ("CAME", "CAME"),
        ("DAdaptAdam", "DAdaptAdam"),
        ("torch.optim.NAdam", "NAdam"),
        ("prodigyplus.ProdigyPlusScheduleFree", "ProdigyPlusScheduleFree"),
    ],
)
def test_name_or_class_path_finds_the_class(optim: str, class_name: str) -> None:
    assert optimizer_class(optim).__name__ == class_name


@pytest.mark.parametrize(
    ("optim", "what", "hint"),
    [
        ("adamm", "`--optim adamm` is not known", "adam"),
        ("torch.optim", "`torch.optim` is no subclass of `torch.optim.Optimizer`", "torch.optim.SGD"),
        ("nowhere.Optimizer", "cannot be imported: No module named 'nowhere'", "pip install nowhere"),
        ("collections.OrderedDict", "`collections.OrderedDict` is no subclass", "torch.optim.SGD"),
        ("torch.optim.LBFGS", "it evaluates the loss again", "adamw_torch"),
        ("alig", "it evaluates the loss again", "adamw_torch"),
        ("sophiah", "it needs second derivatives", "adamw_torch"),
        ("adammini", "it takes the model itself", "adamw_torch"),
    ],
)
def test_unusable_name_raises(optim: str, what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(optim)
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_missing_package_raises_with_install_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec: Any = importlib.util.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "pytorch_optimizer" else find_spec(name))
    with pytest.raises(UserError, match="the package pytorch-optimizer is not installed") as caught:
        check_name("prodigy")
    assert caught.value.hint == "run `pip install 'florence2[optimizers]'`"
    with pytest.raises(UserError, match="Nothing` cannot be imported") as caught:
        check_name("prodigyplus.Nothing")
    assert caught.value.hint == "run `pip install 'florence2[optimizers]'`"
