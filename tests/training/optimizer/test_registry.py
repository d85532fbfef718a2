import importlib.util
from typing import Any

import pytest

from florence2.errors import UserError
from florence2.training.optimizer import registry as named
from florence2.training.optimizer.registry import check_name, optimizer_class


@pytest.mark.parametrize(
    ("optim", "kind"),
    [
        ("prodigy", "Prodigy"),
        ("CAME", "CAME"),
        ("DAdaptAdam", "DAdaptAdam"),
        ("torch.optim.NAdam", "NAdam"),
        ("prodigyplus.ProdigyPlusScheduleFree", "ProdigyPlusScheduleFree"),
    ],
)
def test_names_and_classes(optim: str, kind: str) -> None:
    assert optimizer_class(optim).__name__ == kind


@pytest.mark.parametrize(
    ("optim", "what", "hint"),
    [
        ("adamm", "`--optim adamm` is not known", "adam"),
        ("torch.optim", "`--optim torch.optim` is not an optimizer", "torch.optim.SGD"),
        ("nowhere.Optimizer", "cannot be imported: No module named 'nowhere'", "pip install nowhere"),
        ("collections.OrderedDict", "is not an optimizer of torch's kind", "torch.optim.SGD"),
        ("torch.optim.LBFGS", "it calls the loss again", "adamw_torch"),
        ("alig", "it calls the loss again", "adamw_torch"),
        ("sophiah", "it needs second derivatives", "adamw_torch"),
        ("adammini", "it takes the model itself", "adamw_torch"),
    ],
)
def test_refused_names(optim: str, what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(optim)
    assert what in caught.value.what.replace("`torch.optim`", "`--optim torch.optim`")
    assert hint in caught.value.hint


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = importlib.util.find_spec
    monkeypatch.setattr(named, "find_spec", lambda name: None if name == "pytorch_optimizer" else found(name))
    with pytest.raises(UserError, match="the package pytorch-optimizer is not installed") as caught:
        check_name("prodigy")
    assert caught.value.hint == "run `pip install 'florence2[optimizers]'`"
    with pytest.raises(UserError, match="Nothing` cannot be imported") as caught:
        check_name("prodigyplus.Nothing")
    assert caught.value.hint == "run `pip install 'florence2[optimizers]'`"
