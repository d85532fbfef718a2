import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from florence2.api import evaluate
from florence2.cli import main
from florence2.errors import UserError
from tests.tiny import save_tiny


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(name: str, text: str, task: str = "<CAPTION>", **more) -> dict:
    return {"file_name": name, "text": text, "task": task, **more}


ANSWERS = {
    "<CAPTION>": "a cat on a mat",
    "<OCR>": "EXIT",
    "<OD>": "cat<loc_100><loc_100><loc_500><loc_500>dog<loc_600><loc_600><loc_900><loc_900>",
    "<REGION_PROPOSAL>": "<loc_100><loc_100><loc_500><loc_500>",
    "<DENSE_REGION_CAPTION>": "a red cat<loc_100><loc_100><loc_500><loc_500>",
    "<OCR_WITH_REGION>": "EXIT<loc_10><loc_10><loc_90><loc_10><loc_90><loc_50><loc_10><loc_50>",
}
WITH_INPUT = {
    "<CAPTION_TO_PHRASE_GROUNDING>": ("a cat", "a cat<loc_100><loc_100><loc_500><loc_500>"),
    "<OPEN_VOCABULARY_DETECTION>": ("cat", "cat<loc_100><loc_100><loc_500><loc_500>"),
    "<REFERRING_EXPRESSION_SEGMENTATION>": ("the cat", "<loc_100><loc_100><loc_500><loc_100><loc_500><loc_500>"),
    "<REGION_TO_CATEGORY>": ("<loc_100><loc_100><loc_500><loc_500>", "cat"),
    "<REGION_TO_OCR>": ("<loc_100><loc_100><loc_500><loc_500>", "EXIT"),
    "what colour is it?": ("", "red"),
    "how many are there?": ("", "two"),
}
ALL = {**{task: ("", text) for task, text in ANSWERS.items()}, **WITH_INPUT}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (120, 90), (40 * n, 90, 120)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a cat on mat number {n} in the sun")
    return folder


def captions(folder: Path, *texts: str, name: str = "said.jsonl") -> str:
    return write(folder / name, *(row(f"{n}.png", text) for n, text in zip("abc", texts, strict=False)))


def test_every_kind_of_task_is_scored_in_one_file(photos):
    rows = [row(f"{n}.png", text, task, input=said) for n in "abc" for task, (said, text) in ALL.items()]
    wanted, said = write(photos / "wanted.jsonl", *rows), write(photos / "said.jsonl", *rows)
    tasks = evaluate(predictions=said, references=wanted, bootstrap_samples=20)["tasks"]
    assert len(tasks) == len(ALL) - 1  # prompts of one's own are one group
    for name, task in tasks.items():
        for score, found in task["scores"].items():
            best = {"cider": found["value"], "cer": 0, "wer": 0}.get(score, 1)
            assert found["value"] == pytest.approx(best), (name, score)
    assert tasks["custom_prompts"]["examples"] == 6
    assert tasks["od"]["labels"] == {"cat": 1, "dog": 1}


def test_the_command_shows_a_table_and_writes_json(photos, capfd):
    said = captions(photos, "a cat on mat number 0 in the sun", "a dog")
    assert main(["evaluate", "--predictions", said, "--references", str(photos), "--bootstrap_samples", "50"]) == 0
    out, err = capfd.readouterr()
    scores = json.loads(out)
    assert scores["counts"]["missing_predictions"] == {"number": 1, "first": ["c.png"]}
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert scores["tasks"]["caption"]["scores"]["cider"]["higher_is_better"] is True
    assert [case["file_name"] for case in scores["tasks"]["caption"]["worst"]] == ["c.png", "b.png", "a.png"]
    assert scores["tasks"]["caption"]["worst"][0]["error"] == "no prediction"
    assert "caption: 3 examples, 3 images" in err
    assert "exact_match" in err
    assert "1 example without a prediction, counted as wrong; the first: c.png" in err


def test_what_has_no_prediction_can_be_left_out(photos):
    said = captions(photos, "a cat on mat number 0 in the sun", "a dog")
    scores = evaluate(predictions=said, references=str(photos), missing_predictions="skip", bootstrap_samples=0)
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["value"] == 0.5
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["low"] is None


def test_errors_are_wrong_answers(photos):
    said = write(
        photos / "said.jsonl", row("a.png", "", error="torn"), row("b.png", "a cat on mat number 1 in the sun")
    )
    scores = evaluate(predictions=said, references=str(photos), missing_predictions="skip", bootstrap_samples=0)
    assert scores["counts"]["failed"] == {"number": 1, "first": ["a.png"]}
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["value"] == 0.5


