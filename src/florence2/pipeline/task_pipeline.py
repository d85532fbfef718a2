"""The task pipeline: the steps of `--task` and `--task_input` for each image, and the follow-ups of cascades.

    caption od ocr                                 three tasks for each image
    more_detailed_caption+caption_to_phrase_grounding  a cascade: the text of the first is the input of the second
    od+region_to_description                       a cascade: each box of the first is an input of the second

In a cascade, text is the input of a task with a text input, a position that of a task with a region input. Every task
and input has its own prediction.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from florence2.data.listed.listed_samples import ListedSamples, SampleStep
from florence2.data.sample import Prediction, ResolvedDataset, Sample, SampleKey
from florence2.errors import OptionError
from florence2.model.geometry import bounding_box
from florence2.model.location_grammar import bins_to_tokens, decode_objects
from florence2.model.locations import parse_box
from florence2.model.tasks import TASKS, InputType, OutputType, Task, split_prompt, warn_about_prompt
from florence2.pipeline.regions import check_region, region_to_tokens
from florence2.settings_io import closest_name_hint

CASCADE_SEPARATOR = "+"


@dataclass(frozen=True)
class TaskStep:
    """One task with its input, and the steps that its answer leads to."""

    task: Task
    input: str = ""
    next_steps: tuple["TaskStep", ...] = ()

    @property
    def words(self) -> tuple[Any, ...]:
        """Return the task's token, the input, and the words of the next steps, which distinguish this step."""
        return (self.task.token, self.input, sorted(step.words for step in self.next_steps))

    def attach_to(self, sample: Sample) -> Sample:
        """Add this step's follow-ups to a sample of the step."""
        return replace(sample, follow_up=FollowUp(sample, self)) if self.next_steps else sample


@dataclass(frozen=True, eq=False)
class FollowUp:
    """Makes the samples that follow the prediction of a step, with the same image."""

    sample: Sample
    step: TaskStep

    def __call__(self, prediction: Prediction) -> Iterator[Sample]:
        """Yield a sample of each next step for each input in the prediction."""
        for step in self.step.next_steps:
            for task_input in next_inputs(self.step.task, prediction.text):
                yield step.attach_to(replace(self.sample, task=step.task.token, input=task_input))


def next_inputs(task: Task, text: str) -> list[str]:
    """Return the inputs that an answer has for the next task: its text, or each distinct box as location tokens."""
    if task.output_type is OutputType.TEXT:
        return [text.strip()] if text.strip() else []
    boxes = (bounding_box(item.bins) for item in decode_objects(task.output_type, text))
    return list(dict.fromkeys(bins_to_tokens(map(int, box)) for box in boxes))


@dataclass(frozen=True)
class TaskPipeline:
    """The steps for each image, and the cascades that rows of a table have for their own image."""

    steps: tuple[TaskStep, ...]
    row_steps: tuple[TaskStep, ...] = ()

    @classmethod
    def parse(cls, tasks: Sequence[str], task_input: str = "") -> "TaskPipeline":
        """Parse tasks and cascades; `task_input` is for each task that takes an input and has none of its own."""
        task_input = task_input.strip()
        chains = [_parse_chain(each, task_input) for each in tasks]
        if task_input and not any(_takes_input(links[0][0]) for links in chains):
            names = " and ".join(f"`{links[0][0].name}`" for links in chains)
            raise OptionError(f"the input `{task_input}` is not used, because {names} takes none", "remove it")
        return cls(_merge_chains(chains))

    @property
    def is_multi_task(self) -> bool:
        """Return whether an image may have more than one prediction."""
        return len(self.steps) > 1 or self.has_follow_ups

    @property
    def has_follow_ups(self) -> bool:
        """Return whether predictions lead to more samples, in any number."""
        return any(step.next_steps for step in self.steps + self.row_steps)

    @property
    def tasks(self) -> list[Task]:
        """Return the distinct tasks of all steps, those of follow-ups too."""

        def walk(steps: Iterable[TaskStep]) -> Iterator[Task]:
            for step in steps:
                yield step.task
                yield from walk(step.next_steps)

        return list(dict.fromkeys(walk(self.steps + self.row_steps)))

    def samples(self, name: str, image: Any) -> list[Sample]:
        """Make the samples of every step for one image; regions in pixels become location tokens."""

        def resolve(task: str, task_input: str) -> ResolvedDataset:
            return ResolvedDataset(name, None, [Sample(name, image, task, task_input)])

        return list(self.apply_to(resolve)[1].samples)

    def apply_to(self, resolve: Callable[[str, str], ResolvedDataset]) -> tuple["TaskPipeline", ResolvedDataset]:
        """Make the samples of every step, those of one image in a row; `resolve` maps a task and input to samples.

        The returned pipeline includes the cascades of rows.
        """
        first = resolve(self.steps[0].task.token, self.steps[0].input)
        if isinstance(first.samples, ListedSamples) and not any(_has_region_in_pixels(step) for step in self.steps):
            return self, replace(first, samples=self._listed_samples(first.samples))
        datasets = [first, *(resolve(step.task.token, step.input) for step in self.steps[1:])]
        by_image: dict[str, dict[SampleKey, Sample]] = {}
        images: dict[str, Any] = {}  # one object for each image, so that it is opened once
        row_steps: dict[TaskStep, None] = {}
        for step, dataset in zip(self.steps, datasets, strict=True):
            for row in dataset.samples:
                sample = replace(row, image=images.setdefault(row.id, row.image))
                own_step = step if row.task == step.task.token else _row_step(row)
                if own_step and own_step is not step:
                    row_steps[own_step] = None
                if own_step:
                    sample = replace(sample, task=own_step.task.token, input=row.input or own_step.input)
                    sample = own_step.attach_to(_complete_input(sample, own_step.task))
                by_image.setdefault(row.id, {}).setdefault(sample.key, sample)
        samples = [sample for by_key in by_image.values() for sample in by_key.values()]
        return replace(self, row_steps=tuple(row_steps)), replace(datasets[0], samples=samples)

    def _listed_samples(self, listed: ListedSamples) -> ListedSamples:
        """Return the samples of every step for listed images, none of which has rows of its own."""
        for step in self.steps:
            _complete_input(Sample("", b"", step.task.token, step.input), step.task)
        steps = (
            SampleStep(step.task.token, step.input, step.attach_to if step.next_steps else None) for step in self.steps
        )
        return ListedSamples(listed.images, tuple(steps))


