"""Free words become a task by one table: each row, each rule, and what a row must not take."""

import pytest

from florence2 import TASKS, InputType, TaskPipeline
from florence2.apps.serve.chat.free_words import ROWS, TaskChoice, choose_task, is_caption_task
from florence2.model.tasks import find_task

NAMES = [
    ("<OD>", "<OD>", ""),
    ("od", "<OD>", ""),
    ("More Detailed Caption", "<MORE_DETAILED_CAPTION>", ""),
    ("more-detailed-caption", "<MORE_DETAILED_CAPTION>", ""),
    ("<CAPTION_TO_PHRASE_GROUNDING>a red car", "<CAPTION_TO_PHRASE_GROUNDING>", "a red car"),
    ("<REGION_TO_OCR><loc_1><loc_2><loc_30><loc_40>", "<REGION_TO_OCR>", "<loc_1><loc_2><loc_30><loc_40>"),
    ("od+region_to_category", "od+region_to_category", ""),
]
PROMPTS = [
    ("What does the image describe?", "<CAPTION>", ""),
    ("Describe in detail what is shown in the image.", "<DETAILED_CAPTION>", ""),
    ("describe with a paragraph what is shown in the image.", "<MORE_DETAILED_CAPTION>", ""),
    ("Locate the objects with category name in the image.", "<OD>", ""),
    ("What is the text in the image, with regions?", "<OCR_WITH_REGION>", ""),
    ("What text is in the region <loc_1><loc_2><loc_3><loc_4>?", "<REGION_TO_OCR>", "<loc_1><loc_2><loc_3><loc_4>"),
    ("Locate the phrases in the caption: a cat on a mat", "<CAPTION_TO_PHRASE_GROUNDING>", "a cat on a mat"),
]
WORDS = [
    ("List the region proposals", "region_proposal", ""),
    ("dense captioning please", "dense_region_caption", ""),
    ("Describe every object in the image", "dense_region_caption", ""),
    ("Where is the text in this picture?", "ocr_with_region", ""),
    ("Extract all text with bounding boxes", "ocr_with_region", ""),
    ("Locate the text", "ocr_with_region", ""),
    ("OCR this image", "ocr", ""),
    ("Please read the text in the image.", "ocr", ""),
    ("Transcribe this document", "ocr", ""),
    ("What does the sign say?", "ocr", ""),
    ("What is written on the board?", "ocr", ""),
    ("What text is in the image?", "ocr", ""),
    ("Read the receipt and give the total", "ocr", ""),
    ("Convert this page to Markdown", "ocr", ""),
    ("Create a segmentation mask of the dog", "referring_expression_segmentation", "dog"),
    ("Segment the red car in the image", "referring_expression_segmentation", "red car"),
    ("please outline the dog", "referring_expression_segmentation", "dog"),
    ("Ground the phrases: a cat and a dog", "caption_to_phrase_grounding", "a cat and a dog"),
    ("object detection", "od", ""),
    ("Return bounding boxes", "od", ""),
    ("Detect all objects in the image.", "od", ""),
    ("List the objects", "od", ""),
    ("What objects are in this picture?", "od", ""),
    ("How many objects are there?", "od", ""),
    ("Bounding boxes of all objects", "od", ""),
    ("Give me bounding boxes for the image", "od", ""),
    ("Give me the bounding boxes of all dogs", "open_vocabulary_detection", "dogs"),
    ("Draw a box around the red car", "open_vocabulary_detection", "red car"),
    ("How many people are in the picture?", "open_vocabulary_detection", "people"),
    ("Count the cars", "open_vocabulary_detection", "cars"),
    ("Where’s the cat?", "open_vocabulary_detection", "cat"),
    ("Locate the stop sign, a bus and the light", "open_vocabulary_detection", "stop sign, bus, light"),
    ("Detect cats and dogs", "open_vocabulary_detection", "cats, dogs"),
    ("Where is the frog?", "open_vocabulary_detection", "frog"),
    ("Find the green bottle in the photo", "open_vocabulary_detection", "green bottle"),
]
CAPTIONS = [
    ("", "caption"),
    ("caption", "<CAPTION>"),
    ("What is in this image?", "caption"),
    ("What's in this image?", "caption"),
    ("Describe the image in one sentence.", "caption"),
    ("Write a short caption", "caption"),
    ("Generate an alt text for this picture", "caption"),
    ("Describe this image.", "detailed_caption"),
    ("Describe this image in detail, including any text you can read", "detailed_caption"),
    ("Please describe the objects and their positions", "detailed_caption"),
    ("Write a detailed description", "detailed_caption"),
    ("Describe this image in great detail", "more_detailed_caption"),
    ("Write a very detailed prompt for this image", "more_detailed_caption"),
    ("Give me a comprehensive description", "more_detailed_caption"),
    ("Describe this image. " + "Mention the light, the colors and the mood. " * 8, "more_detailed_caption"),
    ("Is this a good day?", "caption"),
    ("Segment the image", "caption"),
    ("Describe the box on the table", "detailed_caption"),
    ("Readable, short caption please", "caption"),
    ("Опиши картинку", "caption"),
]


