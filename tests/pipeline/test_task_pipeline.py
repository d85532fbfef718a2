import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from florence2.data.resolve import resolve_images
from florence2.data.sample import Prediction, ResolvedDataset, Sample
from florence2.errors import UserError
from florence2.model.tasks import find_task
from florence2.pipeline.task_pipeline import TaskPipeline, next_inputs

CAT = "cat<loc_1><loc_2><loc_30><loc_40>"


def shown(steps) -> list:
    """Show a plan as nested lists of names."""
    return [[step.task.name, step.input, *shown(step.next_steps)] for step in steps]


@pytest.mark.parametrize(
    ("tasks", "words", "wanted"),
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
def test_tasks_and_cascades_are_read(tasks, words, wanted):
    assert shown(TaskPipeline.parse(tasks, words).steps) == wanted


@pytest.mark.parametrize(
    ("tasks", "words", "named"),
    [
        (["caption"], "a dog", "the input `a dog`, and none is taken by `caption`"),
        (["caption+od"], "", "`od` takes no input"),
        (["caption+region_to_ocr"], "", "`caption` answers text"),
        (["od+caption_to_phrase_grounding"], "", "`od` answers boxes"),
        (["caption+captoin_to_phrase_grounding"], "", "`captoin_to_phrase_grounding`"),
        (["caption+<OPEN_VOCABULARY_DETECTION>cat"], "", "its own input"),
        (["region_to_ocr"], "a dog", "`a dog` is no region"),
        (["region_to_ocr"], "1,2,3", "is no region"),
        (["region_to_ocr"], "<loc_1><loc_2><loc_3><loc_1000>", "is no region"),
        (["region_to_ocr"], "30,20,10,40", "holds nothing"),
    ],
)
def test_what_makes_no_plan_is_refused(tasks, words, named):
    with pytest.raises(UserError, match=named) as error:
        TaskPipeline.parse(tasks, words)
    assert error.value.hint


@pytest.mark.parametrize(
    ("task", "text", "wanted"),
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
def test_an_answer_is_the_next_input(task, text, wanted):
    assert next_inputs(find_task(task), text) == wanted


def found_in(folder: Path):
    return lambda task, words: resolve_images(folder, task=task, input=words)


def images(folder: Path, **sizes: tuple[int, int]) -> Path:
    for name, size in sizes.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    return folder


def test_the_questions_about_one_image_stand_together_and_share_it(tmp_path):
    plan = TaskPipeline.parse(["caption", "od+region_to_ocr"])
    _, found = plan.apply_to(
        lambda task, _: ResolvedDataset("x", None, [Sample(n, Image.new("RGB", (9, 9)), task) for n in "ab"])
    )
    assert [(s.id, s.task) for s in found.samples] == [(n, t) for n in "ab" for t in ("<CAPTION>", "<OD>")]
    assert found.samples[0].image is found.samples[1].image
    [led] = found.samples[1].follow_up(Prediction("a", "<OD>", text=CAT))
    assert led.key == ("a", "<REGION_TO_OCR>", "<loc_1><loc_2><loc_30><loc_40>")
    assert led.image is found.samples[1].image
    assert found.samples[0].follow_up is None
    again = pickle.loads(pickle.dumps(found.samples[1]))
    assert [sample.key for sample in again.follow_up(Prediction("a", "<OD>", text=CAT))] == [led.key]


def test_a_region_in_pixels_is_that_of_each_image(tmp_path):
    folder = images(tmp_path, a=(100, 100), b=(200, 50), c=(10, 10))
    _, found = TaskPipeline.parse(["region_to_ocr"], "10, 20, 50, 40.5").apply_to(found_in(folder))
    assert [sample.input for sample in found.samples[:2]] == [
        "<loc_100><loc_200><loc_500><loc_405>",
        "<loc_50><loc_400><loc_250><loc_810>",
    ]
    with pytest.raises(UserError, match=r"c.png has 10 x 10 pixels"):
        found.samples[2].open()
    beside = TaskPipeline.parse(["region_to_ocr", "caption"], "10,20,50,40").apply_to(found_in(folder))[1].samples[-1]
    assert (beside.key, beside.open().size) == (("c.png", "<CAPTION>", ""), (10, 10))


def test_a_task_without_its_input_is_refused_unless_rows_have_it(tmp_path):
    folder = images(tmp_path, a=(100, 100))
    with pytest.raises(UserError, match="needs region"):
        TaskPipeline.parse(["region_to_ocr"]).apply_to(found_in(folder))
    rows = folder / "list.csv"
    rows.write_text('file_name,input\na.png,"10,20,50,40"\n')
    [sample] = TaskPipeline.parse(["region_to_ocr"]).apply_to(found_in(rows))[1].samples
    assert sample.input == "<loc_100><loc_200><loc_500><loc_400>"


def test_rows_that_name_their_task_are_asked_that_alone(tmp_path):
    folder = images(tmp_path, a=(100, 100), b=(100, 100))
    (folder / "list.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "task": "ocr"}\n')
    _, found = TaskPipeline.parse(["caption", "od"]).apply_to(found_in(folder / "list.jsonl"))
    assert [(s.id, s.task) for s in found.samples] == [("a.png", "<CAPTION>"), ("a.png", "<OD>"), ("b.png", "<OCR>")]


def test_rows_may_name_cascades_of_their_own(tmp_path):
    folder = images(tmp_path, a=(100, 100), b=(100, 100), c=(100, 100))
    rows = [("a", "od+region_to_ocr", ""), ("b", "region_to_ocr", [10, 20, 50, 40]), ("c", "2 + 2 = ?", "")]
    lines = [{"file_name": f"{name}.png", "task": task, "input": words} for name, task, words in rows]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan, found = TaskPipeline.parse(["caption"]).apply_to(found_in(folder / "list.jsonl"))
    assert [(sample.task, sample.input) for sample in found.samples] == [
        ("<OD>", ""),
        ("<REGION_TO_OCR>", "<loc_100><loc_200><loc_500><loc_400>"),
        ("2 + 2 = ?", ""),
    ]
    assert [sample.follow_up is not None for sample in found.samples] == [True, False, False]
    assert (plan.has_follow_ups, plan.is_multi_task, [step.task.name for step in plan.steps]) == (
        True,
        True,
        ["caption"],
    )
    assert [task.name for task in plan.tasks] == ["caption", "od", "region_to_ocr"]
    (folder / "list.jsonl").write_text(json.dumps(lines[0] | {"task": "od+caption"}))
    with pytest.raises(UserError, match="`caption` takes no input, so `od` cannot lead to it"):
        TaskPipeline.parse(["caption"]).apply_to(found_in(folder / "list.jsonl"))
