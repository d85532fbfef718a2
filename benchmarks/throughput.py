"""Pictures per second, from JPEGs on disk to captions.jsonl: this engine and its rivals, in turns, in one run.

    python -m benchmarks.throughput --beams 3
    python -m benchmarks.throughput --beams 1 --rival hf-bf16-tuned
    python -m benchmarks.throughput --device cuda --decoded --compile on --pictures 3000 --batches 16,64

Rivals: `hf-fp32` is `generate` as the model card shows it, one by one; `hf-bf16` the same in bfloat16; `hf-fp32-tuned`
and `hf-bf16-tuned` also with channels-last weights and a tuned allocator; all but the first at the batch sizes of
`--batches`. Without `--rival`, those in bfloat16 take part where the device multiplies it itself. Weights are random,
so lengths of captions are forced: normal, mean 40, standard deviation 25, at least 4, the same quantiles for everybody.

Two busy processes on two cores tell nothing: look at the load that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import Plan, random_model
from florence2.devices import has_bfloat16, inference_dtype

RESULTS = Path(__file__).parent / "results"
RIVALS = {"hf-fp32": "float32", "hf-fp32-tuned": "float32", "hf-bf16": "bfloat16", "hf-bf16-tuned": "bfloat16"}
SIZES = ((1154, 866), (4000, 3000))  # 1 and 12 megapixels


def main() -> None:
    """Run, print a table for people and one line of JSON, and write both down."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder), min(options.files, options.images))
        images = list(islice(cycle(files), options.images))
        rounds = compete(options, images, Path(folder))
    report = summary(options, rounds)
    print(text := table(report))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"{report['date'][:10]}-throughput-{options.device}-{options.size}-{options.beams}beams.md"
        (RESULTS / name).write_text(f"{text}\n\n```json\n{json.dumps(report, indent=1)}\n```\n")
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="base", choices=("base", "large", "tiny"))
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument(
        "--rival", action="append", choices=tuple(RIVALS), help="may be repeated (default: all that suit)"
    )
    parser.add_argument("--batches", default="1,8", help="batch sizes of all rivals but hf-fp32")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--files", type=int, default=64, help="files on disk; beyond them pictures come again")
    parser.add_argument(
        "--decoded", action="store_true", help="open pictures, at the model's size, before the clock starts"
    )
    parser.add_argument("--rival-pictures", type=int, default=16, help="pictures each rival gets in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=0, help="slots of the engine (default: its own choice)")
    parser.add_argument("--workers", type=int, default=2, help="threads that open pictures for the engine")
    parser.add_argument("--dtype", default="auto", help="arithmetic of the engine (default: as in `predict`)")
    parser.add_argument("--compile", default="off", choices=("auto", "on", "off"))
    parser.add_argument("--write", action="store_true", help=f"also write a dated file into {RESULTS.name}/")
    options = parser.parse_args()
    device = torch.device(options.device)
    options.dtype = str(inference_dtype(options.dtype, device)).removeprefix("torch.")
    options.rival = options.rival or [name for name in RIVALS if "bf16" not in name or has_bfloat16(device)]
    return options


def make_images(folder: Path, count: int) -> list[str]:
    """Write JPEGs of 1 and 12 megapixels in turns: clouds with some grain, no two alike."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(make_image, folder), range(count)))


def make_image(folder: Path, number: int) -> str:
    """Write one JPEG."""
    grain, size = np.random.default_rng(number), SIZES[number % len(SIZES)]
    clouds = Image.fromarray(grain.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = grain.integers(0, 24, (size[1] // 2, size[0] // 2, 1), dtype=np.uint8)
    pixels = np.asarray(clouds) // 8 * 7 + noise.repeat(2, 0).repeat(2, 1)
    path = str(folder / f"{number:04}.jpg")
    Image.fromarray(pixels).save(path, quality=90)
    return path


def lengths(count: int) -> list[int]:
    """Spread lengths over the quantiles of the distribution, in a fixed random order."""
    normal = statistics.NormalDist(40, 25)
    spread = [max(4, round(normal.inv_cdf((n + 0.5) / count))) for n in range(count)]
    random.Random(0).shuffle(spread)
    return spread


def contestants(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Describe everybody who takes part, ours first."""
    shared = {"size": options.size, "beams": options.beams, "device": options.device, "workers": options.workers}
    plans = [shared | {"name": "ours", "batch": options.slots, "dtype": options.dtype, "compile": options.compile}]
    for name in options.rival:
        batches = [1] if name == "hf-fp32" else [int(batch) for batch in options.batches.split(",")]
        plans += [shared | {"name": name, "batch": n, "dtype": RIVALS[name], "compile": "off"} for n in batches]
    return plans


def compete(options: argparse.Namespace, images: list[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Let everybody caption in turns, round after round; each is a process that waits while others work."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TRANSFORMERS_VERBOSITY": "error"}
    running = {}
    for plan in contestants(options):
        command = [sys.executable, "-m", "benchmarks.contestants", json.dumps(plan)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        running[label(plan)] = plan, process
    for _, process in running.values():
        answer(process)
        ask(process, images[:1], [8], folder)  # warm up
        answer(process)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for number in range(options.rounds):
        for name, (plan, process) in running.items():
            count = len(images) if plan["name"] == "ours" else min(len(images), options.rival_images)
            load = os.getloadavg()[0]
            with utilisation(options.device) as used:
                ask(process, images[:count], lengths(count), folder, options.decoded)
                found[name].append(answer(process) | {"pictures": count, "load_before": round(load, 2)})
            found[name][-1]["gpu_use"] = statistics.mean(used) if used else None
            rate = found[name][-1]["seconds"] / count
            print(f"round {number + 1}: {name:18} {rate:8.3f} s/picture (load before {load:.2f})", file=sys.stderr)
    for _, process in running.values():
        process.communicate()
    return found


@contextmanager
def utilisation(device: str) -> Iterator[list[int]]:
    """Ask nvidia-smi ten times a second how much of the time the GPU was busy, in percent."""
    used: list[int] = []
    if device != "cuda":
        yield used
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield used
    process.terminate()
    used += [int(line) for line in process.communicate()[0].split()]


@torch.no_grad()
def work(size: str, beams: int, device: str, tokens: int = 42) -> float:
    """Count the operations of one picture's caption in GFLOP, two for a multiplication and an addition."""
    model, _ = random_model(Plan("count", 1, size, beams, device, "float32", "off", 0))
    vision, ids = torch.zeros(1, 3, 768, 768, device=device), torch.zeros(1, 10, dtype=torch.long, device=device)

    def count(do: Callable[[], Any]) -> tuple[Any, int]:
        with FlopCounterMode(display=False) as counter:
            made = do()
        return made, counter.get_total_flops()

    seen, looked = count(lambda: model.model.multi_modal_projector(model.model.vision_tower(vision).last_hidden_state))
    embeds = torch.cat((seen, model.get_input_embeddings()(ids)), 1)
    states, read = count(lambda: model.get_encoder()(inputs_embeds=embeds).last_hidden_state)

    def say(length: int) -> int:
        said = torch.zeros(1, length, dtype=torch.long, device=device)
        decoder = model.model.language_model.decoder
        return count(lambda: model.lm_head(decoder(said, encoder_hidden_states=states).last_hidden_state))[1]

    each = (say(2 * tokens) - say(tokens)) / tokens
    return (looked + read + say(tokens) + (beams - 1) * tokens * each) / 1e9


def label(plan: dict[str, Any]) -> str:
    """Name a contestant with its batch size."""
    return "ours" if plan["name"] == "ours" else f"{plan['name']} b{plan['batch']}"


def ask(
    process: subprocess.Popen[str], images: list[str], wanted: list[int], folder: Path, decoded: bool = False
) -> None:
    """Give a contestant a job."""
    assert process.stdin
    output = str(folder / "captions.jsonl")
    job = {"pictures": images, "lengths": wanted, "output": output, "decoded": decoded}
    print(json.dumps(job), file=process.stdin, flush=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a contestant's line."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a contestant ended with exit code {process.wait()}")
    return dict(json.loads(line))


def summary(options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Boil the rounds down to medians, and to how many times as fast we are as each rival at its best batch size."""
    per_image = {
        name: statistics.median(turn["seconds"] / turn["pictures"] for turn in turns) for name, turns in rounds.items()
    }
    best: dict[str, float] = {}
    for name, seconds in per_image.items():
        rival = name.split(" ")[0]
        best[rival] = min(seconds, best.get(rival, seconds))
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor_name()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.throughput " + " ".join(sys.argv[1:]),
        "device": device,
        "threads": options.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gflop_per_picture": work(options.size, options.beams, options.device),
        "seconds_per_picture": per_image,
        "times_as_fast_as": {rival: seconds / best["ours"] for rival, seconds in best.items() if rival != "ours"},
        "options": vars(options),
        "rounds": rounds,
    }


def table(report: dict[str, Any]) -> str:
    """Lay the report out for people, in Markdown."""
    options = report["options"]
    lines = [
        f"# Throughput: {options['size']}, {options['beams']} beams, {report['device']}, {report['threads']} threads",
        "",
        f"{report['date']}, torch {report['torch']}, transformers {report['transformers']}: `{report['command']}`",
        "",
        "| | s/picture | pictures/s | ours is x times as fast | rounds | CPU s/picture | peak MiB (GPU) | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = report["seconds_per_picture"]["ours"]
    for name, seconds in report["seconds_per_picture"].items():
        turns = report["rounds"][name]
        each = ", ".join(f"{turn['seconds'] / turn['pictures']:.4f}" for turn in turns)
        peak, load = max(turn["peak_mib"] for turn in turns), max(turn["load_before"] for turn in turns)
        on_gpu = f" ({max(turn['gpu_peak_mib'] for turn in turns):.0f})" if options["device"] == "cuda" else ""
        work = statistics.median(turn["cpu_seconds"] / turn["pictures"] for turn in turns)
        pace = f"{seconds:.4f} | {1 / seconds:.2f} | {seconds / ours:.2f} | {each}"
        cells = (pace, f"{work:.3f}", f"{peak:.0f}{on_gpu}")
        lines.append(f"| {name} | {' | '.join(cells)} | {load:.1f} |")
    stats = report["rounds"]["ours"][-1]["stats"]
    split = ", ".join(f"{what} {spent / options['pictures']:.4f}" for what, spent in stats["seconds"].items())
    rate = report["gflop_per_picture"] / ours / 1000
    pace = f"{report['gflop_per_picture']:.0f} GFLOP a picture as transformers computes it: {rate:.2f} TFLOP/s"
    used = report["rounds"]["ours"][-1]["gpu_use"]
    busy = f"; the GPU was busy {used:.0f}% of the time" if used is not None else ""
    return "\n".join([*lines, "", f"Ours, last round, s/picture: {split}; {stats['steps']} steps. {pace}{busy}."])


def processor_name() -> str:
    """Name the CPU, and what it computes bfloat16 with."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512_vnni") if unit in text]
    return f"{model} ({', '.join(units) or 'no bfloat16 unit'})"


if __name__ == "__main__":
    main()