@pytest.mark.parametrize(("words", "task", "task_input"), NAMES, ids=lambda value: str(value)[:30])
def test_names_and_tokens_are_themselves(words: str, task: str, task_input: str) -> None:
    assert choose_task(words) == TaskChoice(task, task_input, "name")


@pytest.mark.parametrize(("words", "task", "task_input"), PROMPTS, ids=lambda value: str(value)[:30])
def test_prompts_of_tasks_are_themselves(words: str, task: str, task_input: str) -> None:
    assert choose_task(words) == TaskChoice(task, task_input, "prompt")


def test_every_prompt_of_the_task_table_leads_to_its_task() -> None:
    for task in TASKS:
        task_input = {InputType.NOTHING: "", InputType.WORDS: "green frogs"}.get(task.input_type, "<loc_1>" * 4)
        choice = choose_task(task.format_prompt(task_input))
        assert (find_task(choice.task), choice.input) == (task, task_input), task.name


@pytest.mark.parametrize(("words", "task", "task_input"), WORDS, ids=lambda value: str(value)[:30])
def test_words_lead_to_tasks(words: str, task: str, task_input: str) -> None:
    assert choose_task(words) == TaskChoice(task, task_input, "words")


def test_every_row_of_the_table_has_an_example() -> None:
    assert {row.task for row in ROWS} - {"caption"} == {task for _, task, _ in WORDS}


@pytest.mark.parametrize(("words", "task"), CAPTIONS, ids=lambda value: str(value)[:30])
def test_everything_else_is_the_caption_of_fitting_length(words: str, task: str) -> None:
    assert choose_task(words).task == task


def test_every_choice_can_be_run() -> None:
    for words in [words for words, *_ in (*NAMES, *PROMPTS, *WORDS, *CAPTIONS)]:
        choice = choose_task(words)
        TaskPipeline.parse([choice.task], choice.input)
        assert "<" not in choice.label


def test_a_fine_tuned_model_answers_captions_by_its_own_task() -> None:
    own = "Describe as a pirate."
    assert choose_task("describe as a PIRATE.", own) == TaskChoice(own, rule="trained prompt")
    assert choose_task("Describe this image in detail", own) == TaskChoice(own, rule="trained caption")
    assert choose_task("", own).task == own
    assert choose_task("What text is in the image?", own).task == "ocr"
    assert choose_task("<CAPTION>", own).task == "<CAPTION>"
    assert choose_task("Describe this image", "<OD>").task == "detailed_caption"
    assert choose_task("Describe as a pirate.", own).label == "prompt", "no words of a user are in headers"
    assert not is_caption_task(find_task("ocr"))
