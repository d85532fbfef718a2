"""A chat request from its words to its answer: the task is chosen, images are decoded, predictions become text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from florence2 import GenerationConfig, OutputType, Prediction, TaskPipeline
from florence2.apps.serve.chat.chat_messages import ChatPrompt
from florence2.apps.serve.chat.free_words import TaskChoice, choose_task, is_caption_task
from florence2.apps.serve.chat.json_answers import JsonFormat
from florence2.apps.serve.chat.property_names import CAPTION, LABELS, OCR, TITLE
from florence2.apps.serve.images.image_reader import ImageReader
from florence2.apps.serve.model_service import ModelService, NamedImage, OnText, ServedModel, texts_so_far
from florence2.apps.serve.request_limits import RequestError, require_text
from florence2.errors import UserError

_OBJECTS = (OutputType.BOXES, OutputType.PHRASES, OutputType.BOXES_OR_POLYGONS)
MAX_WORDS = 20_000  # characters of words: the longest prompt of a model is far shorter


@dataclass(frozen=True)
class ChatAnswer:
    """The answer to a chat request, with its token counts."""

    content: str
    is_truncated: bool
    prompt_tokens: int
    completion_tokens: int

    @property
    def finish_reason(self) -> str:
        """Return `length` where an answer was cut at the maximum number of tokens, else `stop`."""
        return "length" if self.is_truncated else "stop"


@dataclass(frozen=True, eq=False)
class ChatCall:
    """A chat request that is ready to run: everything that a client can get wrong was checked."""

    service: ModelService
    model: ServedModel
    choice: TaskChoice
    pipeline: TaskPipeline
    images: tuple[NamedImage, ...]
    generation: GenerationConfig
    json_format: JsonFormat | None
    stop: tuple[str, ...] = ()

    @classmethod
    async def prepare(
        cls,
        service: ModelService,
        reader: ImageReader,
        prompt: ChatPrompt,
        *,
        model_name: str | None,
        generation: GenerationConfig,
        json_format: JsonFormat | None,
        stop: tuple[str, ...] = (),
        task: str | None = None,
        task_input: str = "",
    ) -> ChatCall:
        """Choose model and task, and decode the images; raise a RequestError for what cannot be answered.

        A text ends before the first of the words of `stop`.
        """
        require_text(prompt.words, model_name, task, task_input)
        model, task_of_model = service.find(model_name)
        explicit = task or task_of_model
        choice = TaskChoice(explicit, task_input) if explicit else _checked_choice(prompt.words, model)
        try:
            pipeline = TaskPipeline.parse([choice.task], choice.input)
        except UserError as error:
            raise RequestError.of(error) from error
        _check_images(prompt.images, service.limits.max_images, json_format)
        names = [f"image {number}" if number > 1 else "image" for number in range(1, len(prompt.images) + 1)]
        images = [
            await reader.open(model.engine, source, name) for source, name in zip(prompt.images, names, strict=True)
        ]
        return cls(service, model, choice, pipeline, tuple(images), generation, json_format, stop)

    @property
    def headers(self) -> dict[str, str]:
        """Return the response headers that say which model ran which task, and by which rule it was chosen."""
        return self.service.headers(self.model, self.choice.label, self.choice.rule)

    @property
    def can_stream(self) -> bool:
        """Return whether the text can be sent as its tokens come."""
        is_text = not self.pipeline.is_multi_task and self.pipeline.tasks[0].output_type is OutputType.TEXT
        return is_text and len(self.images) == 1 and self.json_format is None and self.generation.width == 1

    async def run(self, on_text: OnText | None = None) -> ChatAnswer:
        """Predict, and write the answer."""
        answers = [await self._predict(image, on_text if self.can_stream else None) for image in self.images]
        predictions = [each for answer in answers for each in answer.values()]
        for each in predictions:
            if each.error is not None:
                raise RequestError(each.error, status=500 if "not finite" in each.error else 400)
        return ChatAnswer(
            content=self._content(answers),
            is_truncated=any(
                each.num_tokens >= self.generation.max_length and self._cut(each.text) == each.text
                for each in predictions
            ),
            prompt_tokens=self.service.count_prompt_tokens(self.model, predictions, self.images[0]),
            completion_tokens=sum(each.num_tokens for each in predictions),
        )

    async def stream(self) -> AsyncIterator[str | ChatAnswer]:
        """Yield the pieces of the text as they come, then the answer."""
        answers: list[ChatAnswer] = []
        sent = ""

        async def work(on_text: OnText) -> None:
            answers.append(await self.run(on_text))

        async for longer in texts_so_far(work):
            text = self._safe(longer)
            if len(text) > len(sent):
                yield text[len(sent) :]
                sent = text
        [answer] = answers
        if rest := answer.content[len(sent) :]:
            yield rest
        yield answer

    async def _predict(self, image: NamedImage, on_text: OnText | None) -> Mapping[str, Prediction]:
        """Predict one image: the chosen task, or all tasks that the JSON format needs, under their names."""
        needed = self._needed_tasks()
        if needed is None:
            found = await self.service.predict(self.model, image, self.pipeline, self.generation, on_text=on_text)
            return {str(number): each for number, each in enumerate(found)}
        if not needed:  # no property is one that a task answers
            return {}
        pipeline = TaskPipeline.parse(list(dict.fromkeys(needed.values())))
        found = await self.service.predict(self.model, image, pipeline, self.generation)
        by_task = {each.task: each for each in found}
        tokens = {source: TaskPipeline.parse([task]).tasks[0].token for source, task in needed.items()}
        return {source: by_task[token] for source, token in tokens.items()}

    def _needed_tasks(self) -> dict[str, str] | None:
        """Return the task of each source that the JSON format needs; None where the chosen task is the answer."""
        if self.json_format is None:
            return None
        json_format = self.json_format.item if len(self.images) > 1 else self.json_format
        sources = json_format.sources()
        caption = self.choice.task if is_caption_task(self.pipeline.tasks[0]) and not self.choice.input else ""
        has_objects = self.pipeline.tasks[0].output_type in _OBJECTS and not self.pipeline.is_multi_task
        labels = f"{self.pipeline.tasks[0].token}{self.choice.input}" if has_objects else "od"
        tasks = {CAPTION: caption or "detailed_caption", TITLE: "caption", LABELS: labels, OCR: "ocr"}
        if json_format.is_any_object:
            return None
        return {source: tasks[source] for source in sorted(sources)}

    def _content(self, answers: Sequence[Mapping[str, Prediction]]) -> str:
        if self.json_format is not None:
            if len(answers) == 1:
                return self.json_format.fill(answers[0])
            return f"[{', '.join(self.json_format.item.fill(each) for each in answers)}]"
        texts = [self._plain_text(list(each.values())) for each in answers]
        if len(texts) == 1:
            return texts[0]
        return "\n".join(f"Image {number}: {text}" for number, text in enumerate(texts, 1))

    def _plain_text(self, predictions: Sequence[Prediction]) -> str:
        """Write predictions as text: a text as it is, positions as JSON, several predictions as a list of rows."""
        if len(predictions) != 1:
            return json.dumps([each.to_json() for each in predictions], ensure_ascii=False)
        [prediction] = predictions
        if prediction.answer is None:
            return self._cut(prediction.text)
        return json.dumps(prediction.answer.to_dict(), ensure_ascii=False)

    def _cut(self, text: str) -> str:
        """Return the text before the first word that ends it."""
        ends = [text.find(word) for word in self.stop if word in text]
        return text[: min(ends)] if ends else text

    def _safe(self, text: str) -> str:
        """Return the part of an unfinished text that no word which ends it can shorten any more."""
        longest = max(map(len, self.stop), default=1)
        return self._cut(text)[: max(len(text) - longest + 1, 0)]


def _checked_choice(words: str, model: ServedModel) -> TaskChoice:
    if len(words) > MAX_WORDS:
        raise RequestError(f"the words have more than {MAX_WORDS:,} characters", "send fewer", status=413)
    return choose_task(words, model.trained_task)


def _check_images(images: Sequence[str], most: int, json_format: JsonFormat | None) -> None:
    if len(images) > most:
        raise RequestError(f"the message holds {len(images)} images, more than {most}", "send fewer", status=413)
    if len(images) > 1 and json_format is not None and not json_format.is_array:
        raise RequestError(
            f"the message holds {len(images)} images, and the JSON format has room for one",
            "send one image, or a schema that is an array",
        )
