import sys

import pytest

from florence2.engine.encoder.encoder import MIN_IMAGES_TO_COMPILE, should_compile
from florence2.errors import UserError


@pytest.mark.parametrize(
    ("mode", "expected", "device", "compiler", "result"),
    [
        ("auto", MIN_IMAGES_TO_COMPILE["cuda"], "cuda", sys.executable, True),
        ("auto", MIN_IMAGES_TO_COMPILE["cuda"] - 1, "cuda", sys.executable, False),
        ("auto", 10**9, "cpu", sys.executable, False),  # it does not pay there
        ("auto", 10**9, "mps", sys.executable, False),  # not measured there
        ("auto", 10**9, "cuda", "no-such-compiler", False),
        ("on", 1, "cpu", sys.executable, True),
        ("off", 10**9, "cpu", sys.executable, False),
    ],
)
def test_auto_compiles_long_runs_only(monkeypatch, mode: str, expected: int, device: str, compiler: str, result: bool):
    monkeypatch.setenv("CXX", compiler)
    assert should_compile(mode, expected, device) is result


def test_compile_on_requires_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler"):
        should_compile("on", 1, "cpu")
