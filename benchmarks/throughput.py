"""Images per second, from JPEGs on disk to captions.jsonl: this engine and its rivals, alternating in one run.

    python -m benchmarks.throughput --num_beams 3
    python -m benchmarks.throughput --num_beams 1 --rival hf-bf16-tuned
    python -m benchmarks.throughput --device cuda --decoded --compile on --num_images 3000 --rival_batch_sizes 16 64

Rivals: `hf-fp32` is `generate` as on the model card, one image at a time; `hf-bf16` is the same in bfloat16;
`hf-fp32-tuned` and `hf-bf16-tuned` have channels-last weights and a tuned allocator too. All but the first run at each
of `--rival_batch_sizes`. Without `--rival`, those in bfloat16 take part if the device has native bfloat16 support.
Weights are random, so the lengths of captions are forced: normal with mean 40 and standard deviation 25, at least 4,
the same quantiles for every contestant.

Other load on the machine distorts the result; the load before each round is printed.
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

from benchmarks.contestants import ContestantConfig, random_model
from florence2.devices import has_bfloat16, inference_dtype

RESULTS = Path(__file__).parent / "results"
RIVALS = {"hf-fp32": "float32", "hf-fp32-tuned": "float32", "hf-bf16": "bfloat16", "hf-bf16-tuned": "bfloat16"}
SIZES = ((1154, 866), (4000, 3000))  # 1 and 12 megapixels


def main() -> None:
    """Run the rounds, print a table and one line of JSON, and write both to a file on request."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder), min(options.num_files, options.num_images))
        images = list(islice(cycle(files), options.num_images))
        rounds = run_rounds(options, images, Path(folder))
    report = summary(options, rounds)
    print(text := table(report))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"{report['date'][:10]}-throughput-{options.device}-{options.size}-{options.num_beams}beams.md"
        (RESULTS / name).write_text(f"{text}\n\n```json\n{json.dumps(report, indent=1)}\n```\n")
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="base", choices=("base", "large", "tiny"))
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument(
        "--rival", action="append", choices=tuple(RIVALS), help="may be repeated (default: all that suit the device)"
    )
    parser.add_argument("--rival_batch_sizes", type=int, nargs="+", default=[1, 8], help="of all rivals but hf-fp32")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_files", type=int, default=64, help="files on disk; further images repeat them")
    parser.add_argument("--decoded", action="store_true", help="decode and resize images before the clock starts")
    parser.add_argument("--num_rival_images", type=int, default=16, help="images of each rival in a round")
    parser.add_argument("--num_rounds", type=int, default=2)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=0, help="slots of the engine (default: its own choice)")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that read images for the engine")
    parser.add_argument("--dtype", default="auto", help="dtype of the engine (default: as in `florence2 predict`)")
    parser.add_argument("--compile", default="off", choices=("auto", "on", "off"))
    parser.add_argument("--write", action="store_true", help=f"also write a dated file into {RESULTS.name}/")
    options = parser.parse_args()
    device = torch.device(options.device)
    options.dtype = str(inference_dtype(options.dtype, device)).removeprefix("torch.")
    options.rival = options.rival or [name for name in RIVALS if "bf16" not in name or has_bfloat16(device)]
    return options


def make_images(folder: Path, count: int) -> list[str]:
    """Write JPEGs of 1 and 12 megapixels alternately: clouds with noise, all different."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(make_image, folder), range(count)))


def make_image(folder: Path, number: int) -> str:
    """Write one JPEG of one of the sizes."""
    return make_jpeg(folder, f"{number:04}", SIZES[number % len(SIZES)], number)


def make_jpeg(folder: Path, name: str, size: tuple[int, int], seed: int) -> str:
    """Write one JPEG."""
    grain = np.random.default_rng(seed)
    clouds = Image.fromarray(grain.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = grain.integers(0, 24, (size[1] // 2, size[0] // 2, 1), dtype=np.uint8)
    pixels = np.asarray(clouds) // 8 * 7 + noise.repeat(2, 0).repeat(2, 1)
    path = str(folder / f"{name}.jpg")
    Image.fromarray(pixels).save(path, quality=90)
    return path


def caption_lengths(count: int) -> list[int]:
    """Return the quantiles of the distribution of lengths, in a fixed random order."""
    normal = statistics.NormalDist(40, 25)
    lengths = [max(4, round(normal.inv_cdf((n + 0.5) / count))) for n in range(count)]
    random.Random(0).shuffle(lengths)
    return lengths


def contestant_configs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the configs of all contestants, ours first."""
    shared = {
        "model_size": options.size,
        "num_beams": options.num_beams,
        "device": options.device,
        "num_workers": options.num_workers,
    }
    ours = {"name": "ours", "batch_size": options.batch_size, "dtype": options.dtype, "compile": options.compile}
    configs = [shared | ours]
    for name in options.rival:
        for batch_size in [1] if name == "hf-fp32" else options.rival_batch_sizes:
            rival = {"name": name, "batch_size": batch_size, "dtype": RIVALS[name], "compile": "off"}
            configs.append(shared | rival)
    return configs


