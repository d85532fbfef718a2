"""The table by which free words become a task: Florence-2 answers prompts that it was not trained with by nonsense.

In this order: the name or token of a task, or a cascade; the prompt that the model was trained with; the exact prompt
of a task; the rows of `ROWS`; and for everything else the caption task that fits the length that the words ask for, or
the model's own task, where it was fine-tuned on captions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from florence2 import TASKS, InputType, OutputType, Task, find_task, split_prompt
from florence2.apps.serve.model_service import is_task_name

_OF_IMAGE = r"(?: (?:in|from|on|of|within) (?:the|this|that|my|an?) (?:image|picture|photo|photograph|scene|file))?"
_POLITE = r"^(?:(?:please|kindly|can you|could you|would you|i want you to|now|just) )*"
_ANY = r"(?:(?:all|any|every|each|the|of|a|an|visible|main|different|various) )*"
_GENERIC = r"(?:objects?|things?|items?|everything|entities|it all)"
_BOXES = r"(?:bounding[ -]?box(?:es)?|bbox(?:es)?|box(?:es)?|regions?|locations?|positions?|coordinates|quads?|where)"
_NAMED_BOXES = r"\b(?:bounding[ -]?)?box(?:es)? (?:of|for|around|on)|\bbbox(?:es)? (?:of|for|around)"
_NO_NAME = rf"(?!(?:(?:the|this|that|my|a|an|all) )*(?:image|picture|photo|{_GENERIC})\b)"
_TEXT = r"(?:text|texts|words|writing|letters|lettering|lines|characters|ocr)"
_READ = r"(?:read|extract|recogni[sz]e|transcribe|ocr|get|give|return|show|output|what is|what's|spell out)"


@dataclass(frozen=True)
class FreeWordsRow:
    """A pattern of the free words, in lower case, and the task that it means; the group `input` is the task's input."""

    task: str
    pattern: str


ROWS: tuple[FreeWordsRow, ...] = (
    FreeWordsRow("region_proposal", r"\bregion proposals?\b|\bpropos\w* regions?\b"),
    FreeWordsRow("dense_region_caption", r"\bdense (?:region )?caption"),
    FreeWordsRow(
        "dense_region_caption",
        rf"\b(?:describe|caption) (?:each|every|all)(?: of)?(?: the)? (?:{_GENERIC}|regions?|areas?)",
    ),
    FreeWordsRow("caption", _POLITE + r"(?:describe|caption|tell me about|explain|summari[sz]e)\b"),
    FreeWordsRow(
        "caption",
        _POLITE + r"(?:write|generate|create|give|provide|make|compose)\b.*\b(?:caption|descri|prompt|alt)",
    ),
    FreeWordsRow("ocr_with_region", rf"\b{_TEXT}\b.*\b{_BOXES}\b|\b{_BOXES}\b.*\b{_TEXT}\b"),
    FreeWordsRow("ocr_with_region", _POLITE + rf"(?:detect|locate|find) {_ANY}{_TEXT}\b"),
    FreeWordsRow("ocr", rf"\bocr\b|\btranscri(?:be|ption)\b|\b{_READ}\b.*\b{_TEXT}\b"),
    FreeWordsRow(
        "ocr",
        r"\bwhat (?:does|do|did) .*\bsays?\b|\bwhat(?: is|'s)? (?:\w+ )*(?:written|printed)\b|\bread (?:it|this)\b"
        rf"|{_POLITE}read (?:out )?(?:the|that|my|a|an) |\bconvert\b.*\bto (?:text|markdown)\b",
    ),
    FreeWordsRow("ocr", rf"\bwhat {_TEXT}\b"),
    FreeWordsRow(
        "referring_expression_segmentation",
        _POLITE
        + r"(?:(?:give|show|make|create|return)(?: me)? )?(?:the |a )?"
        + r"(?:segment|mask|outline|cut out|segmentation of|(?:segmentation )?mask (?:of|for)) (?:out )?"
        + rf"{_NO_NAME}(?!all$)(?:all |the |a |an )*(?P<input>.+?){_OF_IMAGE}$",
    ),
    FreeWordsRow(
        "caption_to_phrase_grounding",
        _POLITE + r"(?:ground|locate|find) (?:the )?(?:phrases?|caption)[^:]*: *(?P<input>.+)$",
    ),
    FreeWordsRow("open_vocabulary_detection", rf"(?:{_NAMED_BOXES}) {_NO_NAME}{_ANY}(?P<input>.+?){_OF_IMAGE}$"),
    FreeWordsRow("od", r"\bobject detection\b|\bbounding[ -]?box(?:es)?\b|\bbbox(?:es)?\b"),
    FreeWordsRow(
        "od", _POLITE + rf"(?:detect|locate|find|list|count|identify|name|show|box)(?: me)? {_ANY}{_GENERIC}\b"
    ),
    FreeWordsRow("od", rf"\b(?:what|how many) (?:\w+ )?{_GENERIC} (?:are|can|do|is)\b"),
    FreeWordsRow("open_vocabulary_detection", r"^how many (?P<input>.+?) (?:are|is|can|do|does)\b"),
    FreeWordsRow(
        "open_vocabulary_detection",
        _POLITE
        + rf"(?:detect|locate|find|count|point (?:at|to)|where(?:'s| is| are| can i find))(?: me)? {_ANY}"
        + rf"(?P<input>.+?){_OF_IMAGE}$",
    ),
)
_LENGTHS = (
    (
        "more_detailed_caption",
        r"\b(?:very|more|highly|extremely|great(?:er)?|full|fine|much|every|maximum|utmost|rich) detail|\bparagraphs?\b"
        r"|\bin[ -]depth\b|\bcomprehensive|\bthorough|\blong\b|\bexhaustive|\bvivid|\belaborate"
        r"|\bseveral sentences\b|\bhighly detailed\b|\b(?:very|more|extremely) detailed\b|\bat length\b",
    ),
    (
        "caption",
        r"\b(?:short|brief|briefly|concise|concisely|one|single|1)\b|\bfew words\b|\b\d+ words\b|\btitle\b|\bheadline\b"
        r"|\balt[- ]?text\b|\bsimple\b|\bphrase\b",
    ),
    ("detailed_caption", r"\bdetail|\bdescri"),
)
LONG_INSTRUCTION = 240  # characters: whoever writes that much wants a long description


