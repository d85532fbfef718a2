"""`--min_score`: objects below it are in no text, no answer, no image and no export, and are counted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from florence2.api import evaluate, predict
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.demo.scenes import make_scene
from florence2.errors import OptionError
from florence2.model.locations import decode
from florence2.model.tasks import find_task
from florence2.results.shards.parquet_rows import read_parquet

COLUMNS = ("file_name", "text", "task", "num_tokens", "removed_objects")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(4):
        make_scene(60 + number).render().save(folder / f"{number}.png")
    return folder


def read_rows(path: Path) -> list[dict[str, Any]]:
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: str(row["file_name"]))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "florence2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def middle_score(rows: list[dict[str, Any]]) -> float:
    scores = sorted(score for row in rows for score in row["answer"]["scores"])
    assert scores[0] < scores[-1]
    return (scores[0] + scores[1]) / 2


def test_objects_below_the_score_are_removed_everywhere_and_counted(scenes: Path, tmp_path: Path) -> None:
    common = {"model_path": "demo", "input_path": str(scenes), "task": ("od",), "dtype": "float32"}
    predict(**common, output_path=str(tmp_path / "all.jsonl"))
    rows = read_rows(tmp_path / "all.jsonl")
    min_score = middle_score(rows)
    total = sum(len(row["answer"]["labels"]) for row in rows)
    for engine in ("continuous", "generate"):
        output = tmp_path / f"{engine}.jsonl"
        summary = predict(
            **common,
            output_path=str(output),
            engine=engine,
            export=("coco",),
            min_score=min_score,
            save_images=str(tmp_path),
        )
        assert summary.num_removed == summary.to_json()["removed_objects"] == 1
        assert "1 object removed, with a score below `--min_score`" in str(summary)
        found = read_rows(output)
        assert sum(row.get("removed_objects", 0) for row in found) == 1
        for row, full in zip(found, rows, strict=True):
            expected = [number for number, score in enumerate(full["answer"]["scores"]) if score >= min_score]
            assert row["answer"]["bboxes"] == [full["answer"]["bboxes"][number] for number in expected]
            size = make_scene(60 + int(row["file_name"][0])).size
            assert decode(find_task("od"), row["text"], size).bboxes == row["answer"]["bboxes"]
        coco = json.loads((tmp_path / f"{engine}-coco" / "_annotations.coco.json").read_text())
        assert len(coco["annotations"]) == total - 1
    done = run("data", "convert", tmp_path / "all.jsonl", tmp_path / "out", "--to", "coco", "--min_score", min_score)
    assert "skipped: 1 objects with a score below" in done.stdout, done.stderr
    coco = json.loads((tmp_path / "out" / "_annotations.coco.json").read_text())
    assert len(coco["annotations"]) == total - 1


def test_shards_have_the_rows_and_counts_of_one_process(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tars").mkdir()
    images = [(path.name, path.read_bytes(), [{}]) for path in sorted(scenes.glob("*.png"))]
    write_shards(tmp_path / "tars", images, 2)
    common: dict[str, Any] = {"model_path": "demo", "input_path": str(tmp_path / "tars"), "task": ("od",)}
    common |= {"dtype": "float32"}
    predict(**common, output_path=str(tmp_path / "all.jsonl"))
    common["min_score"] = middle_score(read_rows(tmp_path / "all.jsonl"))
    plain = predict(**common, output_path=str(tmp_path / "plain.jsonl"))
    rows = read_rows(tmp_path / "plain.jsonl")
    assert plain.num_removed == sum(row.get("removed_objects", 0) for row in rows) > 0
    assert any(row["text"] for row in rows)
    for name in ("out/", "rows.parquet"):
        summary = predict(**common, output_path=f"{tmp_path}/{name}")
        assert summary.num_removed == plain.num_removed
        written = tmp_path / name
        found = list(read_parquet(written)) if written.is_file() else []
        found += [row for path in written.glob("*.jsonl") for row in read_rows(path)]
        found.sort(key=lambda row: str(row["file_name"]))
        for row, other in zip(found, rows, strict=True):
            assert [row.get(key) for key in COLUMNS] == [other.get(key) for key in COLUMNS]
            assert row["answer"]["bboxes"] == other["answer"]["bboxes"]
            assert row["answer"]["scores"] == pytest.approx(other["answer"]["scores"], rel=1e-3)
    captions: dict[str, Any] = common | {"task": ("caption",), "output_path": f"{tmp_path}/captions/"}
    assert predict(**captions).num_predictions == len(rows)  # the records of tars may have tasks of their own
    assert "`caption` answers text: it applies only to rows with a task of their own" in caplog.text
    with pytest.raises(OptionError, match="`--min_score` removes objects, and `caption` answers text"):
        predict(**captions | {"input_path": str(scenes)})


def test_min_score_is_refused_where_nothing_has_a_score(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="`--min_score` removes objects, and `caption` answers text"):
        predict(model_path="demo", input_path=str(scenes), output_path=str(tmp_path / "o.jsonl"), min_score=0.5)
    with pytest.raises(OptionError, match="`min_score` is 2"):
        predict(model_path="demo", input_path=str(scenes), output_path=str(tmp_path / "o.jsonl"), min_score=2.0)
    row = {"file_name": "0.png", "task": "od", "answer": {"bboxes": [[1, 1, 9, 9]], "labels": ["cat"]}}
    (scenes / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(OptionError, match="setting of prediction"):
        evaluate(predictions=str(scenes / "rows.jsonl"), references=str(scenes / "rows.jsonl"), min_score=0.5)
    done = run("data", "convert", scenes / "rows.jsonl", tmp_path / "out", "--min_score", 0.5)
    assert done.returncode == 2
    assert "no object has one" in done.stderr
    assert not (tmp_path / "out").exists()