def test_words_can_be_scored_as_something_else(photos):
    said = captions(photos, "a cat on mat number 0 in the sun")
    scores = evaluate(predictions=said, references=str(photos), text_metrics="ocr", bootstrap_samples=0)
    assert set(scores["tasks"]["caption"]["scores"]) == {"cer", "wer", "anls", "exact_match"}


def test_predictions_of_other_tools_need_no_task(photos):
    said = write(photos / "said.jsonl", {"file_name": "a.png", "text": "EXIT"})
    wanted = write(photos / "wanted.jsonl", {"file_name": "a.png", "text": "EXIT"})
    for task, expected in ((None, "caption"), ("ocr", "ocr"), ("What is written there?", "custom_prompts")):
        scores = evaluate(predictions=said, references=wanted, task=task)
        assert scores["tasks"][expected]["scores"]["exact_match"]["value"] == 1


def test_two_files_are_compared_on_the_same_images(photos, capfd):
    a = captions(photos, "a dog", "a cat on mat number 1 in the sun", "a dog", name="a.jsonl")
    b = captions(photos, *(f"a cat on mat number {n} in the sun" for n in range(3)), name="b.jsonl")
    html = photos.parent / "out" / "page.html"
    assert main(["evaluate", "--compare", a, b, "--references", str(photos), "--html", str(html)]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)["tasks"]["caption"]["scores"]["exact_match"]
    assert found["a"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["b"]["value"] == 1
    assert found["change"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert 0 <= found["change"]["low"] < found["change"]["high"] == 1
    assert "change" in err
    assert "largest losses" not in html.read_text(encoding="utf-8")  # nothing got worse
    main(["evaluate", "--compare", b, a, "--references", str(photos), "--html", str(html)])
    page = html.read_text(encoding="utf-8")
    assert page.count("<section") == 2
    assert "a.png: -" in page


def test_the_page_stands_alone_and_shows_the_worst_first(photos):
    wanted = write(photos / "wanted.jsonl", *(row(f"{n}.png", ANSWERS["<OD>"], "<OD>") for n in "abc"))
    bad = "<b>bird</b><loc_1><loc_1><loc_9><loc_9>"
    said = write(photos / "said.jsonl", row("a.png", ANSWERS["<OD>"], "<OD>"), row("c.png", bad, "<OD>"))
    evaluate(predictions=said, references=wanted, html="page.html", bootstrap_samples=0, num_worst=5)
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 4  # two pictures, reference beside prediction
    assert page.index("b.png: 0.000") < page.index("c.png: 0.000")
    assert "a.png:" not in page  # nothing is wrong with it
    assert "(no prediction)" in page
    assert 'src="http' not in page
    assert "<b>" not in page


def test_images_that_are_gone_leave_a_word_on_the_page(photos):
    said = captions(photos, "a dog")
    (photos / "a.png").write_bytes(b"no picture")
    evaluate(predictions=said, references=str(photos), html="page.html", bootstrap_samples=0)
    assert "a.png" in Path("page.html").read_text(encoding="utf-8")


def test_a_model_is_asked_first(photos):
    save_tiny(photos.parent / "model")
    scores = evaluate(
        model_path="model",
        references=str(photos),
        predictions="said.jsonl",
        task="caption",
        max_length=8,
        bootstrap_samples=0,
        device="cpu",
    )
    assert scores["counts"]["examples"] == 3
    assert scores["counts"]["missing_predictions"]["number"] == 0
    assert len(Path("said.jsonl").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "there are no predictions to score"),
        ({"compare": ("a.jsonl",)}, "`--compare` takes two files and got 1"),
        ({"compare": ("a", "b"), "predictions": "c"}, "`--compare` names both files of predictions"),
        ({"predictions": "none.jsonl"}, "none.jsonl is not a file"),
        ({"predictions": "none.jsonl", "html": "photos"}, "photos is a folder"),
    ],
)
def test_what_cannot_be_scored_is_said(photos, flags, message):
    with pytest.raises(UserError, match=message):
        evaluate(references=str(photos), **flags)


def test_scoring_loads_no_model(photos):
    said = captions(photos, "a dog")
    code = f"""
import sys
from florence2.cli import main
assert main(["evaluate", "--predictions", {said!r}, "--references", {str(photos)!r}, "--bootstrap_samples", "0"]) == 0
assert not {{"torch", "transformers"}} & set(sys.modules), "heavy imports"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
