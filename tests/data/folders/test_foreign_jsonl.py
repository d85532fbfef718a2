import pytest

from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import DatasetError
from tests.data.images import image, jsonl
from tests.strategies import locs


@pytest.fixture
def read_row(tmp_path):
    image(tmp_path / "a.png", (200, 100))

    def read(row):
        found = resolve_dataset(jsonl(tmp_path / "list.jsonl", [row]), DatasetOptions("caption"))
        return [(sample.task, sample.input, sample.target) for sample in found.samples]

    return read


def swift(prompt, response, **objects):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"messages": messages, "images": ["a.png"], "objects": objects}


def test_maestro_rows(read_row):
    row = {"image": "a.png", "prefix": "<OD>", "suffix": f"cat{locs(0, 0)}<loc_1000><loc_1000>"}
    assert read_row(row) == [("<OD>", "", "cat" + locs(0, 0, 999, 999))]


def test_swift_boxes_in_pixels_and_normalized(read_row):
    row = swift("<image><OD>", "<ref-object><bbox><ref-object><bbox>", ref=["dog", "cat"])
    row["objects"]["bbox"] = [[100, 50, 200, 100], [0, 0, 100, 50]]
    assert read_row(row) == [("<OD>", "", "cat" + locs(0, 0, 500, 500) + "dog" + locs(500, 500, 999, 999))]
    row["objects"] |= {"bbox": [[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5]], "bbox_type": "norm1"}
    assert read_row(row) == [("<OD>", "", "cat" + locs(0, 0, 500, 500) + "dog" + locs(500, 500, 999, 999))]


def test_swift_text_between_boxes_and_boxes_in_the_prompt(read_row):
    row = swift("<image>Who is where?", "A <ref-object><bbox> sits", ref=["dog"], bbox=[[0, 0, 100, 50]])
    assert read_row(row) == [("Who is where?", "", "A dog" + locs(0, 0, 500, 500) + " sits")]
    row = swift("<REGION_TO_CATEGORY><bbox>", "dog", bbox=[[0, 0, 100, 50]])
    assert read_row(row) == [("<REGION_TO_CATEGORY>", locs(0, 0, 500, 500), "dog")]
    assert read_row({"query": "<image><CAPTION>", "response": "a dog", "images": ["a.png"]}) == [
        ("<CAPTION>", "", "a dog")
    ]


def test_swift_rows_with_inconsistent_objects_are_rejected(read_row):
    with pytest.raises(DatasetError, match="more `<bbox>` than `objects`"):
        read_row(swift("<OD>", "<ref-object><bbox>", ref=["dog"], bbox=[]))
    with pytest.raises(DatasetError, match="has 2 images"):
        read_row(swift("<OD>", "dog") | {"images": ["a.png", "b.png"]})
    with pytest.raises(DatasetError, match="boxes of type `norm1000`"):
        read_row(swift("<OD>", "dog", bbox_type="norm1000"))


def test_docvqa_rows(read_row):
    row = {"image": "a.png", "question": "What is the total?", "answers": ["12", "12.00"]}
    assert read_row(row) == [("<DocVQA>", "What is the total?", "12"), ("<DocVQA>", "What is the total?", "12.00")]


def test_ocr_lines(read_row):
    lines = [
        {"transcription": "EXIT", "points": [[20, 10], [60, 10], [60, 30], [20, 30]]},
        {"text": "5", "box": [100, 10, 120, 30]},
        {"text": "###", "box": [0, 0, 1, 1]},
    ]
    ((task, _, text),) = read_row({"file_name": "a.png", "lines": lines})
    exit_, five = locs(100, 100, 300, 100, 300, 300, 100, 300), locs(500, 100, 600, 100, 600, 300, 500, 300)
    assert (task, text) == ("<OCR_WITH_REGION>", f"EXIT{exit_}5{five}")
    with pytest.raises(DatasetError, match="has 6 numbers"):
        read_row({"file_name": "a.png", "lines": [{"text": "x", "points": [1, 2, 3, 4, 5, 6]}]})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},  # TRL, Qwen
        {"type": "image_url", "image_url": {"url": "a.png"}},  # OpenAI
        {"type": "image_url", "image_url": {"url": "file:///home/me/in/a.png"}},
    ],
)
def test_an_image_in_a_message_is_that_of_the_row(read_row, part):
    content = [part, {"type": "text", "text": "Describe"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]}
    assert read_row(row) == [("Describe", "", "a cat")]
    with pytest.raises(DatasetError, match="has 2 images"):
        read_row({"messages": [{"role": "user", "content": [part, *content]}, row["messages"][1]]})


@pytest.mark.parametrize(
    ("row", "target"),
    [
        ({"question": "Total?", "answers": {"text": ["12"], "answer_start": [0]}}, "12"),  # SQuAD
        ({"question": "Total?", "answers": [{"answer": "12", "answer_id": 1}]}, "12"),  # VQA
        ({"images": ["a.png"], "texts": [{"user": "Total?", "assistant": "12", "source": "x"}]}, "12"),  # the Cauldron
    ],
)
def test_answers_of_other_datasets(read_row, row, target):
    [sample] = read_row({"image": "a.png", **row})
    assert sample in (("<DocVQA>", "Total?", target), ("Total?", "", target))


@pytest.mark.parametrize("answer", [1, "1"])
def test_the_number_of_a_choice_is_no_answer(read_row, answer):
    with pytest.raises(DatasetError, match="has the number of a choice, `1`, as its answer"):
        read_row({"image": "a.png", "question": "Colour?", "choices": ["red", "blue"], "answer": answer})
