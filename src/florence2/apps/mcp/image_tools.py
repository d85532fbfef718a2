"""The tools of the MCP server: their names, their arguments, and their results as text and as structured content."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal, TypeAlias

from anyio import to_thread
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, Field

from florence2 import ClassSplitter, Engine, Prediction, TaskPipeline
from florence2.apps.mcp.allowed_roots import AllowedRoots
from florence2.errors import UserError

CAPTION_TASKS = {"short": "caption", "detailed": "detailed_caption", "paragraph": "more_detailed_caption"}
ImagePath: TypeAlias = Annotated[str, Field(description="Path of the image, relative to a folder of the server.")]


class FoundObject(BaseModel):
    """An object, a text or a phrase at a position of the image, in pixels from its upper left corner."""

    label: str
    box: list[float] = Field(description="x1, y1, x2, y2")
    score: float | None = Field(description="probability of label and position, from 0 to 1")
    coordinates: list[Any] = Field(description="the box; or a quad of four corners; or the polygons of a mask")


class ImageAnswer(BaseModel):
    """The answer of the model about one image."""

    image: str
    task: str
    input: str
    text: str
    score: float | None
    objects: list[FoundObject]


ToolResult: TypeAlias = Annotated[CallToolResult, ImageAnswer]


class ImageTools:
    """Answers the calls of a client with one engine, one call at a time."""

    def __init__(self, engine: Engine, roots: AllowedRoots) -> None:
        self._engine, self._roots, self._lock = engine, roots, threading.Lock()

    async def caption(
        self,
        path: ImagePath,
        detail: Annotated[
            Literal["short", "detailed", "paragraph"], Field(description="Length of the description.")
        ] = "detailed",
    ) -> ToolResult:
        """Describe an image in words."""
        return await self._answer(path, CAPTION_TASKS[detail])

    async def detect(
        self,
        path: ImagePath,
        classes: Annotated[
            list[str] | None, Field(description="What to find, such as ['red car', 'dog']; without it, all objects.")
        ] = None,
    ) -> ToolResult:
        """Find objects in an image, with labels and boxes in pixels."""
        names = [name.replace(",", " ").strip() for name in classes or ()]
        if not any(names):
            return await self._answer(path, "od")
        return await self._answer(path, "open_vocabulary_detection", ", ".join(filter(None, names)))

    async def ocr(
        self,
        path: ImagePath,
        positions: Annotated[bool, Field(description="Return each line with its position, too.")] = False,
    ) -> ToolResult:
        """Read the text in an image."""
        return await self._answer(path, "ocr_with_region" if positions else "ocr")

    async def ground(
        self,
        path: ImagePath,
        text: Annotated[str, Field(description="A sentence about the image, whose phrases are located.", min_length=1)],
    ) -> ToolResult:
        """Locate the phrases of a sentence in an image, with boxes in pixels."""
        return await self._answer(path, "caption_to_phrase_grounding", text)

    async def _answer(self, path: str, task: str, task_input: str = "") -> CallToolResult:
        prediction = await to_thread.run_sync(self._predict, path, task, task_input)
        answer = read_prediction(prediction)
        return CallToolResult(
            content=[TextContent(type="text", text=describe(answer))], structured_content=answer.model_dump()
        )

    def _predict(self, path: str, task: str, task_input: str) -> Prediction:
        """Predict one image; what a client can fix is a `ToolError`, which it reads."""
        try:
            image = self._roots.find(path)
            pipeline = TaskPipeline.parse((task,), task_input)
            splitter = ClassSplitter(pipeline)
            samples = splitter.split(pipeline.samples(path, image))
            with self._lock:
                prediction = next(splitter.merge(self._engine.run(list(samples))))
        except UserError as error:
            hint = error.hint.replace("`--task_input`", "`text`")
            raise ToolError(f"{error.what}; {hint}" if hint else error.what) from error
        if prediction.error is not None:
            raise ToolError(prediction.error)
        return prediction


def read_prediction(prediction: Prediction) -> ImageAnswer:
    """Convert a prediction to the structured content of a result."""
    objects = [
        FoundObject(label=item.label, box=list(item.bounding_box), score=item.score, coordinates=item.coordinates)
        for item in prediction.answer or ()
    ]
    return ImageAnswer(
        image=prediction.file_name,
        task=prediction.task,
        input=prediction.input,
        text="" if objects else prediction.text,
        score=prediction.score,
        objects=objects,
    )


def describe(answer: ImageAnswer) -> str:
    """Write an answer as text: a line for each object, else the text."""
    lines = [
        f"{item.label or 'region'}: box {', '.join(f'{number:.0f}' for number in item.box)}"
        + (f", score {item.score:.2f}" if item.score is not None else "")
        for item in answer.objects
    ]
    return "\n".join(lines) or answer.text or "nothing was found"
