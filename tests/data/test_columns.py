import json
import os
from pathlib import Path

import pytest

from florence2.api import check_dataset
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import Prediction, ResolvedDataset, SkipReason, relative_image_dir
from florence2.data.tables import read_rows
from florence2.errors import DatasetError
from florence2.model.answer import Answer
from tests.data.images import image, jsonl


def resolve(spec, **options) -> ResolvedDataset:
    return resolve_dataset(spec, DatasetOptions(**{"task": "caption", **options}))


def read_samples(spec, **options) -> list[tuple[str, str, str, str | None]]:
    return [(s.id, s.task, s.input, s.target) for s in resolve(spec, **options).samples]


def read_error(spec, **options) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        resolve(spec, **options)
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


@pytest.fixture
def photos(tmp_path) -> Path:
    image(tmp_path / "a.jpg", (1000, 500))
    image(tmp_path / "in" / "b.png")
    return tmp_path


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file_name", "image", "image_path"])
@pytest.mark.parametrize("text", ["text", "caption", "suffix"])
def test_column_names(photos, name, text):
    path = jsonl(photos / "list.jsonl", [{name: "a.jpg", text: " a boat\n"}, {name: "in/b.png", text: "sea"}])
    assert read_samples(path) == [("a.jpg", "<CAPTION>", "", "a boat"), ("in/b.png", "<CAPTION>", "", "sea")]


def test_columns_named_by_the_user(photos):
    path = jsonl(photos / "list.jsonl", [{"file_name": "none", "text": "no", "pic": "a.jpg", "words": "a boat"}])
    assert read_samples(path, image_column="pic", text_column="words") == [("a.jpg", "<CAPTION>", "", "a boat")]


@pytest.mark.parametrize(
    ("row", "task", "input_text"),
    [
        ({}, "<CAPTION>", ""),
        ({"task": "od"}, "<OD>", ""),
        ({"task": "<OD>"}, "<OD>", ""),
        ({"prefix": "<OD>"}, "<OD>", ""),
        ({"prompt": "<CAPTION_TO_PHRASE_GROUNDING>a boat"}, "<CAPTION_TO_PHRASE_GROUNDING>", "a boat"),
        ({"task": "open-vocabulary-detection", "input": "a boat"}, "<OPEN_VOCABULARY_DETECTION>", "a boat"),
        ({"prefix": "What colour is it?"}, "What colour is it?", ""),
        ({"prefix": "<VQA>What colour is it?"}, "<VQA>What colour is it?", ""),
        ({"task": None, "prefix": "", "input": None}, "<CAPTION>", ""),
        ({"task": "region_to_category", "input": "<loc_1><loc_2><loc_3><loc_4>"}, "<REGION_TO_CATEGORY>", None),
    ],
)
def test_task_and_input_of_a_row(photos, row, task, input_text):
    path = jsonl(photos / "list.jsonl", [{"file_name": "a.jpg", "text": "red", **row}])
    assert read_samples(path) == [("a.jpg", task, row.get("input") if input_text is None else input_text, "red")]


def test_several_tasks_for_one_image(photos):
    rows = [{"file_name": "a.jpg", "task": task, "text": task} for task in ("caption", "ocr", "what is it?")]
    assert [s[1] for s in read_samples(jsonl(photos / "list.jsonl", rows))] == ["<CAPTION>", "<OCR>", "what is it?"]


def test_several_targets_of_one_row(photos):
    path = jsonl(photos / "list.jsonl", [{"file_name": "a.jpg", "caption": ["one", " ", "two"]}])
    assert [s[3] for s in read_samples(path)] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (7, "has the text `7`, which is not a string"),  # a class number
        (0.5, "has the text `0.5`, which is not a string"),  # a score
        (True, "has the text `True`, which is not a string"),  # a truth value
        ([1, 2], "has the text `1`, which is not a string"),  # a list of numbers
        (float("nan"), "has no caption"),  # NaN of pandas in place of null
        ([float("nan")], "has no caption"),  # NaN within a list
        (float("inf"), "has the text `inf`, which is not a string"),  # infinity
    ],
)
def test_text_that_is_not_a_string_is_rejected(photos, text, message):
    assert message in read_error(jsonl(photos / "list.jsonl", [{"file_name": "a.jpg", "text": text}])).what


