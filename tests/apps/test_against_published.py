"""`florence2 doctor MODEL --against-published`, on the reference checkpoint with the original code's own numbers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from florence2.apps.doctor.published_facts import PUBLISHED, PublishedFacts
from florence2.cli.program import main
from florence2.model.tasks import SPECIAL_TOKENS
from tests.model.original import copy_tiny
from tests.model.storage.test_checkpoint_files import COMMIT, Hub

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny-legacy"
TASKS = {"caption": "<CAPTION>", "detailed": "<DETAILED_CAPTION>"}


def file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """Write the images of the reference, and return its facts in the form of `published.json`."""
    tensors = load_file(TINY / "expected.safetensors")
    examples = []
    for number, name in enumerate("ab"):
        Image.fromarray(tensors[f"in.image_{name}"].numpy()).save(tmp_path / f"{name}.png")
        for prompt, task in TASKS.items():
            for search, beams in (("greedy", 1), ("beam3", 3)):
                ids = tensors[f"out.generate.{prompt}.{search}"][number].tolist()
                ids = ids[: ids.index(2, 1) + 1]
                options = {"num_beams": beams, "no_repeat_ngram_size": 3, "max_new_tokens": 24}
                examples.append({"image": name, "task": task, "input": "", "token_ids": ids, **options})
    files = {name: file_facts(TINY / name) for name in ("model.safetensors", "config.json", "tokenizer.json")}
    return {
        "sources": {"all": "the fixture"},
        "images": {name: {"file": f"{name}.png"} for name in "ab"},
        "models": {"tiny": {"revision": None, "tensors": 274, "files": files, "examples": "tiny"}},
        "examples": {"tiny": examples},
    }


def compare(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: dict[str, Any], folder: Path = TINY
) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    words = ["--against-published", "--expected", str(path), "--images", str(tmp_path), "--json"]
    code = main(["doctor", str(folder), *words])
    return code, json.loads(capsys.readouterr().out)


def test_reference_equals_the_numbers_of_the_original_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: dict[str, Any]
) -> None:
    code, report = compare(capsys, tmp_path, facts)
    assert {row["verdict"] for row in report["rows"]} == {"equal"}, report["rows"]
    assert (code, report["counts"]["equal"]) == (0, 3 + 1 + 2 * len(facts["examples"]["tiny"]))


def test_other_tokens_and_other_files_are_different(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: dict[str, Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy, ignore=shutil.ignore_patterns("expected*", "exported", "adapter"))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    example = facts["examples"]["tiny"][0]
    example["token_ids"][3] += 1
    facts["models"]["tiny"]["files"]["vocab2.json"] = {"bytes": 3, "sha256": None}
    code, report = compare(capsys, tmp_path, facts, copy)
    different = [row["what"] for row in report["rows"] if row["verdict"] == "different"]
    assert code == 1
    assert [what.partition(":")[0] for what in different] == ["config.json"] + 2 * ["a, `<CAPTION>`, 1 beams"]
    assert [row["what"] for row in report["rows"] if row["verdict"] == "not compared"] == ["vocab2.json"]


def test_table_is_markdown_and_says_what_was_not_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: dict[str, Any]
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    assert main(["doctor", str(TINY), "--against-published", "--expected", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert "| tensors | 274 | 274 | equal |" in rows
    assert rows[-1] == "| answers | 8 examples | no images: pass `--images` or `--fetch_images` | not compared |"
    assert "4 equal, 0 different, 1 not compared" in lines


def test_hub_model_is_downloaded_at_its_revision_and_compared(tmp_path: Path, facts: dict[str, Any]) -> None:
    Hub.folder = copy_tiny(tmp_path / "served")
    Hub.requested_paths.clear()
    facts["models"] = {"tiny/pickled": facts["models"]["tiny"] | {"revision": COMMIT}}
    facts["models"]["tiny/pickled"]["files"]["pytorch_model.bin"] = file_facts(TINY / "pytorch_model.bin")
    facts["examples"]["tiny"] = facts["examples"]["tiny"][:1]
    (tmp_path / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    words = ["tiny/pickled", "--against-published", "--expected", "facts.json", "--images", ".", "--json"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        command = [sys.executable, "-m", "florence2", "doctor", *words]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["revision"] == COMMIT
    assert any(path.endswith(f"{COMMIT}/model.safetensors") for path in Hub.requested_paths)
    assert report["counts"] == {"equal": 6, "different": 0, "not compared": 1}
    assert [row["what"] for row in report["rows"] if row["found"] == "not downloaded"] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ({"file": "a.png", "url": "http://localhost/a.png"}, "http://localhost/a.png is not an https URL"),
        ({"file": "a.png"}, "`a.png` is not published at a URL"),
    ],
)
def test_images_are_downloaded_by_https_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: dict[str, Any], image: dict[str, str], what: str
) -> None:
    facts["images"]["a"] = image
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    assert main(["doctor", str(TINY), "--against-published", "--expected", str(path), "--fetch_images"]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--against-published"], "`--against-published` compares a model"),
        (["demo", "--against-published"], "nothing is published about `demo`"),
        (["demo", "--images", "."], "`--images` needs `--against_published`"),
        (["demo", "--fetch_images"], "`--fetch_images` needs `--against_published`"),
        (["demo", "--against-published", "--expected", "none.json"], "none.json cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *words]) == 2
    assert what in capsys.readouterr().err


def test_published_tokens_are_the_published_texts() -> None:
    facts = PublishedFacts.read(PUBLISHED)
    tokenizer = Tokenizer.from_file(str(FIXTURES / "hub" / "microsoft-large" / "tokenizer.json"))
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, "<image>"])
    texts = {
        (example.image, example.task): tokenizer.decode(example.token_ids, skip_special_tokens=False)
        for example in facts.models["microsoft/Florence-2-large"].examples
    }
    assert texts["car", "<CAPTION>"] == "</s><s>a green car parked in front of a yellow building</s>"
    base = facts.models["microsoft/Florence-2-base"]
    assert base.examples == facts.models["florence-community/Florence-2-base"].examples
    answers = {example.task: tokenizer.decode(example.token_ids) for example in base.examples}
    assert answers["<DETAILED_CAPTION>"].startswith("The image shows a stop sign sitting on the side of a street")
    for model in facts.models.values():
        assert all(example.image in facts.images for example in model.examples)
        assert all(each.sha256 is None or len(each.sha256) == 64 for each in model.files.values())


@pytest.mark.parametrize(("name", "folder"), [("base", "microsoft-base"), ("large", "microsoft-large")])
def test_published_hashes_equal_the_real_files(name: str, folder: str) -> None:
    published = PublishedFacts.read(PUBLISHED).models[f"microsoft/Florence-2-{name}"].files
    paths = [path for path in (FIXTURES / "hub" / folder).iterdir() if path.name in published]
    assert len(paths) >= 3
    for path in paths:
        assert file_facts(path) == {"bytes": published[path.name].bytes, "sha256": published[path.name].sha256}
