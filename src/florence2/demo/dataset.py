"""A dataset of scenes on disk: images, captions beside them, and one JSONL for each task.

It does not depend on any model.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from florence2.demo.scenes import make_scene
from florence2.demo.targets import STYLES, all_targets
from florence2.errors import UserError
from florence2.model.tasks import find_task


def make_dataset(folder: str | Path, num_samples: int, seed: int = 0, style: str | None = None) -> Path:
    """Write images, a `.txt` with a caption beside each, and `<task>.jsonl` for every task; return the folder.

    Image `i` is `make_scene(seed + i)`. `style` selects the captions of the `.txt` files: `caption` (the default),
    `detailed_caption`, `more_detailed_caption`, or `tags`, which the bundled model was not trained on. A line of JSONL
    has `file_name`, `task`, `input`, `text` (the target text) and `answer` (the target in pixels).
    """
    folder, write_caption = Path(folder), STYLES.get(style or "caption")
    if write_caption is None:
        raise UserError(f"unknown caption style `{style}`", f"choose one of {', '.join(STYLES)}")
    if num_samples < 1:
        raise UserError(f"a dataset cannot have {num_samples} images", "pass `--num_samples` of at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    digits = max(4, len(str(num_samples - 1)))
    for index in range(num_samples):
        scene = make_scene(seed + index)
        file = folder / f"{index:0{digits}}.png"
        scene.render().save(file)
        file.with_suffix(".txt").write_text(write_caption(scene) + "\n", encoding="utf-8")
        for target in all_targets(scene, index):
            row = {"file_name": file.name, "task": target.task, "input": target.input}
            answer = target.answer if isinstance(target.answer, str) else target.answer.to_dict()
            rows[target.task].append(row | {"text": target.text, "answer": answer})
    for task, task_rows in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in task_rows)
        (folder / f"{find_task(task).name}.jsonl").write_text(lines, encoding="utf-8")
    return folder
