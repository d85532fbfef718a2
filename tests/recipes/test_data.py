"""`florence2 data`: reports of errors, the preview page, and conversion between formats."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence2.api import check_dataset, convert_dataset, preview_dataset
from florence2.cli.program import main
from florence2.data.resolve import DatasetOptions, resolve_dataset
from tests.data.formats.annotation_files import SIZE, coco, yolo
from tests.data.images import captioned, image, jsonl
from tests.strategies import locs


def check_rows(tmp_path, *rows, **options):
    """Check rows about an image of 200 x 100 pixels, and return the report."""
    if not (tmp_path / "a.png").exists():
        image(tmp_path / "a.png", SIZE)
    rows = [{"file_name": "a.png", **row} for row in rows]
    return check_dataset(dataset=str(jsonl(tmp_path / "list.jsonl", rows)), **options).to_json()


def od(*boxes, labels=None):
    return {"task": "od", "answer": {"bboxes": list(boxes), "labels": labels or ["cat"] * len(boxes)}}


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        (od([0, 0, 202, 50]), "outside", "`cat` at [0, 0, 202, 50] in an image of 200 x 100"),
        (od([50, 0, 20, 50]), "swapped", "`cat` at [50, 0, 20, 50] in an image of 200 x 100"),
        (od([20, 0, 20, 50]), "zero", "`cat` at [20, 0, 20, 50] in an image of 200 x 100"),
        (od([0, 0, 9, 9], labels=[" "]), "label", "the object at [0, 0, 9, 9] has no label"),
        (od([0, 0, 9, 9], [0, 0, 9.1, 9]), "repeated", "`cat` at [0, 0, 9.1, 9] occurs twice"),
        (od([0, 0, 9, 9], labels=["a", "b"]), "malformed", "2 labels for 1 `bboxes`"),
        ({"task": "<ODD>", "text": "cat"}, "task", "`<ODD>` is not a task and would be a custom prompt"),
        ({"task": "region_to_category", "text": "cat"}, "input", "`region_to_category` needs region as its input"),
        ({"task": "region_to_ocr", "input": [0, 0, 300, 9], "text": "x"}, "outside", "input at [0, 0, 300, 9]"),
        ({"task": "od", "input": "cat", "text": "cat" + locs(1, 2, 3, 4)}, "input", "takes no input"),
        ({"task": "od", "text": "a cat on a mat"}, "text", "`a cat on a mat` has no object"),
        ({"task": "od"}, "empty", "neither `text` nor `answer`"),
        ({"file_name": "b.png", "text": "x"}, "absent", "`b.png` does not exist"),
        ({"width": 100, "height": 200, "text": "x"}, "size", "the image is 200 x 100, the annotation has 100 x 200"),
    ],
)
def test_errors_are_named(tmp_path, row, kind, what):
    report = check_rows(tmp_path, row)
    assert report["issue_counts"] == {kind: 1}
    assert what in report["issues"][0]["what"]
    assert report["issues"][0]["where"].endswith("list.jsonl line 1")


def test_long_targets_are_reported(tmp_path):
    boxes = [[n, 0, n + 0.4, 9] for n in range(200)]
    report = check_rows(tmp_path, od(*boxes, labels=[f"cat {n}" for n in range(200)]))
    assert report["issue_counts"] == {"long": 1}
    assert report["max_target_tokens"] == 2 + 200 * (4 + 2)
    assert report["issues"][0]["what"].endswith("objects that do not fit are dropped")


def test_duplicates_and_copies_of_images_are_reported(tmp_path):
    image(tmp_path / "b.png", SIZE)
    row = {"text": "a cat"}
    report = check_rows(tmp_path, row, row, {"text": "another"}, {"file_name": "b.png", "text": "a cat"})
    assert report["issue_counts"] == {"duplicate": 1, "same": 1}
    assert (report["images"], report["samples"]) == (2, 4)


def test_valid_dataset_has_no_issues(tmp_path, capsys):
    captioned(tmp_path / "in" / "a.png", "a boat")
    assert main(["data", "check", str(tmp_path / "in")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no issues"
    Image.new("RGB", SIZE).save(tmp_path / "b.png")
    rounded_and_empty = check_rows(tmp_path, od([0, 0, 200.9, 100]), {**od(), "file_name": "b.png"})
    assert rounded_and_empty["issue_counts"] == {}


def test_check_exit_codes_and_json(tmp_path, capsys):
    image(tmp_path / "0.png", SIZE)
    source = coco(tmp_path / "list.json", [{"bbox": [0, 0, 300, 10]}])
    assert main(["data", "check", str(source), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["issue_counts"], report["objects"], report["tasks"]) == ({"outside": 1}, {"cat": 1}, {"od": 1})
    assert main(["data", "check", str(source)]) == 1
    assert "issue: 1 objects outside the image" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["data", "convert", str(source)]) == 2
    assert "`florence2 data convert` needs `--output`" in capsys.readouterr().err


def test_each_data_action_has_its_own_flags(capsys):
    assert main(["data", "check", "photos", "--to", "coco"]) == 2
    assert "`--to` is not a flag of this command" in capsys.readouterr().err
    assert main(["data", "chekc", "photos"]) == 2
    assert "did you mean `check`?" in capsys.readouterr().err
    assert main(["data", "--help"]) == 0
    assert "florence2 data convert" in capsys.readouterr().out


def test_broken_images_and_lists_are_issues(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert check_rows(tmp_path, {"text": "a cat"})["issue_counts"] == {"unreadable": 1}
    image(tmp_path / "b.png")
    with (tmp_path / "list.jsonl").open("a") as lines:
        lines.write('{"file_name": "b.png", "text": "x"}\nnot json\n')
    report = check_dataset(dataset=str(tmp_path / "list.jsonl")).to_json()
    assert report["issue_counts"] == {"unreadable": 1, "malformed": 1}


def test_preview_page_shows_targets(tmp_path):
    image(tmp_path / "a.png", SIZE)
    rows = [
        {"file_name": "a.png", "task": "od", "answer": {"bboxes": [[0, 0, 100, 50]], "labels": ["<b>"]}},
        {"file_name": "a.png", "task": "region_to_category", "input": [0, 0, 100, 50], "text": "cat & dog"},
        {"file_name": "gone.png", "text": "x"},
    ]
    page = preview_dataset(
        dataset=str(jsonl(tmp_path / "list.jsonl", rows)), output=str(tmp_path / "page.html")
    ).read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    tokens = locs(0, 0, 500, 500).replace("<", "&lt;").replace(">", "&gt;")
    assert f'&lt;b&gt;<span class="at">{tokens}</span>' in page
    assert "cat &amp; dog" in page
    assert "Locate the objects with category name in the image." in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def boxes(spec, task="od"):
    dataset = resolve_dataset(spec, DatasetOptions(task))
    return sorted((sample.id.rpartition("/")[2], sample.target) for sample in dataset.samples)


def test_conversion_between_coco_yolo_and_jsonl_keeps_boxes(tmp_path):
    sides = (640, 427)
    Image.new("RGB", sides).save(tmp_path / "0.png")
    rows = [{"bbox": [7.31 * n, 3.7 * n, 61.03 + n, 40.77], "category_id": n % 2 + 1} for n in range(60)]
    source = coco(tmp_path / "_annotations.coco.json", rows)
    annotations = json.loads(source.read_text())
    annotations["images"][0] |= {"width": sides[0], "height": sides[1]}
    source.write_text(json.dumps(annotations))
    jsonl_folder, coco_folder = tmp_path / "jsonl", tmp_path / "coco"
    convert_dataset(dataset=str(tmp_path), output=str(jsonl_folder), to="jsonl")
    convert_dataset(dataset=str(jsonl_folder), output=str(coco_folder), to="coco")
    converted = json.loads((coco_folder / "_annotations.coco.json").read_text())
    names = {row["id"]: row["name"] for row in converted["categories"]}
    actual = sorted((names[row["category_id"]], *row["bbox"]) for row in converted["annotations"])
    expected = sorted((("cat", "stop-sign")[row["category_id"] - 1], *row["bbox"]) for row in rows)
    assert [row[0] for row in actual] == [row[0] for row in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=min(sides) / 2000)
    assert converted["images"][0]["width"] == 640

    convert_dataset(dataset=str(coco_folder), output=str(tmp_path / "yolo"), to="yolo")
    convert_dataset(dataset=str(tmp_path / "yolo"), output=str(tmp_path / "jsonl2"), to="jsonl")
    convert_dataset(dataset=str(tmp_path / "jsonl2"), output=str(tmp_path / "yolo2"), to="yolo")
    lines = [
        sorted(
            tuple(map(float, line.split())) for line in (tmp_path / name / "labels" / "0.txt").read_text().splitlines()
        )
        for name in ("yolo", "yolo2")
    ]
    assert len(lines[0]) == len(rows)
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, abs=1 / 2000)
    assert boxes(tmp_path / "yolo2") == boxes(tmp_path) == boxes(coco_folder)


@st.composite
def sizes_and_boxes(draw):
    """Generate the size of an image, and boxes in it."""
    width, height = draw(st.integers(8, 5000)), draw(st.integers(8, 5000))
    fraction = st.floats(0, 1, allow_nan=False)
    sides = draw(
        st.lists(
            st.tuples(fraction, fraction, fraction, fraction, st.sampled_from(["cat", "stop-sign"])),
            min_size=1,
            max_size=6,
        )
    )
    corners = [(sorted((a * width, b * width)), sorted((c * height, d * height)), label) for a, b, c, d, label in sides]
    return (width, height), [([x1, y1, x2, y2], label) for (x1, x2), (y1, y2), label in corners]


@given(sizes_and_boxes())
@settings(max_examples=15, deadline=None)
def test_any_box_survives_conversion(size_and_boxes):
    size, objects = size_and_boxes
    answer = {"bboxes": [box for box, _ in objects], "labels": [label for _, label in objects]}
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        Image.new("1", size).save(here / "a.png")
        jsonl(here / "list.jsonl", [{"file_name": "a.png", "task": "od", "answer": answer}])
        source = str(here / "list.jsonl")
        for number, to in enumerate(("coco", "jsonl", "coco", "jsonl", "yolo", "jsonl", "yolo", "jsonl")):
            convert_dataset(dataset=source, output=str(here / str(number)), to=to)
            source = str(here / str(number))
        (row,) = [json.loads(line) for line in next((here / "7").glob("*.jsonl")).read_text().splitlines()]
    assert row["answer"]["labels"] == answer["labels"]
    for ours, theirs in zip(row["answer"]["bboxes"], answer["bboxes"], strict=True):
        assert ours[0::2] == pytest.approx(theirs[0::2], abs=size[0] / 2000)
        assert ours[1::2] == pytest.approx(theirs[1::2], abs=size[1] / 2000)


def test_polygons_survive_conversion_to_yolo(tmp_path):
    source = yolo(tmp_path / "a", "0 0.1 0.2 0.5 0.2 0.1 0.8\n")
    task = "referring_expression_segmentation"
    convert_dataset(dataset=str(source.parent), output=str(tmp_path / "j"), to="jsonl", task=task)
    convert_dataset(dataset=str(tmp_path / "j"), output=str(tmp_path / "b"), to="yolo")
    assert (tmp_path / "b" / "labels" / "0.txt").read_text() == "0 0.1 0.2 0.5 0.2 0.1 0.8\n"
    assert boxes(tmp_path / "b", task) == boxes(source.parent, task)


def test_captions_survive_conversion_to_shards(tmp_path):
    captioned(tmp_path / "a" / "x.png", "a boat")
    convert_dataset(dataset=str(tmp_path / "a"), output=str(tmp_path / "tars"), to="shards")
    done = convert_dataset(dataset=str(tmp_path / "tars"), output=str(tmp_path / "folder"), to="folder")
    assert (done.num_images, done.num_rows, dict(done.skipped)) == (1, 1, {})
    assert (tmp_path / "folder" / "00000000.txt").read_text() == "a boat\n"


def test_images_are_linked_or_copied(tmp_path):
    source = captioned(tmp_path / "a" / "x.png", "a boat")
    for mode, num_links in (("link", 2), ("copy", 2)):
        convert_dataset(dataset=str(tmp_path / "a"), output=str(tmp_path / mode), link_mode=mode)
        assert (tmp_path / mode / "x.png").read_bytes() == source.read_bytes()
        assert source.stat().st_nlink == num_links
    assert (tmp_path / "link" / "x.png").samefile(source)


def test_convert_refuses_a_folder_with_files(tmp_path, capsys):
    captioned(tmp_path / "x.png", "a boat")
    assert main(["data", "convert", str(tmp_path), str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_captions_cannot_be_converted_to_coco(tmp_path, capsys):
    captioned(tmp_path / "a" / "x.png", "a boat")
    assert main(["data", "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "coco"]) == 2
    assert "the dataset has no target that coco can store" in capsys.readouterr().err


def test_kohya_names_without_extension_are_located(tmp_path):
    image(tmp_path / "a.png", SIZE)
    (tmp_path / "list.json").write_text(json.dumps({"a": {"caption": "a boat"}}))
    assert check_dataset(dataset=str(tmp_path / "list.json")).to_json()["issue_counts"] == {}
