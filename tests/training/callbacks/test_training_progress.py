"""Progress of long work, as messages and as a bar."""

import logging

import pytest

from florence2.training.callbacks import training_progress


def test_progress_without_a_terminal_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="florence2")
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(training_progress.time, "monotonic", lambda: next(now))
    with training_progress.count_progress("computing image features", 2_000, 400) as advance:
        for _ in range(4):
            advance(8)
    lines = caplog.messages
    assert [line.split(",")[0] for line in lines] == [
        "computing image features: 416 of 2",
        "computing image features: 432 of 2",
    ]
    assert all(line.endswith(" s left") for line in lines)


def test_progress_in_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    for level, has_bar in ((logging.INFO, True), (logging.WARNING, False)):
        caplog.set_level(level, logger="florence2")
        with training_progress.count_progress("computing image features", 20, 0) as advance:
            advance(20)
        assert ("20/20" in capsys.readouterr().err) is has_bar
