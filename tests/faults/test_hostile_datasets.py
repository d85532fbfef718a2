"""Datasets whose files are damaged or made to harm: every one is read, reported or refused in one line."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from florence2.cli.program import main
from florence2.config import DEFAULT_TASK
from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import Prediction, Sample
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.tables import read_rows_or_errors
from florence2.errors import DatasetError
from florence2.results.annotated_images import AnnotatedImageWriter
from florence2.results.shards.job_folder import read_job
from florence2.results.sidecar import SidecarWriter

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"


def run_mutations(first: int, last: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.faults.mutate_datasets", str(CORPUS), str(first), str(last)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_mutated_datasets_are_read_or_refused() -> None:
    result = run_mutations(0, 98)
    assert result["failures"] == []
    assert result["endings"]["refused"] > 20
    assert result["endings"]["has samples"] > 10


@pytest.mark.long
def test_many_mutated_datasets_are_read_or_refused() -> None:
    first = run_mutations(0, 490)
    result = run_mutations(490, 10_000 * len(first["datasets"]))
    assert first["failures"] + result["failures"] == []


def test_damaged_text_in_parquet_is_an_error_of_the_file(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"file_name": "caption-of-a.png", "text": "a boat"}])
    pyarrow.parquet.write_table(table, tmp_path / "metadata.parquet", compression="none")
    content = (tmp_path / "metadata.parquet").read_bytes()
    (tmp_path / "metadata.parquet").write_bytes(content.replace(b"a boat", b"a\xff\xfeoat"))
    with pytest.raises(DatasetError, match="is not a parquet file that can be read: 'utf-8' codec"):
        resolve_dataset(tmp_path / "metadata.parquet", DatasetOptions(DEFAULT_TASK))


def test_damaged_saved_dataset_is_an_error_of_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    saved = datasets.Dataset.from_list([{"image": str(tmp_path / "a.png"), "text": "a boat"}])
    saved.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    content = arrow.read_bytes()
    [offsets] = [at for at in range(0, len(content), 8) if content[at : at + 8] == struct.pack("<ii", 0, 6)]
    beyond = content[: offsets + 4] + struct.pack("<i", 2**30) + content[offsets + 8 :]  # an offset
    for damaged in (content.replace(b"a boat", b"a\xff\xfeoat"), content[:46], beyond):
        arrow.write_bytes(damaged)
        with pytest.raises(DatasetError, match="is not a dataset that can be read"):
            resolve_dataset(tmp_path / "saved", DatasetOptions(DEFAULT_TASK))
        with pytest.raises(DatasetError, match="is not a dataset that can be read"):
            list(SampleStream(find_sharded_source(str(tmp_path / "saved"), ColumnMapping(DEFAULT_TASK))).epoch(0))


def test_name_that_is_too_long_is_an_absent_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "Label.txt").write_text(f"{'x' * 300}\t[]\n")
    assert main(["data", "check", str(tmp_path)]) != 0
    assert main(["data", "check", "x" * 300]) == 2
    assert "error: File name too long" in capsys.readouterr().err


UNUSUAL = {"digits": "9" * 5000, "beyond a float": "9" * 400, "nested": "[" * 100_000 + "]" * 100_000}


@pytest.mark.parametrize("value", UNUSUAL.values(), ids=UNUSUAL)
def test_json_that_python_does_not_represent_is_refused_in_one_line(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = f'"annotations": [{{"id": 1, "image_id": 1, "category_id": 1, "bbox": [{value}, 1, 2, 3]}}]'
    images = '"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "a"}]'
    contents = {
        "_annotations.coco.json": f"{{{images}, {objects}}}",
        "metadata.jsonl": f'{{"file_name": "a.png", "task": "od", "answer": {{"bboxes": [[{value}, 1, 2, 3]]}}}}',
        "a.json": f'{{"shapes": [{{"label": "a", "points": [[{value}, 1], [2, 3]]}}], "imagePath": "a.png"}}',
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(image_bytes())
        (tmp_path / name / name).write_text(content)
        assert main(["data", "check", str(tmp_path / name)]) in (1, 2)
        with pytest.raises(DatasetError) as caught:
            resolve_dataset(tmp_path / name, DatasetOptions("od"))
        assert "\n" not in caught.value.what
        assert len(caught.value.what) < 600


def test_line_without_end_takes_no_memory_and_hides_no_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("florence2.data.tables._MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.png").write_bytes(image_bytes())
    row = '{"file_name": "a.png", "text": "a boat"}\n'
    with (tmp_path / "metadata.jsonl").open("w") as file:
        file.write(row)
        for _ in range(20):
            file.write("x" * (1 << 20))
        file.write(f"\n{row}")
    tracemalloc.start()
    rows = list(read_rows_or_errors(tmp_path / "metadata.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [isinstance(each, DatasetError) for _, each in rows] == [False, True, False]
    assert "line 2 has more than 1 MiB" in rows[1][1].what
    assert peak < 8 << 20


def test_line_that_is_too_long_is_an_error_of_its_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "gt_a.txt").write_text(f"1,1,9,1,9,5,1,5,{'x' * 200_000}\n")
    with pytest.raises(DatasetError, match="line 1 is not a row of text: field larger"):
        resolve_dataset(tmp_path, DatasetOptions(DEFAULT_TASK))


def test_yaml_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    for names in ("[" * 10_000, "2024-13-45"):
        (tmp_path / "data.yaml").write_text(f"names: {names}\ntrain: .\n")
        with pytest.raises(DatasetError, match="is not YAML"):
            resolve_dataset(tmp_path / "data.yaml", DatasetOptions("od"))


@pytest.mark.parametrize("name", ["Label.txt", "gt_a.txt", "via.csv"])
def test_line_breaks_of_unicode_are_part_of_a_text(tmp_path: Path, name: str) -> None:
    text = "one\u2028two\x0bthree\x85four\x1cfive"
    points = [[1, 1], [9, 1], [9, 5], [1, 5]]
    region = json.dumps({"name": "polygon", "all_points_x": [1, 9, 9, 1], "all_points_y": [1, 1, 5, 5]})
    label = json.dumps({"label": text}, ensure_ascii=False).replace('"', '""')
    contents = {
        "Label.txt": "a.png\t" + json.dumps([{"transcription": text, "points": points}], ensure_ascii=False) + "\n",
        "gt_a.txt": f"1,1,9,1,9,5,1,5,{text}\n",
        "via.csv": "filename,region_shape_attributes,region_attributes\n"
        + 'a.png,"{}","{}"\n'.format(region.replace('"', '""'), label),
    }
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / name).write_text(contents[name], encoding="utf-8")
    [sample] = resolve_dataset(tmp_path, DatasetOptions(DEFAULT_TASK)).samples
    assert [word in str(sample.target) for word in ("one", "two", "three", "four", "five")] == [True] * 5


def image_bytes() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (100, 100), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "seed_row",
    [
        {"file_name": "class\u0000.png", "text": "a"},
        {"file_name": "../secret.png", "text": "a"},
        {"file_name": "/etc/passwd", "text": "a"},
    ],
)
def test_rows_name_no_file_outside_the_folder(tmp_path: Path, seed_row: dict[str, str]) -> None:
    (tmp_path / "secret.png").write_bytes(image_bytes())
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "metadata.jsonl").write_text(json.dumps(seed_row) + "\n")
    with pytest.raises(DatasetError) as caught:
        resolve_dataset(folder, DatasetOptions(DEFAULT_TASK))
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("value", ['SYSTEM "file:///etc/hostname"', '"&lt;loc_1&gt;"'])
def test_entities_of_xml_are_not_expanded(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    entity = f"<!DOCTYPE a [<!ENTITY x {value}>]>"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(
        f"{entity}<annotation><filename>a.png</filename><object><name>&x;</name>{box}</object></annotation>"
    )
    with pytest.raises(DatasetError):
        resolve_dataset(tmp_path, DatasetOptions("od"))


def test_yaml_tags_build_no_objects(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text(f"names: !!python/object/apply:pathlib.Path.touch ['{canary}']\ntrain: .\n")
    with pytest.raises(DatasetError, match="not YAML"):
        resolve_dataset(tmp_path / "data.yaml", DatasetOptions("od"))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: [[x, y]]\ntrain: .\n", "a class 0 in `names`"),
        ("path: /etc\ntrain: hostname\nnames: [x]\n", "nor a list"),
    ],
)
def test_lists_as_names_and_other_files_as_lists_are_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text(config)
    with pytest.raises(DatasetError, match=message):
        resolve_dataset(tmp_path / "data.yaml", DatasetOptions("od"))


def test_members_of_tars_are_not_written_to_disk(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("../../escape.png", image_bytes()), ("../../escape.txt", b"a caption")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    before = set(tmp_path.parent.rglob("*"))
    with contextlib.suppress(DatasetError):
        for sample in resolve_dataset(path, DatasetOptions(DEFAULT_TASK)).samples:
            sample.open()
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse the name")
@pytest.mark.parametrize(
    "row", ['"text": "a \\ud800 b"', '"task": "od", "answer": {"bboxes": [[1, 1, 9, 9]], "labels": ["\\udfff"]}']
)
def test_half_of_a_surrogate_pair_is_an_error_of_its_row(
    tmp_path: Path, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "d"
    dataset.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    (dataset / name).write_bytes(image_bytes())
    lines = [f'{{"file_name": "caf\\udce9.png", {row}}}', '{"file_name": "caf\\udce9.png", "text": "a boat"}']
    (dataset / "metadata.jsonl").write_text("\n".join(lines))
    assert main(["data", "check", str(dataset)]) == 1
    assert "has half of a character" in capsys.readouterr().out
    resolved = resolve_dataset(dataset, DatasetOptions(DEFAULT_TASK, on_missing="skip"))
    assert ([each.id for each in resolved.samples], len(resolved.skipped)) == ([name], 1)
    page, folder = tmp_path / "page.html", tmp_path / "folder"
    assert main(["data", "preview", str(dataset), str(page)]) == 0
    assert r"caf\udce9.png" in page.read_text(encoding="utf-8")
    assert main(["data", "convert", str(dataset), str(folder), "--to", "folder"]) == 0
    assert [path.name for path in folder.glob("*.txt")] == [os.fsdecode(b"caf\xe9.txt")]


def test_rows_name_no_address_of_this_machine_and_none_is_read_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside.png").write_bytes(image_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        names = [f"file://{tmp_path}/outside.png", f"http://127.0.0.1:{server.getsockname()[1]}/a.png"]
        table = tmp_path / "d.jsonl"
        table.write_text("".join(json.dumps({"file_name": name, "text": "a boat"}) + "\n" for name in names))
        assert main(["data", "check", str(table), "--offline"]) == 1
        with pytest.raises(BlockingIOError):
            server.accept()
    output = capsys.readouterr().out
    assert f"line 1: `{names[0]}` is no address of a store" in output
    assert f"{names[1]} is not on this machine" in output
    assert "FLORENCE2_OFFLINE" not in os.environ


def test_names_that_lead_out_of_their_tar_are_counted_and_write_nothing_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    with tarfile.open(inside / "s.tar", "w") as tar:
        for name in ("../../evil", "x/../../../evil", f"{tmp_path}/evil", "good"):
            for suffix, content in ((".png", image_bytes()), (".txt", b"a boat")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    assert main(["data", "convert", str(inside / "s.tar"), str(inside / "out"), "--to", "folder"]) == 0
    assert "skipped: 6 file whose name leads out of the tar (not read)" in capsys.readouterr().out
    assert sorted(path.name for path in (inside / "out").iterdir()) == ["good.png", "good.txt"]
    for name in ("../evil.png", f"{tmp_path}/evil.png", "https://host/x/../../../../evil.png"):
        prediction = Prediction(name, "<CAPTION>", text="a boat")
        for writer in (
            SidecarWriter(inside, ".txt", "overwrite"),
            AnnotatedImageWriter(str(inside), [Sample(name, image_bytes(), "caption")]),
        ):
            with pytest.raises(DatasetError, match="leads out of the folder"):
                writer.write(prediction)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"shards": 5}', '{"shards": [["../.."]]}'])
def test_a_damaged_file_of_a_job_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run" / "job.json").write_text(content)
    with pytest.raises(DatasetError, match=r"job\.json is damaged"):
        resolve_dataset(tmp_path, DatasetOptions(DEFAULT_TASK))
    with pytest.raises(DatasetError, match="is not the output of a job"):
        read_job(f"{tmp_path}/")
