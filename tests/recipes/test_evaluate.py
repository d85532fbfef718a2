import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from florence2.api import evaluate
from florence2.cli.program import main
from florence2.errors import UserError
from tests.tiny import save_tiny


def write_jsonl(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(make_row) + "\n" for make_row in rows), encoding="utf-8")
    return str(path)


def make_row(name: str, text: str, task: str = "<CAPTION>", **more) -> dict:
    return {"file_name": name, "text": text, "task": task, **more}


TEXTS = {
    "<CAPTION>": "a cat on a mat",
    "<OCR>": "EXIT",
    "<OD>": "cat<loc_100><loc_100><loc_500><loc_500>dog<loc_600><loc_600><loc_900><loc_900>",
    "<REGION_PROPOSAL>": "<loc_100><loc_100><loc_500><loc_500>",
    "<DENSE_REGION_CAPTION>": "a red cat<loc_100><loc_100><loc_500><loc_500>",
    "<OCR_WITH_REGION>": "EXIT<loc_10><loc_10><loc_90><loc_10><loc_90><loc_50><loc_10><loc_50>",
}
TEXTS_WITH_INPUT = {
    "<CAPTION_TO_PHRASE_GROUNDING>": ("a cat", "a cat<loc_100><loc_100><loc_500><loc_500>"),
    "<OPEN_VOCABULARY_DETECTION>": ("cat", "cat<loc_100><loc_100><loc_500><loc_500>"),
    "<REFERRING_EXPRESSION_SEGMENTATION>": ("the cat", "<loc_100><loc_100><loc_500><loc_100><loc_500><loc_500>"),
    "<REGION_TO_CATEGORY>": ("<loc_100><loc_100><loc_500><loc_500>", "cat"),
    "<REGION_TO_OCR>": ("<loc_100><loc_100><loc_500><loc_500>", "EXIT"),
    "what colour is it?": ("", "red"),
    "how many are there?": ("", "two"),
}
TEXTS_BY_TASK = {**{task: ("", text) for task, text in TEXTS.items()}, **TEXTS_WITH_INPUT}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (120, 90), (40 * n, 90, 120)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a cat on mat number {n} in the sun")
    return folder


def write_captions(folder: Path, *texts: str, name: str = "predictions.jsonl") -> str:
    return write_jsonl(folder / name, *(make_row(f"{n}.png", text) for n, text in zip("abc", texts, strict=False)))


def test_all_tasks_are_scored_from_one_file(photos):
    rows = [
        make_row(f"{n}.png", text, task, input=predictions)
        for n in "abc"
        for task, (predictions, text) in TEXTS_BY_TASK.items()
    ]
    references, predictions = (
        write_jsonl(photos / "references.jsonl", *rows),
        write_jsonl(photos / "predictions.jsonl", *rows),
    )
    tasks = evaluate(predictions=predictions, references=references, bootstrap_samples=20)["tasks"]
    assert len(tasks) == len(TEXTS_BY_TASK) - 1  # prompts of one's own are one group
    for name, task in tasks.items():
        for score, result in task["scores"].items():
            if score in {"map_small", "map_medium", "map_large"} and result["value"] is None:
                continue  # no object has this size
            best = {"cider": result["value"], "cer": 0, "wer": 0}.get(score, 1)
            assert result["value"] == pytest.approx(best), (name, score)
    assert tasks["custom_prompts"]["examples"] == 6
    assert tasks["od"]["labels"] == {"cat": 1, "dog": 1}


def test_evaluate_prints_a_table_and_writes_json(photos, capfd):
    predictions = write_captions(photos, "a cat on mat number 0 in the sun", "a dog")
    assert (
        main(["evaluate", "--predictions", predictions, "--references", str(photos), "--bootstrap_samples", "50"]) == 0
    )
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


def test_missing_predictions_can_be_skipped(photos):
    predictions = write_captions(photos, "a cat on mat number 0 in the sun", "a dog")
    scores = evaluate(predictions=predictions, references=str(photos), missing_predictions="skip", bootstrap_samples=0)
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["value"] == 0.5
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["low"] is None


def test_failed_predictions_count_as_wrong(photos):
    predictions = write_jsonl(
        photos / "predictions.jsonl",
        make_row("a.png", "", error="torn"),
        make_row("b.png", "a cat on mat number 1 in the sun"),
    )
    scores = evaluate(predictions=predictions, references=str(photos), missing_predictions="skip", bootstrap_samples=0)
    assert scores["counts"]["failed"] == {"number": 1, "first": ["a.png"]}
    assert scores["tasks"]["caption"]["scores"]["exact_match"]["value"] == 0.5


