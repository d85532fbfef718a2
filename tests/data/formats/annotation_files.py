"""Small annotation files in the formats of other tools, for the tests of `data/`."""

import json
from pathlib import Path
from typing import Any

from florence2.data.columns import ColumnMapping
from florence2.data.inspection.dataset_report import report_dataset
from florence2.data.inspection.dataset_rows import dataset_rows
from florence2.data.inspection.issues import LengthLimit, min_token_count
from florence2.data.resolve import split_spec
from tests.data.images import image

SIZE = (200, 100)


def read_objects(spec: Path | str, task: str = "od", **options: Any) -> dict[str, list[tuple[str, list[float]]]]:
    """Read the objects of each image as `florence2 data convert` does: labels with boxes, quads or polygons."""
    path, split = split_spec(str(spec), None)
    objects: dict[str, list[tuple[str, list[float]]]] = {}
    for row in dataset_rows(path, ColumnMapping(task), split=split, **options):
        if row.error is not None:
            raise row.error
        answer = row.row["answer"]
        kind = next(kind for kind in ("bboxes", "quad_boxes", "polygons") if kind in answer)
        rounded = [[round(side, 6) for side in ring] for ring in answer[kind]]
        objects.setdefault(row.row["file_name"], []).extend(zip(answer["labels"], rounded, strict=True))
    return objects


def check(spec: Path | str, task: str = "od", **options: Any) -> dict[str, Any]:
    """Return the report of `florence2 data check` as JSON."""
    columns = ColumnMapping(task)
    path, split = split_spec(str(spec), None)
    rows = dataset_rows(path, columns, split=split, **options)
    return report_dataset(path, rows, columns, LengthLimit(min_token_count, 1024)).to_json()


def coco(path: Path, annotations: list[dict[str, Any]], images: int = 1) -> Path:
    """Write a COCO file about images of 200 x 100, with the categories 1 cat and 2 stop-sign."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = [{"id": n, "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]} for n in range(images)]
    rows = [{"id": n, "image_id": 0, "category_id": 1, **row} for n, row in enumerate(annotations)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "stop-sign"}]
    path.write_text(json.dumps({"images": named, "annotations": rows, "categories": categories}))
    return path


def yolo(folder: Path, lines: str, content: str = "train: images\nnames: [cat, stop-sign]\n") -> Path:
    """Write one image of 200 x 100 and its labels; return the path of `data.yaml`."""
    image(folder / "images" / "0.png", SIZE)
    (folder / "labels").mkdir()
    (folder / "labels" / "0.txt").write_text(lines)
    (folder / "data.yaml").write_text(content)
    return folder / "data.yaml"


def voc(folder: Path, objects: str) -> Path:
    """Write one image of 200 x 100 and its XML in VOC's folders."""
    image(folder / "JPEGImages" / "0.jpg", SIZE)
    (folder / "Annotations").mkdir()
    size = "<size><width>200</width><height>100</height></size>"
    xml = f"<annotation><filename>0.jpg</filename>{size}{objects}</annotation>"
    (folder / "Annotations" / "0.xml").write_text(xml)
    return folder


def labelme(folder: Path, shapes: list[dict[str, Any]]) -> Path:
    """Write one image of 200 x 100 with LabelMe's JSON beside it."""
    image(folder / "0.png", SIZE)
    content = {"shapes": shapes, "imagePath": "..\\elsewhere\\0.png", "imageWidth": 200, "imageHeight": 100}
    (folder / "0.json").write_text(json.dumps(content))
    return folder
