"""The fifteen tasks of Florence-2, one row each, and the special tokens of its vocabulary.

Task names, their prompts and special tokens are defined here only. Pure Python, without tensors or tokenizers;
`locations.py` defines how an answer is encoded.

A task is named by Microsoft's token or by any spelling of it: `<OD>`, `OD`, `od`; `more-detailed-caption`,
`More Detailed Caption`. Every other string is a custom prompt: it goes to the model as it is, and the answer is text.
"""

import difflib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from florence2.errors import UserError
from florence2.log import logger


class InputType(StrEnum):
    """The input of a task besides the image."""

    NOTHING = "nothing"
    WORDS = "words"
    REGION = "region"


class OutputType(StrEnum):
    """The kind of a task's answer; `locations.py` encodes and decodes each kind with positions."""

    TEXT = "text"
    BOXES = "boxes"
    REGIONS = "regions"
    PHRASES = "phrases"
    QUADS = "quads"
    POLYGONS = "polygons"
    BOXES_OR_POLYGONS = "boxes or polygons"


@dataclass(frozen=True)
class Task:
    """One row of the table, or a custom prompt (then `token` and `prompt` are the same string)."""

    token: str
    prompt: str
    input_type: InputType
    output_type: OutputType

    @property
    def name(self) -> str:
        """The name in flags and reports: `<OD>` is `od`; a custom prompt is its own name."""
        return self.token if self.is_custom else self.token.strip("<>").lower()

    @property
    def is_custom(self) -> bool:
        """Whether this is a custom prompt."""
        return self.token == self.prompt

    @property
    def has_literal_target(self) -> bool:
        """Whether tokens such as `<loc_5>` in a target are letters: in captions, not in boxes and custom prompts."""
        return self.output_type is OutputType.TEXT and not self.is_custom

    def closest_name(self) -> str:
        """Return the task that a custom prompt probably misspells, "" if there is none."""
        if not self.is_custom:
            return ""
        name = self.token.strip("<> ").lower()
        close = difflib.get_close_matches(name, [task.name for task in TASKS], n=1, cutoff=0.8)
        return close[0] if close else "od" if name.startswith("od") and len(name) <= 4 else ""

    def format_prompt(self, input: str = "") -> str:  # noqa: A002
        """Return the prompt for the tokenizer.

        It equals the prompt of transformers' Florence2Processor for `token + input`. An input follows a custom prompt
        as it is. Raises UserError where a task takes no input and gets one.
        """
        if self.is_custom:
            return self.prompt + input
        task_input = input.strip()
        if self.input_type is not InputType.NOTHING:
            return self.prompt.replace("{input}", task_input)
        if task_input:
            raise UserError(f"`{self.token}` takes no input and got `{task_input}`", "remove the input")
        return self.prompt


TASKS: tuple[Task, ...] = (
    Task("<CAPTION>", "What does the image describe?", InputType.NOTHING, OutputType.TEXT),
    Task("<DETAILED_CAPTION>", "Describe in detail what is shown in the image.", InputType.NOTHING, OutputType.TEXT),
    Task(
        "<MORE_DETAILED_CAPTION>",
        "Describe with a paragraph what is shown in the image.",
        InputType.NOTHING,
        OutputType.TEXT,
    ),
    Task("<OCR>", "What is the text in the image?", InputType.NOTHING, OutputType.TEXT),
    Task("<OCR_WITH_REGION>", "What is the text in the image, with regions?", InputType.NOTHING, OutputType.QUADS),
    Task("<OD>", "Locate the objects with category name in the image.", InputType.NOTHING, OutputType.BOXES),
    Task(
        "<DENSE_REGION_CAPTION>",
        "Locate the objects in the image, with their descriptions.",
        InputType.NOTHING,
        OutputType.BOXES,
    ),
    Task("<REGION_PROPOSAL>", "Locate the region proposals in the image.", InputType.NOTHING, OutputType.REGIONS),
    Task(
        "<CAPTION_TO_PHRASE_GROUNDING>",
        "Locate the phrases in the caption: {input}",
        InputType.WORDS,
        OutputType.PHRASES,
    ),
    Task(
        "<REFERRING_EXPRESSION_SEGMENTATION>",
        "Locate {input} in the image with mask",
        InputType.WORDS,
        OutputType.POLYGONS,
    ),
    Task(
        "<OPEN_VOCABULARY_DETECTION>",
        "Locate {input} in the image.",
        InputType.WORDS,
        OutputType.BOXES_OR_POLYGONS,
    ),
    Task(
        "<REGION_TO_SEGMENTATION>",
        "What is the polygon mask of region {input}",
        InputType.REGION,
        OutputType.POLYGONS,
    ),
    Task("<REGION_TO_CATEGORY>", "What is the region {input}?", InputType.REGION, OutputType.TEXT),
    Task("<REGION_TO_DESCRIPTION>", "What does the region {input} describe?", InputType.REGION, OutputType.TEXT),
    Task("<REGION_TO_OCR>", "What text is in the region {input}?", InputType.REGION, OutputType.TEXT),
)


def find_task(name: str) -> Task:
    """Return the task that `name` spells, else `name` as a custom prompt.

    Raises UserError where an input follows a task's token, which a Task cannot hold: see `split_prompt`.
    """
    task, task_input = split_prompt(name)
    if task_input:
        raise UserError(
            f"`{name}` holds a task and its input together",
            f"pass the task `{task.token}` and the input `{task_input}` separately",
        )
    return task


@lru_cache(maxsize=1024)
def split_prompt(text: str) -> tuple[Task, str]:
    """Split `<TASK>some input` into the task and its input; the name of a task alone has the input "".

    A text without a known token at its start is a custom prompt with the input "".
    """
    token = re.match(r"\s*<([^<>]+)>", text)
    if token and (task := _lookup(token[1])):
        return task, text[token.end() :].strip()
    return _lookup(text) or Task(text, text, InputType.NOTHING, OutputType.TEXT), ""


@lru_cache(maxsize=1024)
def warn_about_prompt(task: Task) -> None:
    """Warn once of a custom prompt that is probably a misspelt task."""
    if close := task.closest_name():
        logger.warning(f"`{task.token}` is not a task and goes to the model as a prompt; did you mean `{close}`?")


@lru_cache(maxsize=1024)
def _lookup(name: str) -> Task | None:
    token = "<" + re.sub(r"[\s_-]+", "_", name.strip()).upper() + ">"
    return next((task for task in TASKS if task.token == token), None)


NUM_BINS = 1000
START, END, PAD = "<s>", "</s>", "<pad>"
SEPARATOR, POLYGON_START, POLYGON_END, AND = "<sep>", "<poly>", "</poly>", "<and>"


def _tag_pairs(*names: str) -> tuple[str, ...]:
    return tuple(token for name in names for token in (f"<{name}>", f"</{name}>"))


# In the order of their ids in Microsoft's checkpoints, where `desciption` is misspelt.
SPECIAL_TOKENS: tuple[str, ...] = (
    *_tag_pairs("od", "ocr"),
    *(f"<loc_{bin}>" for bin in range(NUM_BINS)),  # noqa: A001
    *_tag_pairs("cap", "ncap", "dcap", "grounding", "seg"),
    SEPARATOR,
    *_tag_pairs("region_cap", "region_to_desciption", "proposal"),
    POLYGON_START,
    POLYGON_END,
    AND,
)
"""The 1024 tokens that Florence-2 adds to BART's vocabulary, in the order of their ids."""
