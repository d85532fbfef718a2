import dataclasses
import inspect
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import florence2
from florence2 import api
from florence2.settings_io import setting_names
from scripts.api import FUNCTIONS, MODULE, ApiFunction, render


def defaults(settings: type) -> dict[str, Any]:
    hints = typing.get_type_hints(settings)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        found |= defaults(hint) if dataclasses.is_dataclass(hint) else {field.name: field.default}
    return found


def test_api_module_equals_its_source() -> None:
    assert MODULE.read_text(encoding="utf-8") == render(), "run `uv run python scripts/api.py`"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_signature_equals_settings(function: ApiFunction) -> None:
    parameters = inspect.signature(getattr(api, function.name)).parameters
    assert set(parameters) == set(setting_names(function.settings))
    expected = defaults(function.settings)
    for name, parameter in parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        is_required = expected[name] is dataclasses.MISSING
        assert parameter.default == (inspect.Parameter.empty if is_required else expected[name]), name


def test_unknown_and_missing_keywords_are_refused_by_python() -> None:
    with pytest.raises(TypeError, match="rnak"):
        florence2.train(dataset="d", output_dir="o", rnak=8)
    with pytest.raises(TypeError, match="output_dir"):
        florence2.train(dataset="d")


def test_functions_pass_their_keywords_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from florence2.recipes import evaluate

    monkeypatch.setattr(evaluate, "run_evaluate", lambda settings: settings)
    settings: Any = florence2.evaluate(references="r", compare=["a", "b"], num_beams=3)
    assert settings.reference.references == "r"
    assert settings.prediction.compare == ("a", "b")
    assert settings.generation.num_beams == 3


def test_public_names_import_no_torch_until_used() -> None:
    code = """
import sys
import florence2
assert set(florence2.__all__) <= set(dir(florence2))
print(florence2.train, florence2.predict, florence2.evaluate, florence2.Task, florence2.OptionError)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    for name in florence2.__all__:
        value = getattr(florence2, name)
        assert getattr(value, "__name__", name) == name  # a table has no name of its own
    assert Path(florence2.__file__).parent == Path(api.__file__).parent
