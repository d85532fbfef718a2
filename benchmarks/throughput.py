"""Images per second, from JPEGs on disk to captions.jsonl: this engine and its rivals, alternating in one run.

    python -m benchmarks.throughput --num_beams 3
    python -m benchmarks.throughput --rival all --num_images 16 --num_rival_images 4 --rival_batch_sizes 1 4
    python -m benchmarks.throughput --device cuda --decoded --compile on --num_images 3000 --rival_batch_sizes 16 64

The second command takes about eight minutes on two quiet cores. `benchmarks/rivals.py` lists the rivals; without
`--rival`, transformers' take part, in bfloat16 if the device has it natively. `all` are the engine in int8,
transformers' on the model card and at its best, exported graphs, transformers.js and vLLM, where they can run; it needs
some 14 GB of memory. `--before` adds the engine of another checkout.
Weights are random, so the lengths of captions are forced: normal with mean 40 and standard deviation 25, at least 4,
the same quantiles for every contestant. Before, every contestant captions `--num_scenes` scenes with the bundled model,
which ends its captions itself: how many of them equal those of transformers' `generate` in float32, one at a time.

Other load on the machine distorts the result; the load before each round is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.benchmark_models import BUNDLED, random_model
from benchmarks.jpegs import make_images
from benchmarks.processor import processor_name
from benchmarks.rivals import ALL, RIVALS, contestant_command
from benchmarks.throughput_table import table
from florence2.demo.dataset import make_dataset
from florence2.devices import has_bfloat16, inference_dtype, is_8_bit

RESULTS = Path(__file__).parent / "results"
FIRST_SCENE = 6_000_000
BEFORE = "ours-before"
Texts = dict[str, str]


def main() -> None:
    """Run the rounds, print a table and one line of JSON, and write both to a file on request."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        options.exports = options.exports or f"{folder}/exports"
        files = make_images(Path(folder), min(options.num_files, options.num_images))
        images = list(islice(cycle(files), options.num_images))
        contestants = start_contestants(options)
        try:
            texts = caption_scenes(options, contestants, Path(folder)) if options.num_scenes else {}
            rounds = run_rounds(options, contestants, images, Path(folder))
        finally:
            for contestant in contestants.values():
                contestant.close()
    report = summary(options, rounds, texts)
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
    rivals = (*(rival.name for rival in RIVALS), ALL)
    parser.add_argument("--rival", action="append", choices=rivals, help="may be repeated (default: transformers')")
    parser.add_argument("--rival_batch_sizes", type=int, nargs="+", default=[1, 8], help="of transformers' but hf-fp32")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_files", type=int, default=64, help="files on disk; further images repeat them")
    parser.add_argument("--num_scenes", type=int, default=20, help="scenes that the bundled model captions, or 0")
    parser.add_argument("--decoded", action="store_true", help="decode and resize images before the clock starts")
    parser.add_argument("--num_rival_images", type=int, default=16, help="images of each rival in a round")
    parser.add_argument("--num_rounds", type=int, default=2)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=0, help="slots of the engine (default: its own choice)")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that read images for the engine")
    parser.add_argument("--dtype", default="auto", help="dtype of the engine (default: as in `florence2 predict`)")
    parser.add_argument("--compile", default="off", choices=("auto", "on", "off"))
    parser.add_argument("--exports", help="folder that keeps the exported models (default: a temporary one)")
    parser.add_argument("--before", metavar="FOLDER", help=f"checkout of an older commit: its engine is `{BEFORE}`")
    parser.add_argument("--write", action="store_true", help=f"also write a dated file into {RESULTS.name}/")
    options = parser.parse_args()
    device = torch.device(options.device)
    if not is_8_bit(options.dtype):
        options.dtype = str(inference_dtype(options.dtype, device)).removeprefix("torch.")
    options.rival, options.left_out = choose_rivals(options, has_bfloat16(device))
    return options


def choose_rivals(options: argparse.Namespace, is_half_native: bool) -> tuple[list[str], dict[str, str]]:
    """Return the names of the rivals, and why others were left out of `all`; a named rival that cannot run ends it."""
    names = options.rival or []
    reasons = {rival.name: rival.obstacle(options, is_half_native) for rival in RIVALS}
    if ALL in names:
        usual = [
            rival.name for rival in RIVALS if rival.is_in_all or (rival.name == "hf-fp32-tuned" and not is_half_native)
        ]
        return [name for name in usual if not reasons[name]], {name: reasons[name] for name in usual if reasons[name]}
    for name in names:
        if reasons[name] and "bfloat16" not in reasons[name]:
            raise SystemExit(f"{name}: {reasons[name]}")
    return names or [rival.name for rival in RIVALS if rival.name.startswith("hf-") and not reasons[rival.name]], {}


def caption_lengths(count: int) -> list[int]:
    """Return the quantiles of the distribution of lengths, in a fixed random order."""
    normal = statistics.NormalDist(40, 25)
    lengths = [max(4, round(normal.inv_cdf((n + 0.5) / count))) for n in range(count)]
    random.Random(0).shuffle(lengths)
    return lengths