def _has_region_in_pixels(step: TaskStep) -> bool:
    """Return whether the input of a step is a region whose location tokens differ by image."""
    return step.task.input_type is InputType.REGION and parse_box(step.input) is not None


def _row_step(sample: Sample) -> TaskStep | None:
    """Parse the task of a row as a cascade; return None if it is a single task."""
    links = _parse_chain(sample.task, sample.input)
    return _merge_chains([links])[0] if len(links) > 1 else None


def _complete_input(sample: Sample, task: Task) -> Sample:
    """Convert a region in pixels to location tokens; raise an OptionError where a required input is missing."""
    if task.input_type is not InputType.NOTHING and not sample.input.strip():
        raise OptionError(
            f"the task {task.name} needs {task.input_type}", f"pass the {task.input_type} as the input: `--task_input`"
        )
    return region_to_tokens(sample) if task.input_type is InputType.REGION else sample


Link = tuple[Task, str]


def _parse_chain(text: str, task_input: str) -> list[Link]:
    """Parse a task, a prompt or a cascade, with the input of its first task."""
    first, *rest = _split_cascade(text)
    task, prompt_input = split_prompt(first)
    warn_about_prompt(task)
    first_input = prompt_input or (task_input if _takes_input(task) else "")
    if task.input_type is InputType.REGION and first_input:
        check_region(first_input)
    links = [(task, first_input)]
    for part in rest:
        next_task, prompt_input = split_prompt(part)
        if prompt_input:
            raise OptionError(
                f"`{part}` has its own input in a cascade", "remove it; the input is the answer of the task before"
            )
        _check_compatible(links[-1][0], next_task)
        links.append((next_task, ""))
    return links


def _takes_input(task: Task) -> bool:
    return task.input_type is not InputType.NOTHING or task.is_custom


def _split_cascade(text: str) -> list[str]:
    """Split a cascade at `+`; in a custom prompt `+` is a plus sign, unless only tasks follow it."""
    parts = text.split(CASCADE_SEPARATOR)
    tail: list[str] = []
    while len(parts) > 1 and not split_prompt(parts[-1])[0].is_custom:
        tail.insert(0, parts.pop())
    if len(parts) > 1 and not split_prompt(parts[0])[0].is_custom and "<" not in parts[0]:
        unknown = next(part for part in parts if split_prompt(part)[0].is_custom).strip()
        hint = closest_name_hint(unknown, [task.name for task in TASKS])
        raise OptionError(f"`{unknown}` in `{text}` is not a task", hint)
    return [CASCADE_SEPARATOR.join(parts), *tail]


def _check_compatible(task: Task, next_task: Task) -> None:
    if next_task.input_type is InputType.NOTHING:
        raise OptionError(
            f"`{next_task.name}` takes no input, so it cannot follow `{task.name}`",
            f"pass `--task {task.name} {next_task.name}` to run both",
        )
    if (task.output_type is OutputType.TEXT) is not (next_task.input_type is InputType.WORDS):
        raise OptionError(
            f"`{task.name}` answers {task.output_type}, and `{next_task.name}` takes {next_task.input_type}",
            "let a task with a text input follow a task that answers text, and one with a region input any other",
        )


def _merge_chains(chains: Sequence[Sequence[Link]]) -> tuple[TaskStep, ...]:
    """Merge cascades with the same first steps, so that no step runs twice."""
    firsts = dict.fromkeys(links[0] for links in chains if links)
    return tuple(
        TaskStep(*first, _merge_chains([links[1:] for links in chains if links and links[0] == first]))
        for first in firsts
    )
