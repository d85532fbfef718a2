"""What is told of long work where no bar can be drawn."""

import io

import pytest
from rich.console import Console

from florence2.training.callbacks import reporting as shown


def test_without_a_terminal_progress_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(shown.time, "monotonic", lambda: next(now))
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    with shown.count_progress(console, "looking at pictures", 2_000, 400) as advance:
        for _ in range(4):
            advance(8)
    lines = console.file.getvalue().strip().splitlines()
    assert [line.split(",")[0] for line in lines] == ["looking at pictures: 416 of 2", "looking at pictures: 432 of 2"]
    assert all(line.endswith(" s left") for line in lines)


def test_in_a_terminal_it_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shown.count_progress(console, "looking at pictures", 20, 0) as advance:
        advance(20)
    assert "20/20" in console.file.getvalue()