def test_region_in_pixels(photos):
    row = {"file_name": "a.jpg", "task": "region_to_category", "input": [100, 100, 500, 500.0], "text": "boat"}
    ((_, _, region, _),) = read_samples(jsonl(photos / "list.jsonl", [row]))
    assert region == "<loc_100><loc_200><loc_500><loc_999>"


# --- structured answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "answer", "target"),
    [
        (
            "od",
            {"bboxes": [[500, 250, 1000, 500], [0, 0, 100, 100]], "labels": ["boat", "sun"]},
            "sun<loc_0><loc_0><loc_100><loc_200>boat<loc_500><loc_500><loc_999><loc_999>",  # in reading order
        ),
        ("od", {"bboxes": [], "labels": []}, ""),  # an image without objects
        ("region_proposal", {"bboxes": [[0, 0, 100, 100]]}, "<loc_0><loc_0><loc_100><loc_200>"),
        (
            "ocr_with_region",
            {"quad_boxes": [[0, 0, 100, 0, 100, 50, 0, 50]], "labels": ["STOP"]},
            "STOP<loc_0><loc_0><loc_100><loc_0><loc_100><loc_100><loc_0><loc_100>",
        ),
        ("caption", "a boat ", "a boat"),
    ],
)
def test_answers_in_pixels_are_encoded(photos, task, answer, target):
    path = jsonl(photos / "list.jsonl", [{"file_name": "a.jpg", "task": task, "answer": answer}])
    assert [s[3] for s in read_samples(path)] == [target]


def test_text_takes_precedence_over_answer(photos):
    row = {"file_name": "a.jpg", "task": "od", "text": "the text", "answer": {"bboxes": [], "labels": []}}
    assert read_samples(jsonl(photos / "list.jsonl", [row]))[0][3] == "the text"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "caption", "answer": {"bboxes": [[0, 0, 1, 1]], "labels": ["x"]}}, "that does not fit `<CAPTION>`"),
        ({"task": "od", "answer": {"boxes": []}}, "that does not fit `<OD>`"),
        ({"task": "od", "answer": [[0, 0, 1, 1]]}, "that does not fit `<OD>`"),
        ({"task": "od", "answer": {"bboxes": [[0, 0, 1, 1]], "labels": []}}, "cannot be encoded"),
        ({"task": "od", "answer": {"bboxes": [], "labels": ["x"]}}, "cannot be encoded"),
        ({"task": "od", "answer": {"bboxes": [["a", "b", "c", "d"]], "labels": ["x"]}}, "cannot be encoded"),
        ({"task": "od", "answer": {"bboxes": 5, "labels": 5}}, "cannot be encoded"),
        ({"task": "region_to_category", "input": [1, 2, 3], "text": "x"}, "neither text nor a box"),
        ({"task": "region_to_category", "input": {"x": 1}, "text": "x"}, "neither text nor a box"),
        ({"task": "region_to_ocr", "text": "x"}, "has the task `region_to_ocr` without region"),
        (
            {"prefix": "<OPEN_VOCABULARY_DETECTION> ", "text": "x"},
            "has the task `open_vocabulary_detection` without words",
        ),
        ({"task": "od", "input": "boat", "text": "x"}, "`<OD>` takes no input and got `boat`"),
        ({"task": 5, "text": "x"}, "which is not a string"),
        ({"text": {"a": 1}}, "has a text that is not a string"),
        ({"text": [["a"]]}, "has a text that is not a string"),
    ],
)
def test_malformed_rows_are_named(photos, row, message):
    path = jsonl(photos / "list.jsonl", [{"file_name": "in/b.png", "text": "ok"}, {"file_name": "a.jpg", **row}])
    error = read_error(path)
    assert message in error.what
    assert error.what.startswith(f"{path} line 2")
    dataset = resolve(path, on_missing="skip")
    assert [sample.id for sample in dataset.samples] == ["in/b.png"]
    assert f"skipped: 1 that have a row that cannot be read, the first: {error.what}" in dataset.summary()


