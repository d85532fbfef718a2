"""Tables of results of `throughput`: of one run, and of several beside each other for the docs.

python -m benchmarks.throughput_table benchmarks/results/DATE-throughput-*.md
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

PARTS = ("read", "vision", "encode", "decode")


def main() -> None:
    """Print one table of the results that the command line names."""
    print(comparison([read_report(Path(name)) for name in sys.argv[1:]]))


def read_report(path: Path) -> dict[str, Any]:
    """Read the first report in a result, under the key names of today: a dated record keeps those of its day."""
    block = re.search(r"```json\n(.*?)\n```", path.read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        raise SystemExit(f"{path} has no block of JSON")
    report: dict[str, Any] = json.loads(block[1])
    options = report["options"]
    return {
        **report,
        "seconds_per_image": report.get("seconds_per_image") or report["seconds_per_picture"],
        "options": {**options, "num_beams": options.get("num_beams") or options["beams"]},
    }


def table(report: dict[str, Any]) -> str:
    """Format a report as Markdown."""
    options = report["options"]
    title = f"{options['size']}, {options['num_beams']} beams, {report['device']}, {report['threads']} threads"
    lines = [
        f"# Throughput: {title}",
        "",
        f"{report['date']}, torch {report['torch']}, transformers {report['transformers']}: `{report['command']}`",
        "",
        "| | s/image | images/s | speed-up of ours | read, vision, encode, decode | captions as in float32 | rounds |"
        " CPU s/image | peak MiB (GPU) | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(report, name) for name in report["seconds_per_image"]),
        "",
    ]
    lines += [f"{name} takes no part: {reason}.\n" for name, reason in options.get("left_out", {}).items()]
    stats = report["rounds"]["ours"][-1]["stats"]
    gflop = report["gflop_per_image"]
    speed = gflop / report["seconds_per_image"]["ours"] / 1000
    work = f"{gflop:.0f} GFLOP per image in transformers' implementation: {speed:.2f} TFLOP/s"
    percentage = report["rounds"]["ours"][-1]["gpu_use"]
    gpu = f"; GPU utilization {percentage:.0f}%" if percentage is not None else ""
    equal = (
        "Captions as in float32: of the bundled model on scenes, equal to those of transformers' `generate` in float32."
    )
    return "\n".join([*lines, f"Ours, last round: {stats['steps']} steps. {work}{gpu}. {equal}"])


def row(report: dict[str, Any], name: str) -> str:
    """Format a contestant."""
    options, seconds, replies = report["options"], report["seconds_per_image"][name], report["rounds"][name]
    by_round = ", ".join(f"{each['seconds'] / each['images']:.4f}" for each in replies)
    parts = ", ".join(f"{parts_of(replies[-1]).get(part, 0):.3f}" for part in PARTS) if parts_of(replies[-1]) else ""
    peak, load = max(each["peak_mib"] for each in replies), max(each["load_before"] for each in replies)
    gpu_peak = f" ({max(each['gpu_peak_mib'] for each in replies):.0f})" if options["device"] == "cuda" else ""
    cpu_seconds = statistics.median(each["cpu_seconds"] / each["images"] for each in replies)
    speed = f"{seconds:.4f} | {1 / seconds:.2f} | {seconds / report['seconds_per_image']['ours']:.2f}"
    cells = [name, speed, parts, equal_captions(report, name), by_round, f"{cpu_seconds:.3f}"]
    return f"| {' | '.join(cells)} | {peak:.0f}{gpu_peak} | {load:.1f} |"


def parts_of(reply: dict[str, Any]) -> dict[str, float]:
    """Return the seconds per image of each part, where they were measured."""
    seconds: dict[str, float] = reply.get("stats", {}).get("seconds", {})
    return {part: spent / (reply.get("images") or reply["pictures"]) for part, spent in seconds.items()}


def equal_captions(report: dict[str, Any], name: str) -> str:
    """Return how many captions of scenes equal the reference's."""
    equal: dict[str, int] = report.get("equal_captions", {})
    return f"{equal[name]} of {report['options']['num_scenes']}" if name in equal else ""


def comparison(reports: list[dict[str, Any]]) -> str:
    """Format several runs: seconds per image of each rival at its best batch size, and the engine's speed-up."""
    names = list(dict.fromkeys(name.split(" ")[0] for report in reports for name in report["seconds_per_image"]))
    titles = [
        f"{report['device'].split(' (')[0]}, {beams} beam{'s' * (beams > 1)}"
        for report in reports
        if (beams := report["options"]["num_beams"])
    ]
    lines = [f"| | {' | '.join(titles)} | captions as in float32 |", "|---" * (len(reports) + 2) + "|"]
    for name in names:
        cells, equal = [], ""
        for report in reports:
            times = {each: spent for each, spent in report["seconds_per_image"].items() if each.split(" ")[0] == name}
            if not times:
                cells.append(report["options"].get("left_out", {}).get(name, ""))
                continue
            best = min(times, key=lambda each: times[each])
            ratio = times[best] / report["seconds_per_image"]["ours"]
            cells.append(
                f"{times[best]:.{2 if times[best] > 0.1 else 4}f} s" + (f" ({ratio:.2f})" if name != "ours" else "")
            )
            equal = equal or equal_captions(report, best)
        lines.append(f"| {name} | {' | '.join(cells)} | {equal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
