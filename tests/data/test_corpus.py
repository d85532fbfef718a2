"""The corpus: every format as its exporter writes it, read listed, streamed, and converted to JSONL and read again."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from florence2.cli.program import main
from florence2.config import DataSettings
from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import Sample
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.model.geometry import bounding_box
from florence2.model.locations import decode
from florence2.model.tasks import TASKS
from tests.strategies import locs

CORPUS = Path(__file__).parents[1] / "corpus"
OBJECTS = {"a": [("cat", [4, 3, 20, 15]), ("dog", [22, 9, 36, 27])], "b": [("dog", [0, 0, 8, 8])]}
FROM_ONE = {"a": [("cat", [5, 4, 20, 15]), ("dog", [23, 10, 36, 27])], "b": [("dog", [1, 1, 8, 8])]}
LINES = {"a": [("EXIT", [4, 3, 20, 15])], "b": [("route 66", [22, 9, 36, 27])]}
DATUMARO_LINES = {"a": [("EXIT", [4, 3, 20, 15])], "b": [("5", [22, 9, 36, 27])]}
CAPTIONS = {"a": "a red field", "b": "a green field"}
COLORS = {(200, 0, 0): "a", (0, 200, 0): "b"}

BOXES = [
    "coco_datumaro",
    "coco_roboflow",
    "coco_supervision",
    "yolo_ultralytics",
    "yolo_supervision",
    "yolo_label_studio",
    "yolo_labelimg",
    "yolo_pose",
    "yolo_obb",
    "yolo_obb_roboflow",
    "darknet_datumaro",
    "voc_datumaro",
    "labelme",
    "x_anylabeling",
    "cvat",
    "cvat_datumaro",
    "label_studio",
    "label_studio_min",
    "createml",
    "vott_csv",
    "vott_json",
    "via_json",
    "via_csv",
    "supervisely",
    "open_images_datumaro",
    "hub_objects",
    "florence_common",
    "ms_swift/train.jsonl",
    "tfrecord",
]
TEXT_LINES = ["icdar_2015", "paddleocr", "funsd", "ocr_lines/train.jsonl"]
TEXTS = [
    ("text_files", "<MORE_DETAILED_CAPTION>", ""),
    ("kohya/meta_cap.json", "<MORE_DETAILED_CAPTION>", ""),
    ("coco_captions_datumaro", "<MORE_DETAILED_CAPTION>", ""),
    ("coco_captions", "<MORE_DETAILED_CAPTION>", ""),
    ("webdataset", "<MORE_DETAILED_CAPTION>", ""),
    ("llava/train.json", "Describe", ""),
    ("trl/train.jsonl", "Describe", ""),
    ("maestro", "<CAPTION>", ""),
]
Contents = list[tuple[str, str, str, str]]


def contents(samples: Iterable[Sample]) -> Contents:
    """Return image (by its color), task, input and target of samples, whatever their ids are."""
    return sorted(
        (COLORS[sample.open().image.getpixel((0, 0))], sample.task, sample.input, sample.target or "")  # type: ignore[index]
        for sample in samples
    )


def read(spec: Path | str) -> Contents:
    dataset = resolve_dataset(spec, DatasetOptions(DataSettings.task))
    assert not dataset.skipped
    return contents(dataset.samples)


def convert(spec: str | Path, output: Path, to: str) -> Path:
    assert main(["data", "convert", str(spec), str(output), "--to", to]) == 0
    return output


def read_in_all_ways(spec: str, folder: Path) -> Contents:
    """Read a dataset listed, streamed from tars, and converted to JSONL; return what all three agree on."""
    listed = read(CORPUS / spec)
    tars = convert(CORPUS / spec, folder / "tars", "shards")
    stream = SampleStream(find_sharded_source(str(tars), ColumnMapping(DataSettings.task)))
    assert contents(stream.epoch(0)) == listed
    assert read(convert(CORPUS / spec, folder / "jsonl", "jsonl")) == listed
    return listed


def bins(x1: float, y1: float, x2: float, y2: float) -> str:
    return locs(*(min(int(side * 1000 / (30 if at % 2 else 40)), 999) for at, side in enumerate((x1, y1, x2, y2))))


def detections(truth: dict[str, list[tuple[str, list[float]]]]) -> Contents:
    return [(name, "<OD>", "", "".join(label + bins(*box) for label, box in truth[name])) for name in truth]


@pytest.mark.parametrize(
    ("spec", "truth"),
    [*((spec, OBJECTS) for spec in BOXES), ("voc_supervision", FROM_ONE)],
    ids=lambda each: str(each)[:24],
)
def test_boxes(spec: str, truth: dict[str, list[tuple[str, list[float]]]], tmp_path: Path) -> None:
    assert read_in_all_ways(spec, tmp_path) == detections(truth)


@pytest.mark.parametrize(
    ("spec", "truth"), [*((spec, LINES) for spec in TEXT_LINES), ("icdar_datumaro/default", DATUMARO_LINES)]
)
def test_text_lines(spec: str, truth: dict[str, list[tuple[str, list[float]]]], tmp_path: Path) -> None:
    quads = [
        (name, "<OCR_WITH_REGION>", "", label + bins(x1, y1, x2, y1) + bins(x2, y2, x1, y2))
        for name, [(label, (x1, y1, x2, y2))] in truth.items()
    ]
    assert read_in_all_ways(spec, tmp_path) == quads


@pytest.mark.parametrize(("spec", "task", "task_input"), TEXTS)
def test_texts(spec: str, task: str, task_input: str, tmp_path: Path) -> None:
    assert read_in_all_ways(spec, tmp_path) == [(name, task, task_input, text) for name, text in CAPTIONS.items()]


def test_questions(tmp_path: Path) -> None:
    expected = [(name, "<DocVQA>", "Which color?", text.split()[1]) for name, text in CAPTIONS.items()]
    assert read_in_all_ways("docvqa", tmp_path) == expected


@pytest.mark.parametrize("to", ["coco", "yolo"])
@pytest.mark.parametrize("spec", ["coco_datumaro", "labelme", "yolo_obb", "tfrecord"])
def test_written_formats_are_read_back(spec: str, to: str, tmp_path: Path) -> None:
    written = convert(CORPUS / spec, tmp_path / "out", to)
    before, after = (
        [(name, item.label, bounding_box(item.rings)) for name, _, _, text in each for item in decode_boxes(text)]
        for each in (read(CORPUS / spec), read(written))
    )
    assert [each[:2] for each in after] == [each[:2] for each in before]
    for (_, _, box), (_, _, expected) in zip(after, before, strict=True):
        assert box == pytest.approx(expected, abs=0.05)  # one bin


def decode_boxes(text: str) -> list:  # type: ignore[type-arg]
    return list(decode(next(task for task in TASKS if task.name == "od"), text, (40, 30)))


def test_every_folder_of_the_corpus_is_read() -> None:
    specs = [*BOXES, "voc_supervision", *TEXT_LINES, "icdar_datumaro", *(spec for spec, *_ in TEXTS), "docvqa"]
    tested = {spec.split("/")[0] for spec in specs}
    assert tested == {path.name for path in CORPUS.iterdir() if path.is_dir()}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000