def test_unreadable_image_whose_size_is_needed(photos):
    (photos / "bad.jpg").write_bytes(b"junk")
    rows = [{"file_name": name, "task": "od", "answer": {"bboxes": [], "labels": []}} for name in ("a.jpg", "bad.jpg")]
    path = jsonl(photos / "list.jsonl", rows)
    assert read_error(path).what == (
        f"1 of 2 images in {path} cannot be read, the first: {photos / 'bad.jpg'} is not an image that can be read"
    )
    assert [s[0] for s in read_samples(path, on_missing="skip")] == ["a.jpg"]


# --- kinds of tables -------------------------------------------------------------------------------------------------


def test_csv(photos):
    path = photos / "metadata.csv"
    path.write_bytes(b'\xef\xbb\xbffile_name,text\r\na.jpg,"a boat, red"\r\nin/b.png,"two\nlines"\r\n')
    expected = [("a.jpg", "<CAPTION>", "", "a boat, red"), ("in/b.png", "<CAPTION>", "", "two\nlines")]
    assert read_samples(path) == expected
    assert read_samples(photos) == expected


def test_parquet(photos):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"file_name": ["a.jpg", "in/b.png"], "text": ["a boat", None]})
    parquet.write_table(table, photos / "metadata.parquet")
    assert read_samples(photos, on_missing="skip") == [("a.jpg", "<CAPTION>", "", "a boat")]
    assert read_error(photos / "metadata.parquet").hint.startswith(f"add `text` to {photos / 'metadata.parquet'} row 2")


def test_jsonl_with_a_byte_order_mark_and_empty_lines(photos):
    path = photos / "list.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"file_name": "a.jpg", "text": "a boat"}\r\n\r\n  \n')
    assert len(read_samples(path)) == 1


def test_maestro_folder(photos):
    image(photos / "valid" / "c.jpg")
    jsonl(photos / "valid" / "annotations.jsonl", [{"image": "c.jpg", "prefix": "<OD>", "suffix": "x<loc_1>"}])
    assert read_samples(photos, split="val") == [("c.jpg", "<OD>", "", "x<loc_1>")]


def test_kohya_json(photos):
    path = photos / "meta.json"
    path.write_text(
        json.dumps({"a": {"caption": "a boat", "tags": "boat, sea"}, str(photos / "in" / "b.png"): {"tags": "sea"}})
    )
    assert read_samples(path) == [
        ("a.jpg", "<CAPTION>", "", "a boat,boat, sea"),  # joined as kohya's trainers join them
        ("in/b.png", "<CAPTION>", "", "sea"),
    ]


