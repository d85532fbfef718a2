import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from florence2.data.resolve import resolve_images
from florence2.data.sample import Prediction, ResolvedDataset, Sample
from florence2.errors import DatasetError, OptionError
from florence2.model.tasks import find_task
from florence2.pipeline.task_pipeline import TaskPipeline, next_inputs

CAT = "cat<loc_1><loc_2><loc_30><loc_40>"


def names(steps) -> list:
    """Return the steps as nested lists of task names and inputs."""
    return [[step.task.name, step.input, *names(step.next_steps)] for step in steps]


@pytest.mark.parametrize(
    ("tasks", "task_input", "expected"),
    [
        (["caption"], "", [["caption", ""]]),
        (["caption", "OD", "<OCR>"], "", [["caption", ""], ["od", ""], ["ocr", ""]]),
        (["od", "od"], "", [["od", ""]]),
        (
            ["caption", "caption_to_phrase_grounding"],
            "a dog",
            [["caption", ""], ["caption_to_phrase_grounding", "a dog"]],
        ),
        (["what is 1+1?"], "", [["what is 1+1?", ""]]),
        (["what is it?"], " dog", [["what is it?", "dog"]]),
        (["<OPEN_VOCABULARY_DETECTION>cat+mouse"], "", [["open_vocabulary_detection", "cat+mouse"]]),
        (["od + region_to_ocr"], "", [["od", "", ["region_to_ocr", ""]]]),
        (["say it+caption_to_phrase_grounding"], "", [["say it", "", ["caption_to_phrase_grounding", ""]]]),
        (
            ["od+region_to_description+caption_to_phrase_grounding", "od+region_to_ocr", "od"],
            "",
            [["od", "", ["region_to_description", "", ["caption_to_phrase_grounding", ""]], ["region_to_ocr", ""]]],
        ),
    ],
)
def test_tasks_and_cascades_are_parsed(tasks, task_input, expected):
    assert names(TaskPipeline.parse(tasks, task_input).steps) == expected


@pytest.mark.parametrize(
    ("tasks", "task_input", "named"),
    [
        (["caption"], "a dog", "the input `a dog` is not used, because `caption` takes none"),
        (["caption+od"], "", "`od` takes no input"),
        (["caption+region_to_ocr"], "", "`caption` answers text"),
        (["od+caption_to_phrase_grounding"], "", "`od` answers boxes"),
        (["caption+captoin_to_phrase_grounding"], "", "`captoin_to_phrase_grounding`"),
        (["caption+<OPEN_VOCABULARY_DETECTION>cat"], "", "its own input"),
        (["region_to_ocr"], "a dog", "`a dog` is not a region"),
        (["region_to_ocr"], "1,2,3", "is not a region"),
        (["region_to_ocr"], "<loc_1><loc_2><loc_3><loc_1000>", "is not a region"),
        (["region_to_ocr"], "30,20,10,40", "is empty"),
    ],
)
def test_invalid_pipelines_are_rejected(tasks, task_input, named):
    with pytest.raises(OptionError, match=named) as error:
        TaskPipeline.parse(tasks, task_input)
    assert error.value.hint


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("caption", " a cat ", ["a cat"]),
        ("caption", " ", []),
        (
            "od",
            f"{CAT}<loc_5><loc_6><loc_7><loc_8>dog",
            ["<loc_1><loc_2><loc_30><loc_40>", "<loc_5><loc_6><loc_7><loc_8>"],
        ),
        ("od", CAT + CAT, ["<loc_1><loc_2><loc_30><loc_40>"]),
        (
            "ocr_with_region",
            "a<loc_5><loc_2><loc_9><loc_1><loc_9><loc_7><loc_4><loc_8>",
            ["<loc_4><loc_1><loc_9><loc_8>"],
        ),
    ],
)
def test_next_inputs_of_an_answer(task, text, expected):
    assert next_inputs(find_task(task), text) == expected


def resolver(folder: Path):
    return lambda task, task_input: resolve_images(folder, task=task, input=task_input)


def save_images(folder: Path, **sizes: tuple[int, int]) -> Path:
    for name, size in sizes.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    return folder


