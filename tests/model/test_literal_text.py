"""Captions and words that contain special tokens as text: letters, never coordinates."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from florence2.api import check_dataset
from florence2.demo.dataset import make_dataset
from florence2.model.load import load
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task

DEMO = Path(__file__).parents[2] / "src" / "florence2" / "demo" / "model"
TEXTS = [
    "a cat",
    "two  cats,\nit's <3 & <b>bold</b>",
    "猫 é",
    "",
    "<",
    "a <loc_5> b<loc_6>",
    "x <od><poly> <<loc_7>>",
    "</od> <s>b</s><pad>",
]


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    return Preprocessor.from_processor(load("demo", device="cpu")[1])


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_encoded_as_letters(text: str, preprocessor: Preprocessor) -> None:
    """The ids are those of the library tokenizers with special tokens as text, and decode to the text."""
    backend = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    backend.encode_special_tokens = True
    ids = preprocessor.target_ids(text, literal=True)
    assert ids[1:-1] == backend.encode(text.strip(), add_special_tokens=False).ids
    assert not set(ids) & set(preprocessor.location_ids)
    assert not set(ids[1:-1]) & set(preprocessor.tokenizer.all_special_ids)
    assert preprocessor.decode(ids) == text.strip()
    if "<loc" not in text and "od>" not in text:
        assert ids == preprocessor.target_ids(text)  # ordinary text is as before
    if "<s>" in text:  # refused in a prompt
        return
    grounding = preprocessor.prompt_ids(find_task("caption_to_phrase_grounding"), text)
    assert not set(grounding) & set(preprocessor.location_ids)


def test_regions_of_a_prompt_stay_location_tokens(preprocessor: Preprocessor) -> None:
    ids = preprocessor.prompt_ids(find_task("region_to_category"), "<loc_1><loc_2><loc_3><loc_4>")
    assert len(set(ids) & set(preprocessor.location_ids)) == 4


def test_layout_tokens_are_removed_from_targets_with_objects(preprocessor: Preprocessor) -> None:
    assert preprocessor.target_ids("<s>a cat</s><pad>") == preprocessor.target_ids("a cat")


def test_check_counts_the_tokens_that_training_makes(tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=1)
    text = "<loc_5>" * 200  # 200 tokens, or more than 1,000 letters
    rows = [{"file_name": "0000.png", "text": text, "task": task} for task in ("<CAPTION>", "What is it?")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check_dataset(dataset=str(tmp_path / "rows.jsonl"), model_id="demo", offline=True)
    assert [(issue.kind.name, issue.where[-6:]) for issue in report.issues if issue.kind.name == "LONG"] == [
        ("LONG", "line 1")
    ]


def test_check_names_them(tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=1)
    rows = [
        {"file_name": "0000.png", "text": text, "task": "<CAPTION>"}
        for text in ("a <loc_5>", "b</s>", "the tag <s> is</s> text")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check_dataset(dataset=str(tmp_path / "rows.jsonl"), offline=True)
    assert [issue.what for issue in report.issues if "answers text" in issue.what] == [
        f"`caption` answers text, and its target contains `{token}`" for token in ("<loc_5>", "</s>")
    ]