def test_json_list_of_rows(photos):
    path = photos / "rows.json"
    path.write_text('[{"image": "a.jpg", "text": "a boat"}]')
    assert read_samples(path) == [("a.jpg", "<CAPTION>", "", "a boat")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"file_name": "a.jpg"', "a.jsonl line 1 is not JSON: "),
        ("a.jsonl", b'{"image": "a.jpg", "text": "x"}\n["a.jpg"]', "a.jsonl line 2 is not a JSON object"),
        ("a.jsonl", b'{"image": "a.jpg", "text": "Stra\xdfe"}', "a.jsonl line 1 is not UTF-8 text"),
        ("a.jsonl", '{"image": "a.jpg"}'.encode("utf-16"), "a.jsonl line 1 is not UTF-8 text"),
        ("a.jsonl", b"", "a.jsonl contains no rows"),
        ("a.jsonl", b'{"text": "x", "img": 1}', "a.jsonl line 1 names no image"),
        ("a.jsonl", b'{"file_name": ["a.jpg"]}', "a.jsonl line 1 names no image"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1 is not JSON: values are nested too deeply"),
        ("a.csv", b"", "a.csv contains no rows"),
        ("a.csv", b"file_name,text\na.jpg,one,two\n", "a.csv line 2 has more fields than the first line"),
        ("a.csv", b"file_name,text\na.jpg,Stra\xdfe\n", "a.csv is not UTF-8 text"),
        ("a.csv", b"file;words\na.jpg;boat\n", "a.csv line 2 names no image; its columns are `file`, `words`"),
        ("a.csv", b'file_name,text\na.jpg,"' + b"x" * 200_000 + b'"\n', "a.csv is not CSV after line 1: "),
        ("a.parquet", b"PAR1 no", "a.parquet is not a parquet file that can be read"),
        ("a.json", b"{", "a.json is not JSON"),
        (
            "a.json",
            b'{"file_name": "a.jpg", "text": "x"}',
            "a.json has `file_name`, `text`, and maps no image to a row",
        ),
        ("a.json", b"[1]", "a.json item 1 is not a JSON object"),
    ],
)
def test_damaged_tables_are_named(photos, name, content, message):
    (photos / name).write_bytes(content)
    error = read_error(photos / name)
    assert error.what.startswith(f"{photos}{os.sep}{message}")


def test_rows_without_images(photos):
    path = jsonl(photos / "list.jsonl", [{"a": 1}, {"b": 2}])
    assert list(read_rows(path)) == [(f"{path} line 1", {"a": 1}), (f"{path} line 2", {"b": 2})]


# --- missing targets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [{}, {"text": ""}, {"text": " \n"}, {"text": None}, {"text": []}, {"caption": [""]}])
def test_empty_captions_are_named(photos, row):
    path = jsonl(photos / "list.jsonl", [{"file_name": "in/b.png", "text": "ok"}, {"file_name": "a.jpg", **row}])
    error = read_error(path)
    assert error.what == f"1 of 2 images in {path} has no caption, the first is {photos / 'a.jpg'}"
    assert error.hint == f"add `text` to {path} line 2, or pass --on_missing skip"
    assert [s[0] for s in read_samples(path, on_missing="skip")] == ["in/b.png"]


@pytest.mark.parametrize("task", ["ocr", "region_to_ocr"])
def test_empty_answer_is_a_target_of_ocr_tasks(photos, task):
    task_fields = {"task": task, "input": "<loc_1><loc_2><loc_3><loc_4>" if task == "region_to_ocr" else ""}
    row = {"file_name": "a.jpg", **task_fields, "text": "", "answer": ""}
    assert [s[3] for s in read_samples(jsonl(photos / "list.jsonl", [row]))] == [""]
    read_error(jsonl(photos / "list.jsonl", [row | {"task": "caption", "input": ""}]))
    read_error(jsonl(photos / "list.jsonl", [{key: row[key] for key in row if key != "answer"}]))


def test_absent_images_are_counted(photos):
    rows = [{"file_name": name, "text": "x"} for name in ("a.jpg", "none.jpg", "in/none.jpg")]
    path = jsonl(photos / "list.jsonl", rows)
    error = read_error(path)
    assert error.what == f"2 of 3 images in {path} do not exist, the first is {photos / 'none.jpg'}"
    assert error.hint == "pass the folder of the images as --dataset_dir, or pass --on_missing skip"


