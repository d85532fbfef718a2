from pathlib import Path

from florence2.training.curves.metrics_logger import MetricsFile, save_plot


def test_rows_hold_any_text_and_a_cut_character_is_skipped(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "samples.jsonl")
    metrics.add({"step": 1, "text": "one\u2028two\x85three"})
    with metrics.path.open("ab") as file:
        file.write('{"step": 2, "text": "caf\u00e9'.encode()[:-1])  # killed while writing
    metrics.truncate(5)
    assert metrics.rows() == [{"step": 1, "text": "one\u2028two\x85three"}]


def test_truncated_metrics_file_ends_at_the_step(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1, 9):
        metrics.add({"step": step, "loss": 1 / step})
    with metrics.path.open("a") as file:
        file.write('{"step": 9, "lo')  # killed while writing
    metrics.truncate(5)
    assert [row["step"] for row in metrics.rows()] == [1, 2, 3, 4, 5]
    save_plot(tmp_path)
    assert (tmp_path / "training_curve.png").exists()
