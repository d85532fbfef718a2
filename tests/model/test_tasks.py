import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2Processor

from florence2.errors import UserError
from florence2.model.tasks import SPECIAL_TOKENS, TASKS, InputType, OutputType, Task, find_task, split_prompt
from tests.tiny import tiny_processor

BY_TOKEN = {task.token: task for task in TASKS}
FREE = [
    "",
    "Describe the dog.",
    "<DocVQA>",
    "<VQA>what is it?",
    "<GENERATE_TAGS>",
    "{input}",
    "<od",
    "画像を説明して",
    "o d",
]
THEIR_KINDS = {
    "pure_text": OutputType.TEXT,
    "description_with_bboxes": OutputType.BOXES,
    "bboxes": OutputType.REGIONS,
    "phrase_grounding": OutputType.PHRASES,
    "ocr": OutputType.QUADS,
    "polygons": OutputType.POLYGONS,
    "description_with_bboxes_or_polygons": OutputType.BOXES_OR_POLYGONS,
}


@pytest.fixture(scope="module")
def theirs() -> Florence2Processor:
    return tiny_processor()


def test_rows_are_transformers_tasks(theirs):
    kinds = {token: THEIR_KINDS[kind] for token, kind in theirs.tasks_answer_post_processing_type.items()}
    assert len(TASKS) == 15
    assert {task.token: task.output_type for task in TASKS} == kinds
    assert {task.token for task in TASKS if task.input_type is InputType.NOTHING} == set(
        theirs.task_prompts_without_inputs
    )


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("given", ["", "a cat", "  two\ncats ", "<loc_1><loc_2><loc_3><loc_4>", "{input} {0} <and> é"])
def test_wording_equals_transformers(theirs, task: Task, given: str):
    if task.input_type is InputType.NOTHING and given:
        with pytest.raises(UserError, match="takes no input"):
            task.format_prompt(given)
        with pytest.raises(ValueError, match="only content"):
            theirs._construct_prompts(task.token + given)
    else:
        assert [task.format_prompt(given)] == theirs._construct_prompts(task.token + given)


@pytest.mark.parametrize("text", FREE)
def test_any_other_string_is_a_prompt_that_answers_text(theirs, text: str):
    task, words = split_prompt(text)
    assert (task, words) == (find_task(text), "")
    assert (task.token, task.prompt, task.input_type, task.output_type) == (
        text,
        text,
        InputType.NOTHING,
        OutputType.TEXT,
    )
    assert task.is_custom
    assert [task.format_prompt()] == theirs._construct_prompts(text)
    assert task.format_prompt("what?") == text + "what?"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_is_found_under_every_spelling(task: Task):
    name = task.token.strip("<>")
    assert not task.is_custom
    assert task.name == name.lower()
    for spelled in (name, name.lower(), name.replace("_", "-"), name.replace("_", " ").title(), f"  {name} "):
        assert find_task(spelled) is task
        assert find_task(f"<{spelled}>") is task


@pytest.mark.parametrize(
    ("text", "token", "words"),
    [
        ("<OD>", "<OD>", ""),
        ("<CAPTION_TO_PHRASE_GROUNDING>a cat", "<CAPTION_TO_PHRASE_GROUNDING>", "a cat"),
        ("<CAPTION_TO_PHRASE_GROUNDING> a cat", "<CAPTION_TO_PHRASE_GROUNDING>", "a cat"),  # as ComfyUI writes it
        ("<region-to-ocr><loc_1><loc_2>", "<REGION_TO_OCR>", "<loc_1><loc_2>"),
        ("<OPEN_VOCABULARY_DETECTION>car<and>person", "<OPEN_VOCABULARY_DETECTION>", "car<and>person"),
        ("<OD>cat", "<OD>", "cat"),  # `wording` refuses it, as transformers does
        ("<REGION_TO_OCR>a\nb", "<REGION_TO_OCR>", "a\nb"),
    ],
)
def test_split_prompt(text: str, token: str, words: str):
    assert split_prompt(text) == (BY_TOKEN[token], words)


def test_a_task_with_its_input_is_no_task():
    with pytest.raises(UserError) as error:
        find_task("<REGION_TO_OCR>here")
    assert error.value.hint == "pass the task `<REGION_TO_OCR>` and the input `here` separately"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_split_prompt_takes_any_text(text: str):
    task, words = split_prompt(text)
    assert task in TASKS or (task.token, words) == (text, "")


def test_special_tokens_stand_in_the_order_of_their_ids():
    rest = (
        "<cap> </cap> <ncap> </ncap> <dcap> </dcap> <grounding> </grounding> <seg> </seg> <sep> <region_cap> "
        "</region_cap> <region_to_desciption> </region_to_desciption> <proposal> </proposal> <poly> </poly> <and>"
    )
    places = [f"<loc_{n}>" for n in range(1000)]
    assert list(SPECIAL_TOKENS) == ["<od>", "</od>", "<ocr>", "</ocr>", *places, *rest.split()]
    assert len(set(SPECIAL_TOKENS)) == 1024
