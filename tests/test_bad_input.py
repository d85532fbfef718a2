"""What a user can get wrong: one line that says what and where, one that says how to mend it, exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from florence2.cli.program import main
from tests.tiny import save_tiny

TRAIN = "train --dataset photos --output_dir out --model_id tiny"
PREDICT = "predict --model_path tiny --input_path photos"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    save_tiny(folder / "tiny")
    (folder / "photos").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 30), "red").save(folder / "photos" / f"{name}.jpg")
        (folder / "photos" / f"{name}.txt").write_text("a red picture", encoding="utf-8")
    return folder


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "here"


def nothing(_: Path) -> None:
    pass


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        path = here / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return spoil


def delete(pattern: str) -> Callable[[Path], None]:
    return lambda here: [path.unlink() for path in here.glob(pattern)] and None


def nest(here: Path) -> None:
    (here / "photos" / "deep").mkdir()
    for path in list((here / "photos").glob("*.*")):
        path.rename(here / "photos" / "deep" / path.name)


def climbing(here: Path) -> None:
    (here / "photos" / "metadata.jsonl").write_text('{"file_name": "../secret.jpg", "text": "x"}\n', encoding="utf-8")
    Image.new("RGB", (8, 8)).save(here / "secret.jpg")


def other_model(here: Path) -> None:
    path = here / "tiny" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "bart"}))


CASES = {
    # the words of the command
    "an unknown command": ("trian", nothing, "`trian` is not a command", "train"),
    "an unknown flag": (f"{TRAIN} --rnak 4", nothing, "`--rnak` is not a flag of this command", "--rank"),
    "an unknown trainer option": (f"{TRAIN} --trainer_args warmup_step=3", nothing, "warmup_step", "warmup_steps"),
    "an unknown LoRA option": (f"{TRAIN} --lora_args use_rslor=true", nothing, "use_rslor", "use_rslora"),
    "half a pair": (f"{TRAIN} --trainer_args warmup_steps", nothing, "not of the form key=value", "="),
    "an unknown optimizer": (f"{TRAIN} --optim adamw_toch", nothing, "adamw_toch", "adamw_torch"),
    "an unknown scheduler": (f"{TRAIN} --lr_scheduler_type cosin", nothing, "cosin", "cosine"),
    "an unknown logger": (f"{TRAIN} --log_with wandbb", nothing, "wandbb", "wandb"),
    "layers that are not there": (f"{TRAIN} --target_modules o_proj", nothing, "o_proj", ""),
    "an impossible device": (f"{PREDICT} --device cuda:9", nothing, "cuda:9", "cpu"),
    "a configuration that is not there": ("train --config no.yaml", nothing, "no.yaml", "--config"),
    "an impossible temperature": (f"{PREDICT} --do_sample --temperature 0", nothing, "temperature", "above 0"),
    "an unknown augmentation": (f"{TRAIN} --augment hflp=0.5", nothing, "`--augment` has no `hflp`", "hflip"),
    "a stream without an end": (
        f"{TRAIN} --streaming",
        nothing,
        "`--streaming` needs a number of steps",
        "max_steps=N",
    ),
    "a weight for nothing": (
        f"{TRAIN} --sampling_weights odd=2",
        nothing,
        "`--sampling_weights odd` is neither a dataset nor a task",
        "more_detailed_caption",
    ),
    # the data
    "a dataset that is not there": (TRAIN.replace("photos", "./fotos"), nothing, "fotos does not exist", "photos"),
    "a missing caption": (TRAIN, delete("photos/b.txt"), "1 of 3 images", "b.txt, or pass --on_missing skip"),
    "an empty caption": (TRAIN, edit("photos/b.txt", lambda _: b" \n"), "1 of 3 images", "--on_missing skip"),
    "a caption that is not UTF-8": (TRAIN, edit("photos/b.txt", lambda _: b"caf\xe9"), "b.txt is not UTF-8", "UTF-8"),
    "no captions at all": (TRAIN, delete("photos/*.txt"), "all 3 images", "a.txt"),
    "a damaged picture": (TRAIN, edit("photos/b.jpg", lambda old: old[: len(old) // 2]), "b.jpg", "--on_missing skip"),
    "no pictures": (TRAIN, delete("photos/*.jpg"), "contains no images", "jpg"),
    "pictures further down": (TRAIN, nest, "contains no images itself", "--recursive"),
    "a path that leaves its folder": (TRAIN, climbing, "secret.jpg", ""),
    "a damaged list": (
        f"{TRAIN.replace('photos', 'list.jsonl')}",
        edit("list.jsonl", lambda _: b'{"file_name": \n'),
        "list.jsonl",
        "",
    ),
    "a fraction that is none": (f"{TRAIN} --val_dataset 1.5", nothing, "1.5", ""),
    # the model
    "a hub that cannot be reached": (TRAIN.replace("tiny", "some/model"), nothing, "some/model", "internet"),
    "a folder that is not there": (TRAIN.replace("tiny", "./no/model"), nothing, "no/model", "hub id"),
    "a folder of something else": (TRAIN.replace("tiny", "photos"), nothing, "config.json", "Florence-2"),
    "another kind of model": (TRAIN, other_model, "`tiny` is a `bart` model", ""),
    "damaged weights": (TRAIN, edit("tiny/model.safetensors", lambda old: old[:5000]), "damaged", "again"),
    "no weights": (TRAIN, delete("tiny/*.safetensors"), "has no weights", "again"),
    "a damaged config": (TRAIN, edit("tiny/config.json", lambda old: old[:40]), "config.json", "again"),
    # prediction
    "pictures that are not there": (PREDICT.replace("photos", "fotos"), nothing, "fotos does not exist", "photos"),
    "a pattern without a match": (PREDICT.replace("photos", "photos/*.webp"), nothing, "no image matches", "quotes"),
    "a task without its words": (f"{PREDICT} --task open_vocabulary_detection", nothing, "needs words", "--task_input"),
    "an output that is a folder": (f"{PREDICT} --output_path photos", nothing, "is a folder", "--output_path"),
    "somebody's file as output": (
        f"{PREDICT} --output_path notes.txt",
        edit("notes.txt", lambda _: b"dear diary\n"),
        "notes.txt line 1 is not a prediction",
        "--output_path",
    ),
    "a full disk": (f"{PREDICT} --max_length 4 --output_path /dev/full", nothing, "No space left on device", "free"),
}


@pytest.mark.parametrize(("command", "spoil", "what", "hint"), CASES.values(), ids=CASES)
def test_bad_input_prints_an_error_and_a_hint(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    command: str,
    spoil: Callable[[Path], None],
    what: str,
    hint: str,
) -> None:
    spoil(here)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    code = main(command.split())
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert what in lines[0]
    assert len(lines) == (2 if hint else len(lines))
    assert hint in lines[-1]
    assert all(path.read_bytes() == content for path, content in before.items()), "something written was changed"
