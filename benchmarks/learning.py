"""Exact captions after equal numbers of training steps: `florence2 train` and its rivals, on a new caption style.

    python benchmarks/learning.py                               5 seeds, the published learning rate and a higher one
    python benchmarks/learning.py --num_seeds 1 --steps 40      to test the script
    OMP_NUM_THREADS=1 python benchmarks/learning.py --num_processes 2     two trainings in parallel, of one thread each

All contestants have the same 48 images, base model, LoRA (rank, alpha, dropout, layers), learning rates, batch size,
number of steps and seeds; everything else is their own. `transformers` is its Seq2SeqTrainer with peft as documented:
the model's own loss, padding masked with -100, a linear schedule. `published` reproduces the trainer of the published
commands: prompt and labels padded to all positions, padding attended to and trained on, OneCycle (with AdamW; its
default was Prodigy at 1e-4, where Prodigy needs 1). `florence2 predict` captions the same held-out images with all
adapters, in float32. The score is the fraction of captions that match exactly.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from florence2.config import LoraSettings
from florence2.demo.dataset import make_dataset
from florence2.model.storage.checkpoint_files import find_folder
from florence2.model.tasks import find_task

RESULTS = Path(__file__).parent / "results"
CONTESTANTS = ("ours", "transformers", "published")
NUM_TRAIN_IMAGES, NUM_EVAL_IMAGES, BATCH_SIZE = 48, 100, 8
TASK = find_task("caption")
LORA = LoraSettings()
COLOURS = {"ours": (38, 103, 178), "transformers": (214, 93, 14), "published": (120, 120, 120)}


def main() -> None:
    """Train all contestants, print a table and one line of JSON, and write both to a file with a chart on request."""
    options = parse()
    if options.contestant:
        train_rival(options.contestant, options.job)
        return
    with ThreadPoolExecutor(options.num_processes) as pool:
        rows = [row for each in pool.map(partial(run_seed, options), range(options.num_seeds)) for row in each]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/learning.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "rows": rows,
    }
    print(text := table(report))
    if options.write:
        name = f"{report['date'][:10]}-learning"  # type: ignore[index]
        (RESULTS / f"{name}.md").write_text(
            f"{text}\n\n![Mean scores by steps]({name}.png)\n\n```json\n{json.dumps(report)}\n```\n"
        )
        draw(rows).save(RESULTS / f"{name}.png")
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line; the script calls itself with `--contestant` and `--job`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 120, 240])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-4, 2e-3])
    parser.add_argument("--num_processes", type=int, default=1, help="number of seeds that run in parallel")
    parser.add_argument("--write", action="store_true", help="also write a dated file and a chart into results/")
    parser.add_argument("--contestant", choices=CONTESTANTS[1:])
    parser.add_argument("--job", type=json.loads)
    return parser.parse_args()


def run_seed(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train all contestants on the same images at each learning rate and length, and score their captions."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "train", NUM_TRAIN_IMAGES, 1000 * seed, "tags")
        eval_folder = make_dataset(Path(folder) / "eval", NUM_EVAL_IMAGES, 1000 * seed + NUM_TRAIN_IMAGES, "tags")
        for rate in options.learning_rates:
            for steps in options.steps:
                for name in CONTESTANTS:
                    out = Path(folder) / f"{name}-{rate}-{steps}"
                    train(name, {"dataset": str(dataset), "out": str(out), "rate": rate, "steps": steps, "seed": seed})
                    score = exact_match(eval_folder, out)
                    rows.append({"contestant": name, "seed": seed, "rate": rate, "steps": steps, "exact": score})
                    print(f"{name:13} seed {seed} rate {rate:g} steps {steps}: {score:.2f}", file=sys.stderr)
    return rows


def train(contestant: str, job: dict[str, Any]) -> None:
    """Train one contestant in its own process."""
    if contestant == "ours":
        command = ["-m", "florence2", "train", "--dataset", job["dataset"], "--output_dir", job["out"]]
        command += ["--model_id", "demo", "--task", TASK.name, "--batch_size", str(BATCH_SIZE)]
        command += ["--learning_rate", str(job["rate"]), "--seed", str(job["seed"])]
        command += ["--trainer_args", f"max_steps={job['steps']}"]
    else:
        command = [__file__, "--contestant", contestant, "--job", json.dumps(job)]
    run_python(*command)


def exact_match(eval_folder: Path, adapter: Path) -> float:
    """Predict held-out images with a trained adapter, and return the fraction of captions that match exactly."""
    output = adapter / "predictions.jsonl"
    data = ["--model_path", str(adapter), "--input_path", str(eval_folder), "--output_path", str(output)]
    run_python("-m", "florence2", "predict", *data, "--task", TASK.name, "--dtype", "float32")
    captions = {row["file_name"]: row["text"] for row in map(json.loads, output.read_text().splitlines())}
    matches = [text == (eval_folder / name).with_suffix(".txt").read_text().strip() for name, text in captions.items()]
    return float(sum(matches)) / len(matches)


def run_python(*arguments: str) -> None:
    """Run Python in its own process; if it fails, exit with the end of its stderr."""
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stderr[-2000:])


class CaptionDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """A folder of images and captions in the format of the rivals' trainers."""

    def __init__(self, folder: Path, processor: Any, pad_to: int | None) -> None:
        self.paths, self.processor, self.pad_to = sorted(folder.glob("*.png")), processor, pad_to

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        text = path.with_suffix(".txt").read_text().strip()
        inputs = self.processor(text=TASK.token, images=Image.open(path).convert("RGB"), return_tensors="pt")
        item = {"pixel_values": inputs["pixel_values"][0], "input_ids": inputs["input_ids"][0]}
        item["labels"] = self.processor.tokenizer(text, return_tensors="pt").input_ids[0]
        if self.pad_to:
            for name in ("input_ids", "labels"):
                padding = self.pad_to - len(item[name])
                item[name] = torch.nn.functional.pad(item[name], (0, padding), value=1)
        return item


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad to the longest as documented, with masked prompts and ignored labels."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([item["input_ids"] for item in items], batch_first=True, padding_value=1)
    labels = pad([item["labels"] for item in items], batch_first=True, padding_value=-100)
    pixels = torch.stack([item["pixel_values"] for item in items])
    attends_to_padding = bool((items[0]["labels"] == 1).any())
    mask = torch.ones_like(ids) if attends_to_padding else (ids != 1).long()
    return {"pixel_values": pixels, "input_ids": ids, "labels": labels, "attention_mask": mask}


