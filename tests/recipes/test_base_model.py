"""`--base_model`: an adapter whose config names no base, or one of another machine, by every command that takes it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from florence2 import api
from florence2.cli.program import main
from florence2.config import AddressSettings, InferenceSettings, ServedModelSettings, ServeSettings
from florence2.demo.dataset import make_dataset
from florence2.errors import UserError
from tests.model.adapter.test_lora import TINY, edit_json

BASES = [None, "/content/florence2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    make_dataset(folder / "photos", num_samples=1)
    for number, base in enumerate([*BASES, str(TINY)]):
        shutil.copytree(TINY / "adapter", folder / f"adapter{number}")
        edit_json(folder / f"adapter{number}" / "adapter_config.json", base_model_name_or_path=base, revision="v1")
    edit_json(folder / "adapter2" / "adapter_config.json", revision=None)
    return folder


def rows(path: Path) -> list[tuple[str, str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["file_name"], line["text"], line["score"]) for line in lines]


@pytest.mark.parametrize("number", [0, 1])  # F2, null; F2, a path of another machine
def test_predict_with_another_base(
    number: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--input_path", str(folder / "photos"), "--dtype", "float32", "--max_length", "6"]
    model = ["--model_path", str(folder / f"adapter{number}"), "--output_path", str(tmp_path / "o.jsonl")]
    assert main([*words, *model]) == 2
    error = capsys.readouterr().err
    assert "does not name its base" in error or "needs its base `/content/florence2`: there is no folder" in error
    assert "hint: pass `--base_model`" in error
    assert main([*words, *model, "--base_model", str(TINY)]) == 0
    named = ["--model_path", str(folder / "adapter2"), "--output_path", str(tmp_path / "named.jsonl")]
    assert main([*words, *named]) == 0
    assert rows(tmp_path / "o.jsonl") == rows(tmp_path / "named.jsonl")


def test_another_base_is_another_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "base", ignore=shutil.ignore_patterns("expected*", "exported", "adapter"))
    common = {"model_path": str(folder / "adapter0"), "input_path": str(folder / "photos"), "max_length": 4}
    output = str(tmp_path / "o.jsonl")
    for base, num_resumed in ((str(TINY), 0), (str(TINY), 1), (str(tmp_path / "base"), 0)):
        summary = api.predict(**common, base_model=base, output_path=output)  # type: ignore[arg-type]
        assert summary.num_resumed == num_resumed


def test_other_weights_of_the_base_are_another_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "base", ignore=shutil.ignore_patterns("expected*", "exported", "adapter"))
    shutil.copytree(TINY / "adapter", tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="../base", revision=None)
    (weights,) = (tmp_path / "base").glob("*.safetensors")
    resumed = []
    for change in (False, False, True):
        if change:
            save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
        summary = api.predict(
            model_path=str(tmp_path / "adapter"),
            input_path=str(folder / "photos"),
            max_length=4,
            output_path=str(tmp_path / "o.jsonl"),
        )
        resumed.append(summary.num_resumed)
    assert resumed == [0, 1, 0]


def test_the_other_commands_take_a_base(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, base = str(folder / "adapter1"), ("--base_model", str(TINY))
    assert main(["doctor", adapter, *base, "--json"]) == 0
    capsys.readouterr()
    assert main(["export", "--model_path", adapter, *base, "--output_path", str(tmp_path / "out")]) == 0
    target = ["--to", "adapter-microsoft", "--output_path", str(tmp_path / "adapter")]
    assert main(["export", "--model_path", adapter, *base, *target]) == 0
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == (str(TINY), None)
    scored = ["evaluate", "--references", str(folder / "photos"), "--model_path", adapter, *base, "--max_length", "4"]
    assert main([*scored, "--predictions", str(tmp_path / "p.jsonl"), "--output_path", str(tmp_path / "s.json")]) == 0
    assert rows(tmp_path / "p.jsonl")


def test_served_adapters_take_a_base(folder: Path) -> None:
    pytest.importorskip("fastapi", reason="the server needs its extra")
    from florence2.apps.serve.run_server import load_service

    def settings(adapter: tuple[str, ...]) -> ServeSettings:
        return ServeSettings(
            ServedModelSettings(str(TINY), adapter, base_model=str(TINY)),
            AddressSettings(),
            compute=InferenceSettings(),
        )

    with pytest.raises(UserError, match="none of the models is an adapter"):
        load_service(settings(()))
    service = load_service(settings((f"mine={folder / 'adapter0'}",)))
    assert list(service.models) == [TINY.name, "mine"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("predict", "--model_path", "demo", "--input_path", "x", "--base_model", "demo"), "`demo` is not an adapter"),
        (("export", "--model_path", "demo", "--output_path", "x", "--base_model", "demo"), "`demo` is not an adapter"),
        (("doctor", "--base_model", "demo"), "`--base_model` is for an adapter"),
        (("evaluate", "--references", "x", "--predictions", "y", "--base_model", "demo"), "is for an adapter"),
    ],
)
def test_a_base_without_an_adapter_is_refused(
    words: tuple[str, ...],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words]) == 2
    assert what in capsys.readouterr().err
