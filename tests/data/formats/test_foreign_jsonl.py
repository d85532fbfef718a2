import pytest

from florence2.data.resolve import resolve_dataset
from florence2.errors import UserError
from tests.data.images import image, jsonl
from tests.strategies import locs


@pytest.fixture
def said(tmp_path):
    image(tmp_path / "a.png", (200, 100))

    def read(row):
        found = resolve_dataset(jsonl(tmp_path / "list.jsonl", [row]), task="caption")
        return [(sample.task, sample.input, sample.target) for sample in found.samples]

    return read


def swift(asked, answered, **objects):
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return {"messages": turns, "images": ["a.png"], "objects": objects}


def test_maestro(said):
    row = {"image": "a.png", "prefix": "<OD>", "suffix": f"cat{locs(0, 0)}<loc_1000><loc_1000>"}
    assert said(row) == [("<OD>", "", "cat" + locs(0, 0, 999, 999))]


def test_swift_boxes_in_pixels_and_in_parts(said):
    row = swift("<image><OD>", "<ref-object><bbox><ref-object><bbox>", ref=["dog", "cat"])
    row["objects"]["bbox"] = [[100, 50, 200, 100], [0, 0, 100, 50]]
    assert said(row) == [("<OD>", "", "cat" + locs(0, 0, 500, 500) + "dog" + locs(500, 500, 999, 999))]
    row["objects"] |= {"bbox": [[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5]], "bbox_type": "norm1"}
    assert said(row) == [("<OD>", "", "cat" + locs(0, 0, 500, 500) + "dog" + locs(500, 500, 999, 999))]


def test_swift_words_between_boxes_and_boxes_in_the_question(said):
    row = swift("<image>Who is where?", "A <ref-object><bbox> sits", ref=["dog"], bbox=[[0, 0, 100, 50]])
    assert said(row) == [("Who is where?", "", "A dog" + locs(0, 0, 500, 500) + " sits")]
    row = swift("<REGION_TO_CATEGORY><bbox>", "dog", bbox=[[0, 0, 100, 50]])
    assert said(row) == [("<REGION_TO_CATEGORY>", locs(0, 0, 500, 500), "dog")]
    assert said({"query": "<image><CAPTION>", "response": "a dog", "images": ["a.png"]}) == [("<CAPTION>", "", "a dog")]


def test_swift_rows_that_do_not_add_up(said):
    with pytest.raises(UserError, match="more `<bbox>` than `objects` names"):
        said(swift("<OD>", "<ref-object><bbox>", ref=["dog"], bbox=[]))
    with pytest.raises(UserError, match="has 2 pictures"):
        said(swift("<OD>", "dog") | {"images": ["a.png", "b.png"]})
    with pytest.raises(UserError, match="boxes of type `norm1000`"):
        said(swift("<OD>", "dog", bbox_type="norm1000"))


def test_questions_and_answers(said):
    row = {"image": "a.png", "question": "What is the total?", "answers": ["12", "12.00"]}
    assert said(row) == [("<DocVQA>", "What is the total?", "12"), ("<DocVQA>", "What is the total?", "12.00")]


def test_lines_of_text(said):
    lines = [
        {"transcription": "EXIT", "points": [[20, 10], [60, 10], [60, 30], [20, 30]]},
        {"text": "5", "box": [100, 10, 120, 30]},
        {"text": "###", "box": [0, 0, 1, 1]},
    ]
    ((task, _, text),) = said({"file_name": "a.png", "lines": lines})
    exit_, five = locs(100, 100, 300, 100, 300, 300, 100, 300), locs(500, 100, 600, 100, 600, 300, 500, 300)
    assert (task, text) == ("<OCR_WITH_REGION>", f"EXIT{exit_}5{five}")
    with pytest.raises(UserError, match="has 6 numbers"):
        said({"file_name": "a.png", "lines": [{"text": "x", "points": [1, 2, 3, 4, 5, 6]}]})