# --- images outside the folder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "in/../../secret.jpg",
        "/etc/passwd",
        "{outside}/secret.jpg",
        "..",
        "leak.jpg",
        "door/secret.jpg",
    ],
)
@pytest.mark.parametrize("in_folder", [True, False])
def test_image_outside_the_folder_is_rejected(tmp_path, name, in_folder):
    photos, outside = tmp_path / "photos", tmp_path
    image(photos / "in" / "a.jpg")
    image(outside / "secret.jpg")
    (photos / "leak.jpg").symlink_to(outside / "secret.jpg")
    (photos / "door").symlink_to(outside, target_is_directory=True)
    name = name.replace("{outside}", str(outside))
    path = jsonl(photos / ("metadata.jsonl" if in_folder else "list.jsonl"), [{"file_name": name, "text": "x"}])
    error = read_error(photos if in_folder else path, on_missing="skip")
    assert error.what == f"{path} line 1: `{name}` is outside {photos}/"
    assert error.hint


@pytest.mark.parametrize("name", ["in/../a.jpg", "./a.jpg", "{root}/a.jpg", "../{folder}/a.jpg", "in//../a.jpg"])
def test_unusual_paths_inside_the_folder(photos, name):
    name = name.format(root=photos, folder=photos.name)
    assert read_samples(jsonl(photos / "list.jsonl", [{"file_name": name, "text": "x"}]))[0][0] == "a.jpg"


def test_links_within_the_folder_are_followed(photos):
    (photos / "alias.jpg").symlink_to(photos / "a.jpg")
    (photos / "door").symlink_to(photos / "in", target_is_directory=True)
    rows = [{"file_name": name, "text": "x"} for name in ("alias.jpg", "door/b.png")]
    assert [s[0] for s in read_samples(jsonl(photos / "list.jsonl", rows))] == ["alias.jpg", "door/b.png"]


