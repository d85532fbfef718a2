import logging
import re

import pytest

from florence2.data.sample import Prediction
from florence2.results import progress
from florence2.results.progress import PredictProgressBar, RunSummary


def count_four_predictions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tally: RunSummary, **environment
) -> list[str]:
    caplog.set_level(logging.INFO, logger="florence2")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "LINE_EVERY", -1)
    with PredictProgressBar(tally) as meter:
        for number in range(3):
            tally.slots, tally.slots_in_use = 16, 3 - number
            meter.count(Prediction(f"{number}.png", "<CAPTION>", text="a dog", num_tokens=2))
        meter.count(Prediction("gone.png", "<CAPTION>", error="gone"))
    return caplog.messages


def test_progress_line_names_rate_slots_and_time_left(monkeypatch, caplog) -> None:
    lines = count_four_predictions(monkeypatch, caplog, RunSummary(total=10, resumed=2))
    shape = r"[\d.]+/s, [\d.]+ tokens/s, {} of 16 slots, \d:\d\d:\d\d left"
    assert re.fullmatch("3 of 10 answers, " + shape.format(3), lines[0])
    assert re.fullmatch("6 of 10 answers, " + shape.format(1), lines[-1])


def test_progress_line_without_a_total_has_no_time_left(monkeypatch, caplog) -> None:
    lines = count_four_predictions(monkeypatch, caplog, RunSummary())
    assert re.fullmatch(r"1 answers, [\d.]+/s, [\d.]+ tokens/s, 3 of 16 slots", lines[0])


def test_progress_in_a_terminal_is_one_bar(monkeypatch, caplog, capsys) -> None:
    terminal = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "120"}
    assert not count_four_predictions(monkeypatch, caplog, RunSummary(total=4), **terminal)
    bar = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"4/4.*tokens/s, 1 of 16 slots", bar)