@dataclass(frozen=True)
class TaskChoice:
    """The task that a request means, its input, and the rule that chose it."""

    task: str
    input: str = ""
    rule: str = "name"

    @property
    def label(self) -> str:
        """Return the task for headers and logs: a prompt of the user's own is never shown."""
        parts = [
            split_prompt(part)[0] for part in ([self.task] if not is_task_name(self.task) else self.task.split("+"))
        ]
        return "+".join("prompt" if part.is_custom else part.name for part in parts)


def choose_task(words: str, trained_task: str | None = None) -> TaskChoice:
    """Choose the task for the words of a chat; `trained_task` is the task or prompt of a fine-tuned model."""
    text = " ".join(words.split())
    if not text:
        return TaskChoice(trained_task or "caption", rule="default")
    if is_task_name(text):
        task, task_input = split_prompt(text) if "+" not in text else (None, "")
        return TaskChoice(task.token if task else text, task_input)
    if trained_task and text.casefold() == " ".join(trained_task.split()).casefold():
        return TaskChoice(trained_task, rule="trained prompt")
    return _by_prompt(text) or _by_row(text, trained_task) or _caption(text, trained_task)


def _by_prompt(text: str) -> TaskChoice | None:
    """Find the task whose prompt, as the model was trained with it, is the text."""
    for task in sorted(TASKS, key=lambda each: each.input_type is not InputType.NOTHING):
        before, slot, after = task.prompt.partition("{input}")
        if task.output_type is OutputType.BOXES_OR_POLYGONS:
            continue  # `Locate X in the image` is a row of the table, which knows `Locate the objects`
        pattern = re.escape(before) + (f"(?P<input>.+){re.escape(after)}" if slot else "")
        if found := re.fullmatch(pattern, text, re.IGNORECASE):
            return TaskChoice(task.token, found["input"] if slot else "", rule="prompt")
    return None


def _by_row(text: str, trained_task: str | None) -> TaskChoice | None:
    # Quotation marks and a full stop at the end are no part of an input.
    lowered = text.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").rstrip(" .?!\"'")
    for row, pattern in zip(ROWS, _patterns(), strict=True):
        if found := pattern.search(lowered):
            if row.task == "caption":
                return _caption(text, trained_task)
            task_input = (found.groupdict().get("input") or "").strip(" \"'`")
            if row.task == "open_vocabulary_detection":
                task_input = re.sub(r"(?:, ?|,? and |,? or )(?:(?:the|an?) )?", ", ", task_input)
            return TaskChoice(row.task, task_input, rule="words")
    return None


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(row.pattern) for row in ROWS)


def _caption(text: str, trained_task: str | None) -> TaskChoice:
    if trained_task and is_caption_task(find_task(trained_task)):
        return TaskChoice(trained_task, rule="trained caption")
    lowered = text.casefold()
    by_words = next((name for name, pattern in _LENGTHS if re.search(pattern, lowered)), "caption")
    is_long = len(text) > LONG_INSTRUCTION and by_words == "detailed_caption"
    return TaskChoice("more_detailed_caption" if is_long else by_words, rule="caption length")


def is_caption_task(task: Task) -> bool:
    """Return whether a task answers captions: one of the three caption tasks, or a prompt that answers text."""
    if task.is_custom:
        return True
    return task.output_type is OutputType.TEXT and task.input_type is InputType.NOTHING and task.name != "ocr"
