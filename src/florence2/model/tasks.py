"""The fifteen things Florence-2 can be asked, one row each, and the tokens its vocabulary has for them.

This is the only home of the task names, their sentences and the layout tokens. It is pure Python: it knows neither
tensors nor tokenizers, and nothing of how an answer is written (see `locations.py`).

A task is named by Microsoft's token or by any spelling of it: `<OD>`, `OD`, `od`; `more-detailed-caption`,
`More Detailed Caption`. Every other string is a legal prompt: it goes to the model as it is and answers text.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from florence2.errors import UserError


class InputType(StrEnum):
    """What a task needs besides the picture."""

    NOTHING = "nothing"
    WORDS = "words"
    REGION = "region"


class OutputType(StrEnum):
    """What a task answers; `locations.py` writes and reads each kind."""

    TEXT = "text"
    BOXES = "boxes"
    REGIONS = "regions"
    PHRASES = "phrases"
    QUADS = "quads"
    POLYGONS = "polygons"
    BOXES_OR_POLYGONS = "boxes or polygons"


@dataclass(frozen=True)
class Task:
    """One row of the table, or a prompt of the user's own (then `token` and `prompt` are the same string)."""

    token: str
    prompt: str
    input_type: InputType
    output_type: OutputType

    @property
    def name(self) -> str:
        """Return the spelling for people and flags: `<OD>` is `od`; a prompt of one's own is itself."""
        return self.token if self.is_custom else self.token.strip("<>").lower()

    @property
    def is_custom(self) -> bool:
        """Tell whether this is a prompt of the user's own."""
        return self.token == self.prompt

    def format_prompt(self, input: str = "") -> str:  # noqa: A002  the word users and transformers' templates have
        """Return the sentence the model is asked.

        It equals what transformers' Florence2Processor makes of `token + input`. A prompt of one's own is followed by
        the input as it is. Raises UserError where a task takes no input and gets one.
        """
        if self.is_custom:
            return self.prompt + input
        words = input.strip()
        if self.input_type is not InputType.NOTHING:
            return self.prompt.replace("{input}", words)
        if words:
            raise UserError(f"`{self.token}` takes no input and got `{words}`", "leave the input out")
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
    """Return the task that `name` spells, or `name` as a prompt of the user's own that answers text.

    Raises UserError where a task's token is followed by an input, which a Task cannot hold: see `split_prompt`.
    """
    task, words = split_prompt(name)
    if words:
        raise UserError(
            f"`{name}` holds a task and its input together",
            f"name the task `{task.token}` and give `{words}` as its input",
        )
    return task


def split_prompt(text: str) -> tuple[Task, str]:
    """Split `<TASK>some input` into the task and its input; a task's name alone has the input "".

    Text that opens with no known token is one prompt of the user's own: the input is "" and nothing is cut off.
    """
    opening = re.match(r"\s*<([^<>]+)>", text)
    if opening and (task := _spelled(opening[1])):
        return task, text[opening.end() :].strip()
    return _spelled(text) or Task(text, text, InputType.NOTHING, OutputType.TEXT), ""


def _spelled(name: str) -> Task | None:
    token = "<" + re.sub(r"[\s_-]+", "_", name.strip()).upper() + ">"
    return next((task for task in TASKS if task.token == token), None)


NUM_BINS = 1000
START, END, PAD = "<s>", "</s>", "<pad>"
SEPARATOR, POLYGON_START, POLYGON_END, AND = "<sep>", "<poly>", "</poly>", "<and>"


def _paired(*names: str) -> tuple[str, ...]:
    return tuple(token for name in names for token in (f"<{name}>", f"</{name}>"))


# The order is the order of their ids in Microsoft's checkpoints; the misspelt `desciption` is theirs.
SPECIAL_TOKENS: tuple[str, ...] = (
    *_paired("od", "ocr"),
    *(f"<loc_{bin}>" for bin in range(NUM_BINS)),  # noqa: A001
    *_paired("cap", "ncap", "dcap", "grounding", "seg"),
    SEPARATOR,
    *_paired("region_cap", "region_to_desciption", "proposal"),
    POLYGON_START,
    POLYGON_END,
    AND,
)
"""The 1024 tokens that Florence-2 adds to BART's vocabulary, in the order of their ids."""