def test_text_metrics_can_be_chosen(photos):
    predictions = write_captions(photos, "a cat on mat number 0 in the sun")
    scores = evaluate(predictions=predictions, references=str(photos), text_metrics="ocr", bootstrap_samples=0)
    assert set(scores["tasks"]["caption"]["scores"]) == {"cer", "wer", "anls", "exact_match"}


def test_predictions_without_task_are_scored(photos):
    predictions = write_jsonl(photos / "predictions.jsonl", {"file_name": "a.png", "text": "EXIT"})
    references = write_jsonl(photos / "references.jsonl", {"file_name": "a.png", "text": "EXIT"})
    for task, expected in ((None, "caption"), ("ocr", "ocr"), ("What is written there?", "custom_prompts")):
        scores = evaluate(predictions=predictions, references=references, task=task)
        assert scores["tasks"][expected]["scores"]["exact_match"]["value"] == 1


def test_two_files_are_compared_on_the_same_images(photos, capfd):
    a = write_captions(photos, "a dog", "a cat on mat number 1 in the sun", "a dog", name="a.jsonl")
    b = write_captions(photos, *(f"a cat on mat number {n} in the sun" for n in range(3)), name="b.jsonl")
    html = photos.parent / "out" / "page.html"
    assert main(["evaluate", "--compare", a, b, "--references", str(photos), "--html", str(html)]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)["tasks"]["caption"]["scores"]["exact_match"]
    assert result["a"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert result["b"]["value"] == 1
    assert result["change"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert 0 <= result["change"]["low"] < result["change"]["high"] == 1
    assert "change" in err
    assert "largest losses" not in html.read_text(encoding="utf-8")  # nothing got worse
    main(["evaluate", "--compare", b, a, "--references", str(photos), "--html", str(html)])
    page = html.read_text(encoding="utf-8")
    assert page.count("<section") == 2
    assert "a.png: -" in page


def test_html_page_is_self_contained_and_shows_the_worst_first(photos):
    references = write_jsonl(photos / "references.jsonl", *(make_row(f"{n}.png", TEXTS["<OD>"], "<OD>") for n in "abc"))
    bad = "<b>bird</b><loc_1><loc_1><loc_9><loc_9>"
    predictions = write_jsonl(
        photos / "predictions.jsonl", make_row("a.png", TEXTS["<OD>"], "<OD>"), make_row("c.png", bad, "<OD>")
    )
    evaluate(predictions=predictions, references=references, html="page.html", bootstrap_samples=0, num_worst=5)
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 4  # two images, reference beside prediction
    assert page.index("b.png: 0.000") < page.index("c.png: 0.000")
    assert "a.png:" not in page  # nothing is wrong with it
    assert "(no prediction)" in page
    assert 'src="http' not in page
    assert "<b>" not in page


def test_html_page_names_unreadable_images(photos):
    predictions = write_captions(photos, "a dog")
    (photos / "a.png").write_bytes(b"not an image")
    evaluate(predictions=predictions, references=str(photos), html="page.html", bootstrap_samples=0)
    assert "a.png" in Path("page.html").read_text(encoding="utf-8")


def test_model_predicts_before_scoring(photos):
    save_tiny(photos.parent / "model")
    scores = evaluate(
        model_path="model",
        references=str(photos),
        predictions="predictions.jsonl",
        task="caption",
        max_length=8,
        bootstrap_samples=0,
        device="cpu",
    )
    assert scores["counts"]["examples"] == 3
    assert scores["counts"]["missing_predictions"]["number"] == 0
    assert len(Path("predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3


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
def test_invalid_inputs_are_refused(photos, flags, message):
    with pytest.raises(UserError, match=message):
        evaluate(references=str(photos), **flags)


def test_scoring_imports_no_torch(photos):
    predictions = write_captions(photos, "a dog")
    code = f"""
import sys
from florence2.cli.program import main
arguments = ["--predictions", {predictions!r}, "--references", {str(photos)!r}, "--bootstrap_samples", "0"]
assert main(["evaluate", *arguments]) == 0
assert not {{"torch", "transformers"}} & set(sys.modules), "heavy imports"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
