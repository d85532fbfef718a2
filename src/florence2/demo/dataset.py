"""Write scenes to a folder as anybody's data set: pictures, captions beside them, and one JSONL for each task.

It knows files and scenes, and no model.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from florence2.demo.scenes import make_scene
from florence2.demo.targets import STYLES, all_targets
from florence2.errors import UserError
from florence2.model.tasks import find_task


def make_dataset(folder: str | Path, num: int, seed: int = 0, style: str | None = None) -> Path:
    """Write `num` pictures, a `.txt` with a caption beside each, and `<task>.jsonl` for every task; return the folder.

    Picture `i` shows `scene(seed + i)`. `style` names what the `.txt` files say: `caption` (the default),
    `detailed_caption`, `more_detailed_caption`, or `tags`, which the bundled model was not taught. A line of JSONL
    holds `file_name`, `task`, `input`, `text` (what the model should say) and `answer` (what that means, in pixels).
    """
    folder, say = Path(folder), STYLES.get(style or "caption")
    if say is None:
        raise UserError(f"there is no caption style `{style}`", f"choose one of {', '.join(STYLES)}")
    if num < 1:
        raise UserError(f"a data set of {num} pictures is none", "ask for at least one")
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    digits = max(4, len(str(num - 1)))
    for index in range(num):
        made = make_scene(seed + index)
        file = folder / f"{index:0{digits}}.png"
        made.render().save(file)
        file.with_suffix(".txt").write_text(say(made) + "\n", encoding="utf-8")
        for told in all_targets(made, index):
            row = {"file_name": file.name, "task": told.task, "input": told.input}
            lines[told.task].append(row | {"text": told.text, "answer": told.answer})
    for task, rows in lines.items():
        written = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{find_task(task).name}.jsonl").write_text(written, encoding="utf-8")
    return folder