def test_samples_of_one_image_are_adjacent_and_have_one_image_object(tmp_path):
    pipeline = TaskPipeline.parse(["caption", "od+region_to_ocr"])
    _, dataset = pipeline.apply_to(
        lambda task, _: ResolvedDataset("x", None, [Sample(n, Image.new("RGB", (9, 9)), task) for n in "ab"])
    )
    assert [(s.id, s.task) for s in dataset.samples] == [(n, t) for n in "ab" for t in ("<CAPTION>", "<OD>")]
    assert dataset.samples[0].image is dataset.samples[1].image
    [follow_up] = dataset.samples[1].follow_up(Prediction("a", "<OD>", text=CAT))
    assert follow_up.key == ("a", "<REGION_TO_OCR>", "<loc_1><loc_2><loc_30><loc_40>")
    assert follow_up.image is dataset.samples[1].image
    assert dataset.samples[0].follow_up is None
    again = pickle.loads(pickle.dumps(dataset.samples[1]))
    assert [sample.key for sample in again.follow_up(Prediction("a", "<OD>", text=CAT))] == [follow_up.key]


def test_region_in_pixels_is_converted_for_each_image(tmp_path):
    folder = save_images(tmp_path, a=(100, 100), b=(200, 50), c=(10, 10))
    _, dataset = TaskPipeline.parse(["region_to_ocr"], "10, 20, 50, 40.5").apply_to(resolver(folder))
    assert [sample.input for sample in dataset.samples[:2]] == [
        "<loc_100><loc_200><loc_500><loc_405>",
        "<loc_50><loc_400><loc_250><loc_810>",
    ]
    with pytest.raises(DatasetError, match=r"c.png has 10 x 10 pixels"):
        dataset.samples[2].open()
    beside = TaskPipeline.parse(["region_to_ocr", "caption"], "10,20,50,40").apply_to(resolver(folder))[1].samples[-1]
    assert (beside.key, beside.open().size) == (("c.png", "<CAPTION>", ""), (10, 10))


def test_missing_input_is_rejected_unless_rows_have_it(tmp_path):
    folder = save_images(tmp_path, a=(100, 100))
    with pytest.raises(OptionError, match="needs region"):
        TaskPipeline.parse(["region_to_ocr"]).apply_to(resolver(folder))
    rows = folder / "list.csv"
    rows.write_text('file_name,input\na.png,"10,20,50,40"\n')
    [sample] = TaskPipeline.parse(["region_to_ocr"]).apply_to(resolver(rows))[1].samples
    assert sample.input == "<loc_100><loc_200><loc_500><loc_400>"


def test_row_with_a_task_has_that_task_only(tmp_path):
    folder = save_images(tmp_path, a=(100, 100), b=(100, 100))
    (folder / "list.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "task": "ocr"}\n')
    _, dataset = TaskPipeline.parse(["caption", "od"]).apply_to(resolver(folder / "list.jsonl"))
    assert [(s.id, s.task) for s in dataset.samples] == [("a.png", "<CAPTION>"), ("a.png", "<OD>"), ("b.png", "<OCR>")]


def test_row_with_a_cascade(tmp_path):
    folder = save_images(tmp_path, a=(100, 100), b=(100, 100), c=(100, 100))
    rows = [("a", "od+region_to_ocr", ""), ("b", "region_to_ocr", [10, 20, 50, 40]), ("c", "2 + 2 = ?", "")]
    lines = [{"file_name": f"{name}.png", "task": task, "input": task_input} for name, task, task_input in rows]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pipeline, dataset = TaskPipeline.parse(["caption"]).apply_to(resolver(folder / "list.jsonl"))
    assert [(sample.task, sample.input) for sample in dataset.samples] == [
        ("<OD>", ""),
        ("<REGION_TO_OCR>", "<loc_100><loc_200><loc_500><loc_400>"),
        ("2 + 2 = ?", ""),
    ]
    assert [sample.follow_up is not None for sample in dataset.samples] == [True, False, False]
    assert (pipeline.has_follow_ups, pipeline.is_multi_task, [step.task.name for step in pipeline.steps]) == (
        True,
        True,
        ["caption"],
    )
    assert [task.name for task in pipeline.tasks] == ["caption", "od", "region_to_ocr"]
    (folder / "list.jsonl").write_text(json.dumps(lines[0] | {"task": "od+caption"}))
    with pytest.raises(OptionError, match="`caption` takes no input, so it cannot follow `od`"):
        TaskPipeline.parse(["caption"]).apply_to(resolver(folder / "list.jsonl"))
