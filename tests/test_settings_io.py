from pathlib import Path
from typing import Any

import numpy as np
import pytest

from florence2 import settings_io as settings
from florence2.cli.program import COMMANDS
from florence2.config import PredictSettings, TrainSettings
from florence2.errors import UserError


def test_flat_names_are_set_in_their_groups() -> None:
    values = settings.settings_from_dict(
        TrainSettings, {"dataset": "d", "output_dir": "o", "rank": 8, "target_modules": ["qkv"]}
    )
    assert (values.data.dataset, values.saving.output_dir, values.lora.rank) == (("d",), "o", 8)
    assert values.lora.target_modules == ("qkv",)


def test_settings_from_dict_inverts_settings_to_dict() -> None:
    values = settings.settings_from_dict(PredictSettings, {"model_path": "m", "input_path": "i", "num_beams": 3})
    assert settings.settings_from_dict(PredictSettings, settings.settings_to_dict(values)) == values


def test_published_defaults_are_unchanged() -> None:
    values = settings.settings_to_dict(settings.settings_from_dict(TrainSettings, {"dataset": "d", "output_dir": "o"}))
    expected = {"epochs": 5, "batch_size": 1, "learning_rate": 1e-4, "rank": 4, "alpha": 4, "dropout": 0.25}
    assert {name: values[name] for name in expected} == expected
    assert values["target_modules"] == ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")
    assert values["model_id"] == "microsoft/Florence-2-base-ft"


@pytest.mark.parametrize(
    ("values", "what", "hint"),
    [
        ({"dataset": "d", "output_dir": "o", "rnak": 8}, "rnak", "rank"),  # a typo
        ({"output_dir": "o"}, "dataset", "dataset"),  # a missing one
    ],
)
def test_unknown_and_missing_names_are_named(values: dict[str, object], what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.settings_from_dict(TrainSettings, values)
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_values_of_python_become_settings() -> None:
    values: dict[str, Any] = {
        "dataset": [Path("a"), "b"],
        "output_dir": Path("o"),
        "val_dataset": 0.1,
        "rank": np.int64(8),
        "learning_rate": np.float32(0.5),
        "epochs": 3,
        "lora_args": {"use_dora": True, "bias": "none", "init": "a b", "ranks": {"a": [1]}},
        "augment": "hflip=0.5",
    }
    found = settings.settings_to_dict(settings.settings_from_dict(TrainSettings, values))
    assert found["dataset"] == ("a", "b")
    assert (found["output_dir"], found["val_dataset"], found["augment"]) == ("o", "0.1", ("hflip=0.5",))
    assert [(found[name], type(found[name])) for name in ("rank", "learning_rate")] == [(8, int), (0.5, float)]
    options = settings.parse_options("--lora_args", found["lora_args"], list(values["lora_args"]))
    assert options == values["lora_args"]


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("seed", "8", "pass a whole number"),
        ("rank", 8.5, "pass a whole number of at least 0"),
        ("rank", -1, "pass a whole number of at least 0"),
        ("batch_size", 0, "pass a whole number of at least 1"),
        ("epochs", True, "pass a number above 0"),
        ("epochs", 0, "pass a number above 0"),
        ("epochs", float("inf"), "pass a number above 0"),
        ("dropout", 1.5, "pass a number from 0 to 1"),
        ("dropout", float("nan"), "pass a number from 0 to 1"),
        ("recursive", "yes", "pass True or False"),
        ("output_dir", None, "pass a text"),
        ("dataset", [["a"]], "pass a text"),
        ("target_modules", {"qkv": 1}, "pass a text"),
        ("dtype", "float23", "did you mean `float32`?"),
    ],
)
def test_values_of_another_type_are_named(name: str, value: object, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.settings_from_dict(TrainSettings, {"dataset": "d", "output_dir": "o", name: value})
    assert caught.value.what in {f"`{name}` is {value!r}", f"`{name}` is ['a']"}
    assert caught.value.hint == hint


def test_pairs_are_parsed_and_incomplete_pairs_refused() -> None:
    assert settings.parse_pairs("--trainer_args", ("a=1", "b=c=d")) == {"a": "1", "b": "c=d"}
    with pytest.raises(UserError, match="key=value"):
        settings.parse_pairs("--trainer_args", ("warmup_steps",))
    with pytest.raises(UserError, match="two values of `a`"):
        settings.parse_pairs("--adapter", ("a=x", "b=y", "a=z"))


def test_setting_is_written_as_words() -> None:
    values = {
        "rank": 4,
        "compile": True,
        "offline": False,
        "device": None,
        "task": ("od", "ocr"),
        "lora_args": {"r": 1},
    }
    words = [word for name, value in values.items() for word in settings.setting_words(name, value)]
    assert words == "--rank 4 --compile --task od ocr --lora_args r=1".split()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_a_help_text(name: str) -> None:
    docs = settings.setting_docs(COMMANDS[name].settings)
    assert list(docs) == settings.setting_names(COMMANDS[name].settings)
    assert all(docs.values()), docs


def test_help_text_is_the_docstring_under_the_field() -> None:
    docs = settings.setting_docs(TrainSettings)
    assert docs["learning_rate"] == "Peak learning rate."
    assert docs["rank"] == "LoRA rank; 0 trains all weights."
