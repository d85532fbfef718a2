"""Wrong values of flags are two lines, and repeated flags are joined."""

from pathlib import Path

import pytest

from florence2.cli.program import main
from florence2.settings_io import settings_to_dict
from tests.cli.test_command_words import settings_of

PREDICT = ["predict", "--model_path", "demo", "--input_path", "photos"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["predict"], "`florence2 predict` needs `--model_path` and `--input_path`"),
        (["predict", "photos"], "`photos` belongs to no flag"),
        ([*PREDICT, "b.jpg", "c.jpg"], "`--input_path` takes one value and got 3: `photos`, `b.jpg`, `c.jpg`"),
        ([*PREDICT, "-r"], "`-r` is not a flag of this command"),
        ([*PREDICT, "--recursive=yes"], "`--recursive` takes no value, and `yes` follows it"),
        ([*PREDICT, "--output_path"], "`--output_path` has no value"),
        ([*PREDICT, "--task"], "`--task` has no value"),
        ([*PREDICT, "--engine", "fast"], "`--engine fast` is not one of its values"),
        ([*PREDICT, "--num_beams", "three"], "`--num_beams three` is not a whole number of at least 1"),
        ([*PREDICT, "--batch_size", "1.5"], "`--batch_size 1.5` is not a whole number of at least 1"),
        ([*PREDICT, "--seed", "x"], "`--seed x` is not a whole number"),
        ([*PREDICT, "--num_beams", "0"], "`--num_beams 0` is not a whole number of at least 1"),
        ([*PREDICT, "--top_p", "0"], "`--top_p 0` is not a number above 0 and at most 1"),
        ([*PREDICT, "--temperature", "hot"], "`--temperature hot` is not a number above 0"),
        ([*PREDICT, "--temperature", "-0.5"], "`--temperature -0.5` is not a number above 0"),
    ],
)
def test_wrong_values_are_two_lines(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error, hint, end = capsys.readouterr().err.split("\n")
    assert (error, hint[:6], end) == (f"error: {what}", "hint: ", "")


def test_error_of_a_config_file_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("epochs: many\n", encoding="utf-8")
    assert main(["train", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: `--epochs many` in {path} is not a number above 0\n")


def test_values_of_a_repeated_flag_are_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("task: [ocr]\nexport: []\n", encoding="utf-8")
    words = ["--task", "od", "--num_beams", "2", "--task=caption", "--num_beams", "3", "--config", str(path)]
    values = settings_to_dict(settings_of(monkeypatch, [*PREDICT, *words]))
    assert (values["task"], values["num_beams"], values["export"]) == (("od", "caption"), 3, ())


def test_help_is_printed_whatever_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "--num_beams", "three", "--help"])
    assert "--model_path" in capsys.readouterr().out
