import logging
import re
import time

import pytest

from florence2.data.sample import Prediction
from florence2.results import progress
from florence2.results.progress import PredictProgressBar, RunSummary


def count_four_predictions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, **options: int
) -> RunSummary:
    caplog.set_level(logging.INFO, logger="florence2")
    monkeypatch.setattr(progress, "LINE_INTERVAL", -1)
    monkeypatch.setattr(progress, "MIN_PREDICTIONS_FOR_TIME_LEFT", 1)
    monkeypatch.setattr(progress, "MIN_SECONDS_FOR_TIME_LEFT", 0)
    with PredictProgressBar(**options) as bar:
        for number in range(3):
            bar.update(Prediction(f"{number}.png", "<CAPTION>", text="a dog", num_tokens=2), 3 - number, 16)
        bar.update(Prediction("gone.png", "<CAPTION>", error="gone"), 1, 16)
    return bar.summary()


def test_progress_line_names_rate_slots_and_time_left(monkeypatch, caplog) -> None:
    count_four_predictions(monkeypatch, caplog, total=10, num_resumed=2)
    lines = caplog.messages
    shape = r"[\d.]+/s, [\d.]+ tokens/s, {} of 16 slots, \d:\d\d:\d\d left"
    assert re.fullmatch("3 of 10 predictions, " + shape.format(3), lines[0])
    assert re.fullmatch("6 of 10 predictions, " + shape.format("1 failed, 1"), lines[-1])


def test_progress_line_without_a_total_has_no_time_left(monkeypatch, caplog) -> None:
    count_four_predictions(monkeypatch, caplog)
    lines = caplog.messages
    assert re.fullmatch(r"1 prediction, [\d.]+/s, [\d.]+ tokens/s, 3 of 16 slots", lines[0])


def test_time_left_is_not_shown_before_it_means_something(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="florence2")
    monkeypatch.setattr(progress, "LINE_INTERVAL", -1)
    monkeypatch.setattr(progress, "MIN_SECONDS_FOR_TIME_LEFT", 0)
    with PredictProgressBar(1000) as bar:
        time.sleep(0.3)  # loading, which the rate of predictions does not include
        for number in range(progress.MIN_PREDICTIONS_FOR_TIME_LEFT):
            bar.update(Prediction(f"{number}.png", "<CAPTION>", text="a dog", num_tokens=2))
    lines = [line for line in caplog.messages if "of 1,000" in line]
    assert len(lines) == progress.MIN_PREDICTIONS_FOR_TIME_LEFT
    assert not any("left" in line for line in lines[:-1])
    assert re.search(r", 0:00:\d\d left$", lines[-1])


def test_time_left_is_that_of_the_last_predictions(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="florence2")
    monkeypatch.setattr(progress, "line_interval", lambda *_: -1)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    prediction = Prediction("a.png", "<CAPTION>", text="a dog", num_tokens=2)
    with PredictProgressBar(10_000) as bar:
        for seconds in [10.0] * 25 + [1.0] * 100:  # slow until the model is compiled
            now[0] += seconds
            bar.update(prediction, is_compiling=seconds > 1)
    lines = [line for line in caplog.messages if "of 10,000" in line]
    assert lines[23].endswith(", 0.10/s, 0.2 tokens/s, compiling in the background, 1 day, 3:42:40 left")
    assert lines[-1].endswith(", 1.00/s, 2.0 tokens/s, 2:44:35 left")


def test_stage_is_logged_until_the_first_prediction(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="florence2")
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.05)
    with PredictProgressBar(2) as bar:
        time.sleep(0.2)
        bar.show_stage("waiting for the first predictions")
        time.sleep(0.2)
        bar.update(Prediction("a.png", "<CAPTION>", text="a dog"))
        count = len(caplog.messages)
        time.sleep(0.2)
    assert re.fullmatch(r"loading the model: \d+ s so far", caplog.messages[0])
    assert any(line.startswith("waiting for the first predictions: ") for line in caplog.messages)
    assert len(caplog.messages) == count


def test_progress_in_a_terminal_is_one_bar(monkeypatch, caplog, capsys) -> None:
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    count_four_predictions(monkeypatch, caplog, total=4)
    assert not caplog.messages
    bar = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"4/4.*tokens/s, 1 failed, 1 of 16 slots", bar)


def test_summary_counts_predictions_tokens_and_errors(monkeypatch, caplog) -> None:
    summary = count_four_predictions(monkeypatch, caplog, num_resumed=2)
    assert (summary.num_predictions, summary.num_resumed, summary.num_tokens) == (3, 2, 6)
    assert summary.errors == (("gone.png", "gone"),)
    assert summary.exit_code == 1
    lines = str(summary).splitlines()
    assert lines[0].startswith("3 predictions in ")
    assert lines[1].startswith("2 predictions of an earlier run")
    assert lines[2] == "1 failed; the first: gone.png: gone"