def test_folder_reached_through_a_link(tmp_path):
    image(tmp_path / "real" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    rows = [{"file_name": name, "text": "x"} for name in ("a.jpg", str(tmp_path / "real" / "a.jpg"))]
    jsonl(tmp_path / "real" / "list.jsonl", [*rows, {"file_name": str(tmp_path / "link" / "a.jpg"), "text": "x"}])
    assert [s[0] for s in read_samples(tmp_path / "link" / "list.jsonl")] == ["a.jpg"] * 3


def test_backslashes_in_names(photos):
    assert read_samples(jsonl(photos / "list.jsonl", [{"file_name": "in\\b.png", "text": "x"}]))[0][0] == "in/b.png"


def test_impossible_file_names(photos):
    assert "is not a file name" in read_error(jsonl(photos / "1.jsonl", [{"file_name": "a\0.jpg", "text": "x"}])).what
    path = jsonl(photos / "2.jsonl", [{"file_name": "a" * 3000 + ".jpg", "text": "x"}])
    assert "does not exist" in read_error(path).what
    for name in ("data:image/png;base64,iVBORw0KGgo=", "/9j/4AAQ" * 1000):
        error = read_error(jsonl(photos / "3.jsonl", [{"image": name, "text": "x"}]))
        assert "has the image itself, " in error.what
        assert len(error.what) < 300


def test_dataset_dir_is_the_folder_of_the_images(tmp_path, photos):
    image(tmp_path / "elsewhere" / "c.jpg")
    path = jsonl(tmp_path / "lists" / "list.jsonl", [{"file_name": "c.jpg", "text": "x"}])
    result = resolve(path, dataset_dir=tmp_path / "elsewhere")
    assert result.samples[0].open().size == (20, 10)
    assert result.root == tmp_path / "elsewhere"
    assert "is not a folder" in read_error(path, dataset_dir=tmp_path / "none").what
    absolute = jsonl(path, [{"file_name": str(tmp_path / "elsewhere" / "c.jpg"), "text": "x"}])
    assert read_samples(absolute, dataset_dir=tmp_path / "elsewhere")[0][0] == "c.jpg"


# --- predictions as a dataset ----------------------------------------------------------------------------------------


def predictions(path: Path, photos: Path) -> Path:
    answer = {"bboxes": [[1.0, 2.0, 3.0, 4.0]], "labels": ["boat"]}
    rows = [
        Prediction("a.jpg", "<CAPTION>", text="a boat", num_tokens=3, score=-0.5),
        Prediction(
            "in/b.png", "<OD>", text="boat<loc_1><loc_2><loc_3><loc_4>", answer=Answer.from_dict(answer), num_tokens=7
        ),
        Prediction("broken.jpg", "<CAPTION>", error="broken.jpg cannot be read"),
    ]
    return jsonl(path, [row.to_json(relative_image_dir(path, photos)) for row in rows])


@pytest.mark.parametrize("place", ["photos/captions.jsonl", "captions.jsonl", "out/deep/captions.jsonl"])
def test_predictions_are_a_dataset_in_any_folder(tmp_path, place):
    photos = tmp_path / "photos"
    image(photos / "a.jpg", (1000, 500))
    image(photos / "in" / "b.png")
    path = predictions(tmp_path / place, photos)
    result = resolve(path)
    assert [(s.id, s.task, s.target) for s in result.samples] == [
        ("a.jpg", "<CAPTION>", "a boat"),
        ("in/b.png", "<OD>", "boat<loc_1><loc_2><loc_3><loc_4>"),
    ]
    assert result.root is not None
    assert result.root.resolve() == photos.resolve()
    assert result.samples[0].open().size == (1000, 500)
    assert [(s.id, s.reason) for s in result.skipped] == [("broken.jpg", SkipReason.FAILED)]
    assert "1 that could not be captioned before" in result.summary()


def test_predictions_moved_beside_their_images(tmp_path, photos):
    path = predictions(tmp_path / "out" / "captions.jsonl", photos)
    moved = path.rename(photos / "moved.jsonl")
    assert [s[0] for s in read_samples(moved)] == ["a.jpg", "in/b.png"]
    far = (tmp_path / "far").mkdir() or moved.rename(tmp_path / "far" / "away.jsonl")
    far.write_text(far.read_text().replace('"image_dir": ".."', '"image_dir": "gone"'))
    assert "do not exist" in read_error(far).what
    assert [s[0] for s in read_samples(far, dataset_dir=photos)] == ["a.jpg", "in/b.png"]


def test_predictions_of_two_folders_in_one_file(tmp_path):
    rows = []
    for name in ("one", "two"):
        image(tmp_path / name / "a.jpg")
        rows.append(Prediction("a.jpg", "<CAPTION>", text=name).to_json(name))
    result = resolve(jsonl(tmp_path / "both.jsonl", rows))
    assert [(s.id, s.target) for s in result.samples] == [("one/a.jpg", "one"), ("two/a.jpg", "two")]
    assert result.root == tmp_path
    assert all(s.open() for s in result.samples)


def test_image_outside_image_dir_is_rejected(tmp_path, photos):
    rows = [{"file_name": "../secret.jpg", "text": "x", "image_dir": photos.name}]
    assert "is outside" in read_error(jsonl(tmp_path.parent / "list.jsonl", rows)).what


def test_the_check_names_the_line_of_an_image_outside_the_folder_once(tmp_path, photos):
    path = jsonl(photos / "list.jsonl", [{"file_name": "../secret.jpg", "text": "x"}])
    (issue,) = check_dataset(dataset=str(path)).issues
    assert (issue.where, issue.what) == (f"{path} line 1", f"`../secret.jpg` is outside {photos}/")


def test_dataset_of_failed_predictions_only(tmp_path, photos):
    path = jsonl(photos / "captions.jsonl", [Prediction("a.jpg", "<CAPTION>", error="no").to_json()])
    assert read_error(path, on_missing="skip").what == f"{photos / 'a.jpg'} could not be captioned before"


def test_image_dir_that_is_no_path_is_ignored(photos):
    rows = [
        {"file_name": "in/b.png", "text": "x", "image_dir": "in"},
        {"file_name": "a.jpg", "text": "y", "image_dir": 3},
    ]
    assert [s[0] for s in read_samples(jsonl(photos / "list.jsonl", rows))] == ["in/b.png", "a.jpg"]
