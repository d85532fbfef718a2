"""Options that every command has beside its settings: `--save_config` and `--json`."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from florence2.cli import program
from florence2.cli.config_file import read_config
from florence2.cli.program import COMMANDS, main
from florence2.demo.dataset import make_dataset
from florence2.settings_io import setting_defaults, setting_names, setting_words

# Values that differ from the defaults, of every kind, for the flags of each command.
EXAMPLES: dict[str, list[str]] = {
    "train": [
        *("--dataset", "photos", "a b.jsonl", "--output_dir", "runs/é", "--rank", "8", "--learning_rate", "1e-05"),
        *("--compile", "--caption_args", "keep_tokens_separator=|||", "enable_wildcard=true", "--val_dataset", "0.1"),
        *("--target_modules", "qkv", "--task", "yes", "--freeze", "vision", "--early_stopping", "3"),
    ],
    "predict": [
        *("--model_path", "demo", "--input_path", "x/*.jpg", "--task", "od", "caption", "--prefix=-- ", "--suffix", ""),
        *(
            "--temperature",
            "0.5",
            "--generation_args",
            "no_repeat_ngram_size=0",
            "--export",
            "coco=a: b",
            "--do_sample",
        ),
    ],
    "demo": ["--output_dir", "no", "--seed", "7"],
    "evaluate": ["--references", "1.0", "--compare", "null", "~", "--num_worst", "0", "--meteor"],
    "export": ["--model_path", "runs/a", "--output_path", "b", "--dtype", "float16"],
    "data check": ["photos", "--json", "--task", "Is there a dog: yes or no?"],
    "data preview": ["photos", "page.html", "--num_samples", "3"],
    "data convert": ["photos", "out", "--to", "coco", "--link_mode", "copy"],
    "doctor": ["demo", "--json"],
}


JSON_OR_ROWS = (
    "error: `--output_path -` prints predictions, and `--json` a summary of a run\nhint: remove one of them\n"
)


def required_words(settings: type) -> list[str]:
    """Return words for the settings without a default, for a command without an example."""
    required = [name for name in setting_names(settings) if name not in setting_defaults(settings)]
    return [word for name in required for word in (f"--{name}", "a")]


def settings_of(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Any:
    """Parse a command, and return the settings that its recipe gets."""
    runs: list[Any] = []
    monkeypatch.setattr(program.Command, "run", lambda _, settings, **__: runs.append(settings) or 0)
    assert main(words) == 0
    return runs[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_saved_config_holds_the_same_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = EXAMPLES.get(name) or required_words(COMMANDS[name].settings)
    path = tmp_path / "new" / "config.yaml"
    assert main([*name.split(), *words, "--save_config", str(path)]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert f"wrote {path}" in output.err
    assert list(yaml.safe_load(path.read_text("utf-8"))) == setting_names(COMMANDS[name].settings)
    expected = settings_of(monkeypatch, [*name.split(), *words])
    assert settings_of(monkeypatch, [*name.split(), "--config", str(path)]) == expected
    assert settings_of(monkeypatch, [*name.split(), *words, f"--config={path}"]) == expected


def test_saved_config_is_not_run_and_may_be_made_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    output = tmp_path / "captions.jsonl"
    words = ["--model_path", "demo", "--input_path", str(tmp_path), "--output_path", str(output)]
    assert main(["predict", *words, "--save-config", str(tmp_path / "a b.yaml"), "--json"]) == 0
    assert f"--config '{tmp_path / 'a b.yaml'}' --json`" in capsys.readouterr().err
    assert main(["predict", *words, "--save-config", str(first)]) == 0
    assert main(["predict", "--config", str(first), "--num_beams", "3", f"--save_config={second}"]) == 0
    assert not output.exists()
    values = yaml.safe_load(second.read_text("utf-8"))
    assert (values["num_beams"], values["output_path"]) == (3, str(output))


@pytest.mark.parametrize(
    ("words", "what"),
    [(["--save_config"], "`--save_config` has no value"), (["--save_config", "a.toml"], "would write YAML")],
)
def test_config_that_cannot_be_saved_is_an_error(
    capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    assert main(["demo", *words]) == 2
    assert what in capsys.readouterr().err


def test_command_without_summary_refuses_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json"]) == 2
    assert "`--json` is not a flag of this command" in capsys.readouterr().err
    assert main(["predict", "--model_path", "demo", "--input_path", ".", "--output_path", "-", "--json"]) == 2
    assert capsys.readouterr() == ("", JSON_OR_ROWS)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])))
def test_every_text_survives_yaml_and_words(text: str) -> None:
    value = yaml.safe_load(yaml.safe_dump({"prefix": text}, allow_unicode=True))["prefix"]
    assert value == text
    words = setting_words("prefix", value)
    assert words in ([f"--prefix={text}"], ["--prefix", text])
    assert len(words) == 2 or text.startswith("-")


def test_read_config_is_lazy_about_types(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("task: [od]\nprefix: -x\ndo_sample: false\n", encoding="utf-8")
    assert list(read_config(path, COMMANDS["predict"].settings)) == ["--task", "od", "--prefix=-x"]


def test_summaries_are_one_json_object_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Train, predict and score for real; what libraries write to the file descriptor of stdout would be here, too."""
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "photos", num_samples=3, seed=1)
    adapter, captions, scores = "adapter", "photos/captions.jsonl", "scores.json"
    commands = {
        "train": [
            *("--dataset", "photos/caption.jsonl", "--output_dir", adapter, "--model_id", "demo", "--epochs", "1"),
            *("--device", "cpu", "--num_workers", "0"),
        ],
        "predict": ["--model_path", adapter, "--input_path", "photos", "--output_path", captions, "--device", "cpu"],
        "evaluate": [
            *("--references", "photos/caption.jsonl", "--predictions", captions, "--output_path", scores),
            *("--bootstrap_samples", "0"),
        ],
    }
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    results = {}
    for name, words in commands.items():
        code = main([name, *words, "--json"])
        output = capfd.readouterr()
        assert code == (1 if name == "predict" else 0), output.err
        assert output.err
        results[name] = json.loads(output.out)
    assert (results["train"]["output_dir"], results["train"]["is_complete"]) == (adapter, True)
    assert results["train"]["data"]["num_samples"] == 3
    assert results["train"]["scores"]["steps"] == 3
    assert (results["predict"]["predictions"], results["predict"]["resumed"]) == (3, 0)
    assert [error["file_name"] for error in results["predict"]["errors"]] == ["broken.png"]
    assert results["evaluate"] == json.loads((tmp_path / scores).read_text("utf-8"))


def test_summary_of_an_interrupted_training_names_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "photos", num_samples=2, seed=1)

    def stop() -> None:
        while not list((tmp_path / "run").glob("checkpoint-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    words = ["--dataset", "photos/caption.jsonl", "--output_dir", "run", "--model_id", "demo", "--device", "cpu"]
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert main(["train", *words, "--epochs", "200", "--save_every_n_steps", "1", "--json"]) == 130
    thread.join()
    summary = json.loads(capfd.readouterr().out)
    assert (summary["output_dir"], summary["is_complete"]) == ("run", False)
    assert "--resume auto" in summary["hint"]
