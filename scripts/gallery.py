"""Write docs/tasks.md: every task with its question, its answer drawn on an image, and its row of JSON.

    uv run python scripts/gallery.py

The bundled model answers about one generated scene, in float32, so that every CPU writes the same page.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import florence2
from florence2.demo.dataset import make_dataset
from florence2.model.tasks import TASKS, InputType, OutputType, Task

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
IMAGES = PAGE.parent / "images" / "tasks"
SEED = 5_000_172  # a scene with three objects and a word, which the bundled model was not trained on

TITLES = {
    "caption": "Caption",
    "detailed_caption": "Detailed caption",
    "more_detailed_caption": "Caption of a paragraph",
    "ocr": "Text recognition (OCR)",
    "ocr_with_region": "Text recognition with positions",
    "od": "Object detection",
    "dense_region_caption": "Detection with descriptions",
    "region_proposal": "Region proposals",
    "caption_to_phrase_grounding": "Grounding the phrases of a caption",
    "referring_expression_segmentation": "Segmentation by words",
    "open_vocabulary_detection": "Detection of your own classes",
    "region_to_segmentation": "Segmentation of a region",
    "region_to_category": "Class of a region",
    "region_to_description": "Description of a region",
    "region_to_ocr": "Text in a region",
}
INPUTS = {
    InputType.NOTHING: "nothing",
    InputType.WORDS: "words",
    InputType.REGION: "a region, as location tokens or in pixels",
}
OUTPUTS = {
    OutputType.TEXT: "text",
    OutputType.BOXES: "boxes with labels",
    OutputType.PHRASES: "boxes with phrases",
    OutputType.REGIONS: "boxes",
    OutputType.QUADS: "quads with labels",
    OutputType.POLYGONS: "polygons",
    OutputType.BOXES_OR_POLYGONS: "boxes or polygons with labels",
}
INTRODUCTION = """# The fifteen tasks

Each task as the bundled model answers it: the image with the answer, the command, and the row of `captions.jsonl`
(where the numbers have more digits). `--task` takes the name or the token. Any other text is a prompt of its own;
one like the name of a task gets a warning.
`python scripts/gallery.py` writes this page.

| task | input | output |
|---|---|---|
"""


def main() -> None:
    """Answer every task, and write the page and its images."""
    results = answer_tasks()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        result.plot().save(IMAGES / f"{name}.jpg", quality=85)
    PAGE.write_text(render({name: result.to_json() for name, result in results.items()}), encoding="utf-8")


def answer_tasks() -> dict[str, florence2.Result]:
    """Ask the bundled model every task about the scene, with the inputs that the demo's dataset has for it."""
    with tempfile.TemporaryDirectory() as folder, florence2.Florence2("demo", dtype="float32") as model:
        make_dataset(folder, num_samples=1, seed=SEED)
        image = (Path(folder) / "0000.png").read_bytes()
        inputs = {}
        for task in TASKS:
            rows = (Path(folder) / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
            inputs[task.name] = json.loads(rows[0])["input"]
        return {name: model(image, name, words) for name, words in inputs.items()}


def render(rows: dict[str, dict[str, Any]]) -> str:
    """Return the page for the rows of JSON of all tasks."""
    table = [
        f"| [`{task.name}`](#{_anchor(task)}) | {INPUTS[task.input_type]} | {OUTPUTS[task.output_type]} |"
        for task in TASKS
    ]
    return INTRODUCTION + "\n".join([*table, "", *(_section(task, rows[task.name]) for task in TASKS)])


def _section(task: Task, row: dict[str, Any]) -> str:
    words = row.get("input", "")
    flags = f" --task {task.name}" + (f' --task_input "{words}"' if words else "")
    answer = json.dumps(_rounded({**row, "file_name": "image.jpg"}), ensure_ascii=False)
    return f"""## {TITLES[task.name]}

![{task.token}](images/tasks/{task.name}.jpg)

`{task.token}`, trained with the prompt "{task.prompt}"

```
florence2 predict --model_path demo --input_path image.jpg{flags}
{answer}
```
"""


def _anchor(task: Task) -> str:
    title = TITLES[task.name].lower()
    return "".join(letter for letter in title.replace(" ", "-") if letter.isalnum() or letter == "-")


def _rounded(value: Any) -> Any:
    """Round numbers to what fits on a page."""
    if isinstance(value, float):
        return round(value, 2 if value < 1 else 1)
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return {key: _rounded(each) for key, each in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
