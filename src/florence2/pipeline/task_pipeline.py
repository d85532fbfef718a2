"""The words of `--task` and `--task_input` as the questions about each picture.

    caption od ocr                                 three questions about each picture
    more_detailed_caption+caption_to_phrase_grounding  a cascade: the words of the first are the input of the second
    od+region_to_description                       a cascade: each box of the first is a question of the second

In a cascade words go to a task that takes words, places to a task that takes a region. Every question is a line of its
own. Knows no model; what finds the pictures is handed in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from florence2.data.sample import Prediction, ResolvedDataset, Sample, SampleKey
from florence2.errors import UserError
from florence2.model.location_grammar import bins_to_tokens, decode_objects
from florence2.model.tasks import TASKS, InputType, OutputType, Task, split_prompt
from florence2.pipeline.regions import check_region, region_to_tokens
from florence2.settings_io import closest_name_hint

CASCADE_SEPARATOR = "+"


@dataclass(frozen=True)
class TaskStep:
    """One question, and what its answer leads to."""

    task: Task
    input: str = ""
    next_steps: tuple["TaskStep", ...] = ()

    def attach_to(self, sample: Sample) -> Sample:
        """Let a sample that asks this question lead on."""
        return replace(sample, follow_up=FollowUp(sample, self)) if self.next_steps else sample


@dataclass(frozen=True, eq=False)
class FollowUp:
    """Makes the questions that the answer to a step leads to, about the same picture."""

    sample: Sample
    step: TaskStep

    def __call__(self, prediction: Prediction) -> Iterator[Sample]:
        """Ask the next steps about the words that were said, or about each place."""
        for step in self.step.next_steps:
            for words in next_inputs(self.step.task, prediction.text):
                yield step.attach_to(replace(self.sample, task=step.task.token, input=words))


def next_inputs(task: Task, text: str) -> list[str]:
    """Give the inputs that an answer is for the next task: its words, or each place once, as location tokens."""
    if task.output_type is OutputType.TEXT:
        return [text.strip()] if text.strip() else []
    places = (list(chain.from_iterable(placed.bins)) for placed in decode_objects(task.output_type, text))
    boxes = ((min(run[0::2]), min(run[1::2]), max(run[0::2]), max(run[1::2])) for run in places)
    return list(dict.fromkeys(map(bins_to_tokens, boxes)))


@dataclass(frozen=True)
class TaskPipeline:
    """All that is asked about each picture, and the cascades that rows of a table name for theirs."""

    steps: tuple[TaskStep, ...]
    row_steps: tuple[TaskStep, ...] = ()

    @classmethod
    def parse(cls, tasks: Sequence[str], words: str = "") -> "TaskPipeline":
        """Read tasks and cascades; `words` go to each that takes an input and names none."""
        chains = [_chain(each, words.strip()) for each in tasks]
        if words.strip() and not any(_takes_input(links[0][0]) for links in chains):
            names = " and ".join(f"`{links[0][0].name}`" for links in chains)
            raise UserError(f"there is the input `{words.strip()}`, and none is taken by {names}", "leave it out")
        return cls(_steps(chains))

    @property
    def is_multi_task(self) -> bool:
        """Tell whether a picture may be asked more than one question."""
        return len(self.steps) > 1 or self.has_follow_ups

    @property
    def has_follow_ups(self) -> bool:
        """Tell whether answers lead to more questions, as many as they like."""
        return any(step.next_steps for step in self.steps + self.row_steps)

    @property
    def tasks(self) -> list[Task]:
        """List the tasks of all questions, later ones of cascades too."""

        def below(steps: Iterable[TaskStep]) -> Iterator[Task]:
            for step in steps:
                yield step.task
                yield from below(step.next_steps)

        return list(dict.fromkeys(below(self.steps + self.row_steps)))

    def apply_to(self, find: Callable[[str, str], ResolvedDataset]) -> tuple["TaskPipeline", ResolvedDataset]:
        """Ask about all pictures that `find` finds for a task and an input; questions about one stand together.

        The plan that is given back knows the cascades of rows, too.
        """
        found = [find(step.task.token, step.input) for step in self.steps]
        asked: dict[str, dict[SampleKey, Sample]] = {}
        images: dict[str, Any] = {}  # one object for each, so that it is opened once
        cascades: dict[TaskStep, None] = {}
        for step, each in zip(self.steps, found, strict=True):
            for sample in each.samples:
                mine = replace(sample, image=images.setdefault(sample.id, sample.image))
                own = step if sample.task == step.task.token else _cascade(sample)
                if own and own is not step:
                    cascades[own] = None
                if own:
                    mine = replace(mine, task=own.task.token, input=sample.input or own.input)
                    mine = own.attach_to(_complete(mine, own.task))
                asked.setdefault(sample.id, {}).setdefault(mine.key, mine)
        samples = [sample for beside in asked.values() for sample in beside.values()]
        return replace(self, row_steps=tuple(cascades)), replace(found[0], samples=samples)


def _cascade(sample: Sample) -> TaskStep | None:
    """Read the task of a row as a cascade, if it is one."""
    links = _chain(sample.task, sample.input)
    return _steps([links])[0] if len(links) > 1 else None


def _complete(sample: Sample, task: Task) -> Sample:
    """Bring an input in pixels into location tokens; refuse a question without the input that it needs."""
    if task.input_type is not InputType.NOTHING and not sample.input.strip():
        raise UserError(
            f"the task {task.name} needs {task.input_type}", f"pass `--task_input` with the {task.input_type}"
        )
    return region_to_tokens(sample) if task.input_type is InputType.REGION else sample


Link = tuple[Task, str]


def _chain(text: str, words: str) -> list[Link]:
    """Read a task, a prompt or a cascade, with the input of its first task."""
    first, *rest = _parts(text)
    task, own = split_prompt(first)
    given = own or (words if _takes_input(task) else "")
    links = [(task, check_region(given) if task.input_type is InputType.REGION and given else given)]
    for part in rest:
        following, own = split_prompt(part)
        if own:
            raise UserError(f"`{part}` names its own input in a cascade", "it takes what the task before it answers")
        _refuse_unlike(links[-1][0], following)
        links.append((following, ""))
    return links


def _takes_input(task: Task) -> bool:
    return task.input_type is not InputType.NOTHING or task.is_custom


def _parts(text: str) -> list[str]:
    """Part a cascade; a `+` in a prompt of the user's own is a plus, unless tasks alone stand behind it."""
    parts = text.split(CASCADE_SEPARATOR)
    tail: list[str] = []
    while len(parts) > 1 and not split_prompt(parts[-1])[0].is_custom:
        tail.insert(0, parts.pop())
    if len(parts) > 1 and not split_prompt(parts[0])[0].is_custom and "<" not in parts[0]:
        wrong = next(part for part in parts if split_prompt(part)[0].is_custom).strip()
        raise UserError(f"`{wrong}` in `{text}` is no task", closest_name_hint(wrong, [task.name for task in TASKS]))
    return [CASCADE_SEPARATOR.join(parts), *tail]


def _refuse_unlike(task: Task, following: Task) -> None:
    if following.input_type is InputType.NOTHING:
        raise UserError(
            f"`{following.name}` takes no input, so `{task.name}` cannot lead to it",
            f"pass `--task {task.name} {following.name}` to ask both",
        )
    if (task.output_type is OutputType.TEXT) is not (following.input_type is InputType.WORDS):
        raise UserError(
            f"`{task.name}` answers {task.output_type}, and `{following.name}` takes {following.input_type}",
            "words lead to a task that takes words, places to one that takes a region",
        )


def _steps(chains: Sequence[Sequence[Link]]) -> tuple[TaskStep, ...]:
    """Put cascades that begin alike together, so that nothing is asked twice."""
    firsts = dict.fromkeys(links[0] for links in chains if links)
    return tuple(
        TaskStep(*first, _steps([links[1:] for links in chains if links and links[0] == first])) for first in firsts
    )