class Contestant:
    """A process that captions images, job after job, and waits while another one runs."""

    def __init__(self, options: argparse.Namespace, config: dict[str, Any]) -> None:
        self.config = config
        environment = os.environ | {"OMP_NUM_THREADS": str(options.num_threads), "TRANSFORMERS_VERBOSITY": "error"}
        folder = None
        if config["name"] == BEFORE:
            folder, config = Path(options.before).resolve(), config | {"name": "ours"}
            environment["PYTHONPATH"] = str(folder / "src")
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with contestant_command(config) as command:
            self._process = subprocess.Popen(command, env=environment, cwd=folder, **pipes)

    def run(
        self, model_size: str, images: list[str], lengths: list[int], output: Path, *, decoded: bool
    ) -> dict[str, Any]:
        """Run a job and return the reply."""
        assert self._process.stdin
        assert self._process.stdout
        job = {
            "model_size": model_size,
            "images": images,
            "lengths": lengths,
            "output": str(output),
            "decoded": decoded,
        }
        print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{label(self.config)} exited with code {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Wait for the end of the process."""
        self._process.communicate()


def contestant_configs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the configs of all contestants, ours first."""
    shared = {
        "model_size": options.size,
        "num_beams": options.num_beams,
        "device": options.device,
        "num_workers": options.num_workers,
        "num_threads": options.num_threads,
        "exports": options.exports,
    }
    ours = {"name": "ours", "batch_size": options.batch_size, "dtype": options.dtype, "compile": options.compile}
    rivals = {rival.name: rival for rival in RIVALS}
    configs = [shared | ours, *([shared | ours | {"name": BEFORE}] if options.before else [])]
    for name in options.rival:
        configs += [shared | config for config in rivals[name].configs(options.rival_batch_sizes)]
    return configs


def start_contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    """Export what is missing, and start all processes."""
    configs = contestant_configs(options)
    for config in configs:
        for size in (options.size, *([BUNDLED] if options.num_scenes else [])):
            folder = Path(options.exports) / f"{size}-{config.get('target')}-{config['dtype']}"
            if config.get("target") and not folder.exists():
                print(f"exporting {folder.name}", file=sys.stderr)
                words = [size, config["target"], config["dtype"], str(folder.with_suffix(".unfinished"))]
                command = [sys.executable, "-m", "benchmarks.benchmark_models", *words]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                folder.with_suffix(".unfinished").rename(folder)
    return {label(config): Contestant(options, config) for config in configs}


def caption_scenes(options: argparse.Namespace, contestants: dict[str, Contestant], folder: Path) -> dict[str, Texts]:
    """Return the captions that each contestant writes with the bundled model, and those of the reference."""
    images = [
        str(path)
        for path in sorted(
            make_dataset(folder / "scenes", num_samples=options.num_scenes, seed=FIRST_SCENE).glob("*.png")
        )
    ]
    reference = next(rival for rival in RIVALS if rival.name == "hf-fp32")
    config = contestant_configs(options)[0] | reference.configs([1])[0]
    output = folder / "scenes.jsonl"
    extra = {} if label(config) in contestants else {label(config): Contestant(options, config)}
    texts: dict[str, Texts] = {}
    for name, contestant in (extra | contestants).items():
        contestant.run(BUNDLED, images, [], output, decoded=options.decoded)
        rows = map(json.loads, output.read_text().splitlines())
        texts[name] = {Path(row["file_name"]).name: row["text"].strip() for row in rows}
        print(f"{name:22} captioned {len(images)} scenes", file=sys.stderr)
    for contestant in extra.values():
        contestant.close()
    return texts


def run_rounds(
    options: argparse.Namespace, contestants: dict[str, Contestant], images: list[str], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Run all contestants in turn, round after round."""
    output = folder / "captions.jsonl"
    for contestant in contestants.values():
        contestant.run(options.size, images[:1], [8], output, decoded=options.decoded)  # loads the model and warms up
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(options.num_rounds):
        for name, contestant in contestants.items():
            count = len(images) if name.startswith("ours") else min(len(images), options.num_rival_images)
            load = os.getloadavg()[0]
            with gpu_utilization(options.device) as percentages:
                job = options.size, images[:count], caption_lengths(count), output
                reply = contestant.run(*job, decoded=options.decoded) | {"images": count, "load_before": round(load, 2)}
            reply["gpu_use"] = statistics.mean(percentages) if percentages else None
            rounds[name].append(reply)
            seconds = reply["seconds"] / count
            print(f"round {number + 1}: {name:22} {seconds:8.3f} s/image (load before {load:.2f})", file=sys.stderr)
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
    model, _ = random_model(size, device, "float32")
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
    name: str = config["name"]
    return name if name.startswith("ours") else f"{name} b{config['batch_size']}"


def summary(
    options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]], texts: dict[str, Texts]
) -> dict[str, Any]:
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
    reference = texts.get("hf-fp32 b1", {})
    equal = {name: sum(found[file] == text for file, text in reference.items()) for name, found in texts.items()}
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
        "equal_captions": equal,
        "options": vars(options),
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
