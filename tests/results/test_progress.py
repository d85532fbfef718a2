import re

import pytest

from florence2.data.sample import Prediction
from florence2.results import progress
from florence2.results.progress import PredictProgressBar, RunSummary


def spoken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: RunSummary, **environment
) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "LINE_EVERY", -1)
    with PredictProgressBar(tally) as meter:
        for number in range(3):
            tally.slots, tally.slots_in_use = 16, 3 - number
            meter.count(Prediction(f"{number}.png", "<CAPTION>", text="a dog", num_tokens=2))
        meter.count(Prediction("gone.png", "<CAPTION>", error="gone"))
    return capsys.readouterr().err


def test_a_run_tells_its_pace_its_slots_and_what_is_left(monkeypatch, capsys) -> None:
    lines = spoken(monkeypatch, capsys, RunSummary(total=10, resumed=2)).splitlines()
    shape = r"[\d.]+/s, [\d.]+ tokens/s, {} of 16 slots, \d:\d\d:\d\d left"
    assert re.fullmatch("3 of 10 answers, " + shape.format(3), lines[0])
    assert re.fullmatch("6 of 10 answers, " + shape.format(1), lines[-1])


def test_without_a_total_nothing_is_said_of_what_is_left(monkeypatch, capsys) -> None:
    lines = spoken(monkeypatch, capsys, RunSummary()).splitlines()
    assert re.fullmatch(r"1 answers, [\d.]+/s, [\d.]+ tokens/s, 3 of 16 slots", lines[0])


def test_a_terminal_sees_one_bar_with_all_of_it(monkeypatch, capsys) -> None:
    told = spoken(monkeypatch, capsys, RunSummary(total=4), FORCE_COLOR="1", TTY_COMPATIBLE="1", COLUMNS="120")
    assert re.search(r"4/4.*tokens/s, 1 of 16 slots", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", told))
    assert "answers, " not in told
