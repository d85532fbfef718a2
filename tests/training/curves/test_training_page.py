import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from florence2.training.curves.svg_panel import MAX_POINTS, average, smooth, svg_panel, tick_values
from florence2.training.curves.training_page import PAGE_FILE, RunState, TrainingPage, render_page


class Tags(HTMLParser):
    """The tags of a page, and whether each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.starts: list[tuple[str, dict[str, Any]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop() == tag


def rows(number: int) -> list[dict[str, Any]]:
    logged: list[dict[str, Any]] = [
        {"step": step, "loss": 3 / step, "learning_rate": 1e-4, "grad_norm": math.nan, "epoch": step / 10}
        for step in range(1, number + 1)
    ]
    return [*logged, {"step": number, "eval_loss": 0.5, "eval_cider": 1.25, "eval_runtime": 3.0}]


def test_page_has_a_chart_for_each_kind_of_value_and_every_tag_is_closed() -> None:
    page = render_page("<mine>", rows(8), RunState(8, 10, is_running=True, seconds_left=61))
    tags = Tags(page)
    assert tags.open == []
    labels = [attributes["aria-label"] for tag, attributes in tags.starts if tag == "svg"]
    assert labels == [
        "loss, eval loss",
        "eval cider",
        "learning rate",
    ]  # no gradient norm is finite
    assert "step 8 of 10, 0:01:01 left" in page
    assert "<title>step 4: 0.75</title>" in page
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    assert not re.search(r"(src|href)=", page)  # it is one file


@pytest.mark.parametrize(
    ("run", "text", "refreshes"),
    [
        (RunState(0, 10, is_running=True), "step 0 of 10", True),
        (RunState(10, 10, is_running=False), "done: 10 steps", False),
        (RunState(4, 10, is_running=False), "stopped at step 4 of 10", False),
    ],
)
def test_page_refreshes_while_the_run_lasts(run: RunState, text: str, refreshes: bool) -> None:
    page = render_page("mine", [], run)
    assert f'<p id="state">{text}</p>' in page
    assert ('http-equiv="refresh"' in page) == refreshes
    assert Tags(page).open == []


def test_callback_writes_the_page_from_start_to_end(tmp_path: Path) -> None:
    folder, control = tmp_path / "new" / "mine", TrainerControl()
    page, args = TrainingPage(folder), TrainingArguments(str(tmp_path), report_to=[])
    state = TrainerState(max_steps=4, is_world_process_zero=True)
    page.on_train_begin(args, state, control)
    assert "step 0 of 4<" in (folder / PAGE_FILE).read_text("utf-8")
    state.global_step, state.log_history = 2, rows(2)
    page.on_log(args, state, control)  # too early
    page.next_time = 0.0
    page.on_log(args, state, control)
    assert re.search(r"step 2 of 4, 0:00:0\d left<", (folder / PAGE_FILE).read_text("utf-8"))
    page.on_train_end(args, state, control)
    assert "stopped at step 2 of 4<" in (folder / PAGE_FILE).read_text("utf-8")
    assert [path.name for path in folder.iterdir()] == [PAGE_FILE]


def test_other_processes_write_no_page(tmp_path: Path) -> None:
    state = TrainerState(is_world_process_zero=False)
    TrainingPage(tmp_path).on_train_begin(TrainingArguments(str(tmp_path), report_to=[]), state, TrainerControl())
    assert not (tmp_path / PAGE_FILE).exists()


def test_many_points_are_averaged_except_the_last_one() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    reduced = average(points, MAX_POINTS)
    assert len(reduced) <= MAX_POINTS
    assert reduced[-1] == points[-1]
    assert all(abs(value - 0.5) < 0.02 for _, value in reduced[:-1])
    assert average(points[:5], MAX_POINTS) == points[:5]


def test_smoothed_line_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smooth([(1.0, 4.0)])[0] == (1.0, pytest.approx(4.0))
    assert [value for _, value in smooth([(float(n), 2.0) for n in range(50)])] == pytest.approx([2.0] * 50)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (0.13, 0.58, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (-3, 7, [-4, -2, 0, 2, 4, 6, 8]),
        (1e-5, 9e-5, None),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, ticks: list[float] | None) -> None:
    found = tick_values(low, high)
    assert ticks is None or found == ticks
    assert found[0] <= low
    assert found[-1] >= high - 1e-12
    assert 3 <= len(found) <= 7


@pytest.mark.parametrize("points", [[(3.0, 0.0)], [(1.0, 1e-4), (2.0, 1e-4)], [(0.0, 5.0), (9.0, -5.0)]])
def test_chart_stays_within_its_view(points: list[tuple[float, float]]) -> None:
    figure = svg_panel({"loss": points}, height=200, width=400)
    for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', figure):
        assert 0 <= float(x) <= 400
        assert 0 <= float(y) <= 200
