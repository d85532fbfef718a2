"""`training.html`: the curves of a run as a page that a browser refreshes while the run lasts."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from florence2.files import atomic_write
from florence2.log import logger
from florence2.training.curves.loss_plot import COLOURS, TRAINING_VALUES, metric_names, points_of
from florence2.training.curves.svg_panel import svg_panel

PAGE_FILE = "training.html"
REFRESH_SECONDS = 5
MIN_INTERVAL = 2.0  # seconds between two writes
MAX_FRACTION = 0.02  # of the time of a run is spent on its page

_STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #777; --grid: #e4e4e4; --ground: #fff; --bar: #2667b2 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --soft: #999; --grid: #3a3a3a; --ground: #181818 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem } h1 { font-size: 1.3rem; margin: 0 } p { margin: .4rem 0; color: var(--soft) }
progress { width: 100%; height: .8rem; accent-color: var(--bar) }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } figure { margin: 0 }
figure:first-child { grid-column: 1 / -1 } svg { width: 100%; height: auto; overflow: visible }
svg text { fill: var(--soft); font-size: 12px } svg .grid { stroke: var(--grid) } figcaption span { margin-right: 1rem }
dl { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 1rem 0 } dt { color: var(--soft); font-size: .8rem }
dd { margin: 0; font-variant-numeric: tabular-nums; font-size: 1.1rem }
@media (max-width: 40rem) { main { grid-template-columns: 1fr } }
"""
# A killed run leaves its page behind: the page says so by itself.
_AGE = """<script>
const age = Date.now() / 1000 - Number(document.body.dataset.written);
if (age > 600) document.getElementById("state").textContent += `, no news for ${Math.round(age / 60)} minutes`;
</script>"""


@dataclass(frozen=True)
class RunState:
    """How far a run is; `seconds_left` is None while it is unknown."""

    step: int
    max_steps: int
    is_running: bool
    seconds_left: float | None = None

    def __str__(self) -> str:
        if self.is_running:
            left = "" if self.seconds_left is None else f", {timedelta(seconds=round(self.seconds_left))} left"
            return f"step {self.step:,} of {self.max_steps:,}{left}"
        is_done = self.step >= self.max_steps
        return f"done: {self.step:,} steps" if is_done else f"stopped at step {self.step:,} of {self.max_steps:,}"


class TrainingPage(TrainerCallback):  # type: ignore[misc]
    """Writes the page into a folder when training starts, when values are logged, and when training ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start_time, self.start_step = time.monotonic(), 0
        self.next_time = 0.0

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Write the page of a run that has not logged anything yet, or of one that resumes."""
        self.start_time, self.start_step = time.monotonic(), int(state.global_step)
        self._write(state, is_running=True)
        logger.info(f"curves, while it runs: {self.folder / PAGE_FILE}")

    def on_log(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Write the page again, if some time has passed."""
        if time.monotonic() >= self.next_time:
            self._write(state, is_running=True)

    def on_train_end(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Write the page a last time; it refreshes no longer."""
        self._write(state, is_running=False)

    def _write(self, state: TrainerState, *, is_running: bool) -> None:
        if not state.is_world_process_zero:
            return
        start = time.monotonic()
        run = RunState(int(state.global_step), int(state.max_steps), is_running, self._seconds_left(state))
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError), atomic_write(self.folder / PAGE_FILE) as file:  # a browser reads it
            file.write(render_page(self.folder.name, state.log_history, run))
        now = time.monotonic()
        self.next_time = now + max(MIN_INTERVAL, (now - start) / MAX_FRACTION)

    def _seconds_left(self, state: TrainerState) -> float | None:
        steps = int(state.global_step) - self.start_step
        if steps <= 0:
            return None
        return (int(state.max_steps) - int(state.global_step)) * (time.monotonic() - self.start_time) / steps


def render_page(title: str, rows: Sequence[Mapping[str, Any]], run: RunState) -> str:
    """Return the page of logged rows: how far the run is, the last values, and a chart for each kind of value."""
    losses = {name: points for name in COLOURS if (points := points_of(rows, name))}
    others = [name for name in (*metric_names(rows), *TRAINING_VALUES) if points_of(rows, name)]
    charts = [svg_panel(losses, height=300)] if losses else []
    charts += [svg_panel({name: points_of(rows, name)}, height=190, width=470) for name in others]
    refresh = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">' if run.is_running else ""
    written = datetime.now().astimezone()
    values = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _last_values(rows).items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">{refresh}
<meta name="viewport" content="width=device-width"><title>{escape(title)}: {run}</title><style>{_STYLE}</style>
<body data-written="{written.timestamp():.0f}"><h1>{escape(title)}</h1>
<p id="state">{run}</p><progress max="{max(run.max_steps, 1)}" value="{run.step}"></progress>
<dl>{values}</dl>
<main>{"".join(charts)}</main>
<p>Written at {written:%Y-%m-%d %H:%M:%S}. The same numbers are in metrics.jsonl.</p>{_AGE if run.is_running else ""}
</body></html>
"""


def _last_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the last value of each kind as text, with its name as words."""
    last: dict[str, str] = {}
    for name in ("epoch", *COLOURS, *metric_names(rows), *TRAINING_VALUES, "images_per_second"):
        if points := points_of(rows, name):
            last[escape(name.replace("_", " "))] = f"{points[-1][1]:.4g}"
    return last