def train_rival(contestant: str, job: dict[str, Any]) -> None:
    """Train as in the documentation of transformers, or as the published trainer."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        set_seed,
    )

    set_seed(job["seed"])
    base = find_folder("demo", None, True)
    processor = Florence2Processor.from_pretrained(base)
    model = Florence2ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, lora_dropout=LORA.dropout, target_modules=list(LORA.target_modules)
    )
    peft_model = get_peft_model(model, lora)
    pad_to = model.config.text_config.max_position_embeddings if contestant == "published" else None
    trainer = Seq2SeqTrainer(
        model=peft_model,
        args=Seq2SeqTrainingArguments(
            job["out"] + "-run",
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=job["steps"],
            learning_rate=job["rate"],
            seed=job["seed"],
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=CaptionDataset(Path(job["dataset"]), processor, pad_to),
        data_collator=collate,
    )
    if contestant == "published":
        trainer.create_optimizer()
        trainer.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
            trainer.optimizer, max_lr=job["rate"], total_steps=job["steps"] + 1
        )
    trainer.train()
    peft_model.save_pretrained(job["out"])
    processor.save_pretrained(job["out"])


def table(report: dict[str, Any]) -> str:
    """Format the means over the seeds, with minimum and maximum, as Markdown."""
    rows = report["rows"]
    lines = [
        "# Learning: exact captions after equal numbers of steps",
        "",
        f"{report['date']}, {report['machine']}: `{report['command']}`",
        "",
        "| learning rate | steps | " + " | ".join(CONTESTANTS) + " |",
        "| --- | --- |" + " --- |" * len(CONTESTANTS),
    ]
    for rate, steps in sorted({(row["rate"], row["steps"]) for row in rows}):
        cells = []
        for name in CONTESTANTS:
            scores = select_scores(rows, name, rate, steps)
            cells.append(f"{statistics.mean(scores):.3f} ({min(scores):.2f} to {max(scores):.2f})")
        lines.append(f"| {rate:g} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def select_scores(rows: list[dict[str, Any]], contestant: str, rate: float, steps: int) -> list[float]:
    """Return the scores of all seeds."""
    return [r["exact"] for r in rows if (r["contestant"], r["rate"], r["steps"]) == (contestant, rate, steps)]


def draw(rows: list[dict[str, Any]]) -> Image.Image:
    """Draw the means by steps, one panel for each learning rate."""
    rates = sorted({row["rate"] for row in rows})
    width, height, margin = 460, 320, 50
    image = Image.new("RGB", (width * len(rates), height), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    max_steps = max(row["steps"] for row in rows)
    for panel, rate in enumerate(rates):
        left = panel * width + margin
        plot_width, plot_height = width - 2 * margin, height - 2 * margin
        for tick in range(6):
            y = margin + plot_height * (1 - tick / 5)
            pen.line((left, y, left + plot_width, y), fill=(225, 225, 225))
            pen.text((left - 6, y), f"{tick / 5:.1f}", fill=(40, 40, 40), anchor="rm", font=font)
        pen.text((left + plot_width / 2, 20), f"learning rate {rate:g}", fill=(40, 40, 40), anchor="mm", font=font)
        for number, name in enumerate(CONTESTANTS):
            points: list[tuple[float, float]] = [(left, margin + plot_height)]
            for steps in sorted({row["steps"] for row in rows}):
                mean = statistics.mean(select_scores(rows, name, rate, steps))
                points.append((left + plot_width * steps / max_steps, margin + plot_height * (1 - mean)))
                pen.text((points[-1][0], height - margin + 12), str(steps), fill=(40, 40, 40), anchor="mm", font=font)
            pen.line(points, fill=COLOURS[name], width=3)
            pen.text((left + 10, margin + 10 + 18 * number), name, fill=COLOURS[name], anchor="lm", font=font)
        pen.text((left + plot_width / 2, height - 16), "steps", fill=(40, 40, 40), anchor="mm", font=font)
    return image


if __name__ == "__main__":
    main()