def run_rounds(options: argparse.Namespace, images: list[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run all contestants in turn, round after round; each is a process that waits while another runs."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.num_threads), "TRANSFORMERS_VERBOSITY": "error"}
    processes = {}
    for config in contestant_configs(options):
        command = [sys.executable, "-m", "benchmarks.contestants", json.dumps(config)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        processes[label(config)] = config, process
    for _, process in processes.values():
        read_reply(process)  # it has loaded its model
        send_job(process, images[:1], [8], folder)  # warmup
        read_reply(process)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
    for number in range(options.num_rounds):
        for name, (config, process) in processes.items():
            count = len(images) if config["name"] == "ours" else min(len(images), options.num_rival_images)
            load = os.getloadavg()[0]
            with gpu_utilization(options.device) as percentages:
                send_job(process, images[:count], caption_lengths(count), folder, options.decoded)
                reply = read_reply(process) | {"images": count, "load_before": round(load, 2)}
            reply["gpu_use"] = statistics.mean(percentages) if percentages else None
            rounds[name].append(reply)
            seconds = reply["seconds"] / count
            print(f"round {number + 1}: {name:18} {seconds:8.3f} s/image (load before {load:.2f})", file=sys.stderr)
    for _, process in processes.values():
        process.communicate()
    return rounds


@contextmanager
def gpu_utilization(device: str) -> Iterator[list[int]]:
    """Collect the utilization of the GPU from nvidia-smi ten times a second, in percent."""
    percentages: list[int] = []
    if device != "cuda":
        yield percentages
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield percentages
    process.terminate()
    percentages += [int(line) for line in process.communicate()[0].split()]


@torch.no_grad()
def count_gflop(size: str, num_beams: int, device: str, num_tokens: int = 42) -> float:
    """Count the operations of one image's caption in GFLOP; a multiplication with its addition counts as two."""
    model, _ = random_model(ContestantConfig("count", 1, size, num_beams, device, "float32", "off", 0))
    pixels, prompt = torch.zeros(1, 3, 768, 768, device=device), torch.zeros(1, 10, dtype=torch.long, device=device)

    def count(function: Callable[[], Any]) -> tuple[Any, int]:
        with FlopCounterMode(display=False) as counter:
            result = function()
        return result, counter.get_total_flops()

    features, vision = count(
        lambda: model.model.multi_modal_projector(model.model.vision_tower(pixels).last_hidden_state)
    )
    embeds = torch.cat((features, model.get_input_embeddings()(prompt)), 1)
    states, encoder = count(lambda: model.get_encoder()(inputs_embeds=embeds).last_hidden_state)

    def count_decoder(length: int) -> int:
        ids = torch.zeros(1, length, dtype=torch.long, device=device)
        decoder = model.model.language_model.decoder
        return count(lambda: model.lm_head(decoder(ids, encoder_hidden_states=states).last_hidden_state))[1]

    per_token = (count_decoder(2 * num_tokens) - count_decoder(num_tokens)) / num_tokens
    return (vision + encoder + count_decoder(num_tokens) + (num_beams - 1) * num_tokens * per_token) / 1e9


def label(config: dict[str, Any]) -> str:
    """Return the name of a contestant with its batch size."""
    return "ours" if config["name"] == "ours" else f"{config['name']} b{config['batch_size']}"


def send_job(
    process: subprocess.Popen[str], images: list[str], lengths: list[int], folder: Path, decoded: bool = False
) -> None:
    """Send a job to a contestant."""
    assert process.stdin
    output = str(folder / "captions.jsonl")
    job = {"images": images, "lengths": lengths, "output": output, "decoded": decoded}
    print(json.dumps(job), file=process.stdin, flush=True)


def read_reply(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the reply of a contestant."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a contestant exited with code {process.wait()}")
    return dict(json.loads(line))


def summary(options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians of the rounds, and our speed-up over each rival at its best batch size."""
    per_image = {
        name: statistics.median(each["seconds"] / each["images"] for each in replies)
        for name, replies in rounds.items()
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
        "threads": options.num_threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gflop_per_image": count_gflop(options.size, options.num_beams, options.device),
        "seconds_per_image": per_image,
        "times_as_fast_as": {rival: seconds / best["ours"] for rival, seconds in best.items() if rival != "ours"},
        "options": vars(options),
        "rounds": rounds,
    }


def table(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    options = report["options"]
    lines = [
        f"# Throughput: {options['size']}, {options['num_beams']} beams, "
        f"{report['device']}, {report['threads']} threads",
        "",
        f"{report['date']}, torch {report['torch']}, transformers {report['transformers']}: `{report['command']}`",
        "",
        "| | s/image | images/s | speed-up of ours | rounds | CPU s/image | peak MiB (GPU) | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = report["seconds_per_image"]["ours"]
    for name, seconds in report["seconds_per_image"].items():
        replies = report["rounds"][name]
        by_round = ", ".join(f"{each['seconds'] / each['images']:.4f}" for each in replies)
        peak, load = max(each["peak_mib"] for each in replies), max(each["load_before"] for each in replies)
        gpu_peak = f" ({max(each['gpu_peak_mib'] for each in replies):.0f})" if options["device"] == "cuda" else ""
        cpu_seconds = statistics.median(each["cpu_seconds"] / each["images"] for each in replies)
        speed = f"{seconds:.4f} | {1 / seconds:.2f} | {seconds / ours:.2f} | {by_round}"
        lines.append(f"| {name} | {speed} | {cpu_seconds:.3f} | {peak:.0f}{gpu_peak} | {load:.1f} |")
    stats = report["rounds"]["ours"][-1]["stats"]
    parts = ", ".join(f"{part} {spent / options['num_images']:.4f}" for part, spent in stats["seconds"].items())
    gflop = report["gflop_per_image"]
    work = f"{gflop:.0f} GFLOP per image in transformers' implementation: {gflop / ours / 1000:.2f} TFLOP/s"
    percentage = report["rounds"]["ours"][-1]["gpu_use"]
    gpu = f"; GPU utilization {percentage:.0f}%" if percentage is not None else ""
    return "\n".join([*lines, "", f"Ours, last round, s/image: {parts}; {stats['steps']} steps. {work}{gpu}."])


def processor_name() -> str:
    """Return the name of the CPU and of its bfloat16 instructions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512_vnni") if unit in text]
    return f"{model} ({', '.join(units) or 'no native bfloat16'})"


if __name__ == "__main__":
    main()
