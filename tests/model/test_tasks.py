import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2Processor

from florence2.errors import UserError
from florence2.model.tasks import (
    SPECIAL_TOKENS,
    TASKS,
    InputType,
    OutputType,
    Task,
    find_task,
    split_prompt,
    warn_about_prompt,
)
from tests.tiny import tiny_processor

BY_TOKEN = {task.token: task for task in TASKS}
CUSTOM_PROMPTS = [
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


def test_tasks_equal_transformers(theirs):
    kinds = {token: THEIR_KINDS[kind] for token, kind in theirs.tasks_answer_post_processing_type.items()}
    assert len(TASKS) == 15
    assert {task.token: task.output_type for task in TASKS} == kinds
    assert {task.token for task in TASKS if task.input_type is InputType.NOTHING} == set(
        theirs.task_prompts_without_inputs
    )


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "task_input", ["", "a cat", "  two\ncats ", "<loc_1><loc_2><loc_3><loc_4>", "{input} {0} <and> é"]
)
def test_prompt_equals_transformers(theirs, task: Task, task_input: str):
    if task.input_type is InputType.NOTHING and task_input:
        with pytest.raises(UserError, match="takes no input"):
            task.format_prompt(task_input)
        with pytest.raises(ValueError, match="only content"):
            theirs._construct_prompts(task.token + task_input)
    else:
        assert [task.format_prompt(task_input)] == theirs._construct_prompts(task.token + task_input)


@pytest.mark.parametrize("text", CUSTOM_PROMPTS)
def test_other_string_is_a_custom_prompt_for_text(theirs, text: str):
    task, task_input = split_prompt(text)
    assert (task, task_input) == (find_task(text), "")
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
def test_task_is_found_by_every_spelling(task: Task):
    name = task.token.strip("<>")
    assert not task.is_custom
    assert task.name == name.lower()
    for spelled in (name, name.lower(), name.replace("_", "-"), name.replace("_", " ").title(), f"  {name} "):
        assert find_task(spelled) is task
        assert find_task(f"<{spelled}>") is task


@pytest.mark.parametrize(
    ("text", "token", "task_input"),
    [
        ("<OD>", "<OD>", ""),
        ("<CAPTION_TO_PHRASE_GROUNDING>a cat", "<CAPTION_TO_PHRASE_GROUNDING>", "a cat"),
        ("<CAPTION_TO_PHRASE_GROUNDING> a cat", "<CAPTION_TO_PHRASE_GROUNDING>", "a cat"),  # as ComfyUI writes it
        ("<region-to-ocr><loc_1><loc_2>", "<REGION_TO_OCR>", "<loc_1><loc_2>"),
        ("<OPEN_VOCABULARY_DETECTION>car<and>person", "<OPEN_VOCABULARY_DETECTION>", "car<and>person"),
        ("<OD>cat", "<OD>", "cat"),  # `format_prompt` refuses it, as transformers does
        ("<REGION_TO_OCR>a\nb", "<REGION_TO_OCR>", "a\nb"),
    ],
)
def test_split_prompt(text: str, token: str, task_input: str):
    assert split_prompt(text) == (BY_TOKEN[token], task_input)


def test_task_with_its_input_is_refused():
    with pytest.raises(UserError) as error:
        find_task("<REGION_TO_OCR>here")
    assert error.value.hint == "pass the task `<REGION_TO_OCR>` and the input `here` separately"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_split_prompt_accepts_any_text(text: str):
    task, task_input = split_prompt(text)
    assert task in TASKS or (task.token, task_input) == (text, "")


def test_special_tokens_are_in_the_order_of_their_ids():
    other_tokens = (
        "<cap> </cap> <ncap> </ncap> <dcap> </dcap> <grounding> </grounding> <seg> </seg> <sep> <region_cap> "
        "</region_cap> <region_to_desciption> </region_to_desciption> <proposal> </proposal> <poly> </poly> <and>"
    )
    location_tokens = [f"<loc_{n}>" for n in range(1000)]
    assert list(SPECIAL_TOKENS) == ["<od>", "</od>", "<ocr>", "</ocr>", *location_tokens, *other_tokens.split()]
    assert len(set(SPECIAL_TOKENS)) == 1024


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("captoin", "caption"),
        ("<OCR_WITH_REGIONS>", "ocr_with_region"),
        ("detailed-captions", "detailed_caption"),
        ("<DocVQA>", None),
        ("photo", None),
        ("a caption of it", None),
        ("od", None),
        ("odd", "od"),
    ],
)
def test_prompt_like_the_name_of_a_task_is_warned_about(
    text: str, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_about_prompt.cache_clear()
    for _ in range(2):
        warn_about_prompt(find_task(text))
    expected = [f"`{text}` is not a task and goes to the model as a prompt; did you mean `{name}`?"] if name else []
    assert caplog.messages == expected
