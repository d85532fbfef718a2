import io
import logging
import sys

import pytest
from rich.table import Table

from florence2.log import line_interval, log_to_stderr, logger, print_lines, progress_console, render_lines


def test_command_line_prints_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr():
        logger.info("100%% of [bold]%s[/bold]", "photos")
    logger.info("after the command")
    captured = capsys.readouterr()
    assert captured.err == "100% of [bold]photos[/bold]\n"
    assert captured.out == ""


def test_what_controls_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr():
        logger.warning("a\nerror: b\x1b[2J\x9b.jpg")
    print_lines(["\x1b]0;title\x07", "\u202egpj"])
    captured = capsys.readouterr()
    assert captured.err == "a\\nerror: b\\x1b[2J\\x9b.jpg\n"
    assert captured.out == "\\x1b]0;title\\x07\n\\u202egpj\n"


def test_library_is_silent_until_logging_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("a message")
    assert capsys.readouterr().err == ""
    assert not progress_console().is_terminal


def test_lines_are_a_minute_apart_after_the_first_minute() -> None:
    assert [line_interval(seconds, 10.0) for seconds in (0, 59, 60, 7200)] == [10.0, 10.0, 60.0, 60.0]


def test_quiet_prints_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(logging.WARNING):
        logger.info("a message")
        logger.warning("a warning")
        assert not progress_console().is_terminal
    assert capsys.readouterr().err == "a warning\n"


def test_only_the_main_process_logs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="florence2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        logger.info("rank %s", rank)
    assert caplog.messages == ["rank 0"]


def test_table_has_no_lines_where_the_console_cannot_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("task", "score")
    table.add_row("od", "0.5")
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert "".join(render_lines(table)).isascii()


def test_table_is_rendered_as_plain_text() -> None:
    table = Table("task", "score")
    table.add_row("od", "0.5")
    assert [word for word in " ".join(render_lines(table)).split() if word.isalnum()] == ["task", "score", "od"]
