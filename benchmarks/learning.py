"""What is learnt in equal steps: `florence2 train` and its rivals, on the bundled model and a caption style new to it.

    python benchmarks/learning.py                          5 seeds, the published learning rate and a higher one
    python benchmarks/learning.py --seeds 1 --steps 40     to try the file itself
    OMP_NUM_THREADS=1 python benchmarks/learning.py --jobs 2     two trainings at a time, of one thread each

Everybody gets the same 48 pictures, base, LoRA (rank, alpha, dropout, layers), learning rates, batch size, number of
steps and seeds; the rest is each one's own. `transformers` is its Seq2SeqTrainer with peft as its documentation writes
it: the model's own loss, padding masked with -100, a linear schedule. `published` is a faithful rendering of the
trainer behind the published commands: prompt and labels padded to all positions, padding attended and learnt, OneCycle
(with AdamW; by default it used Prodigy, at 1e-4 where Prodigy wants 1). All adapters are asked about the same
held-out pictures by `florence2 predict`, in float32. The score is the share of captions that are right to the letter.
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
ENTRANTS = ("ours", "transformers", "published")
LEARNT, HELD_OUT, BATCH = 48, 100, 8
TASK = find_task("caption")
LORA = LoraSettings()
COLOURS = {"ours": (38, 103, 178), "transformers": (214, 93, 14), "published": (120, 120, 120)}


def main() -> None:
    """Let everybody learn, print a table and one line of JSON, and write both down with a picture."""
    given = parse()
    if given.entrant:
        learn_as_rival(given)
        return
    with ThreadPoolExecutor(given.jobs) as pool:
        rows = [row for each in pool.map(partial(compete, given), range(given.seeds)) for row in each]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/learning.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "rows": rows,
    }
    print(text := table(report))
    if given.write:
        name = f"{report['date'][:10]}-learning"  # type: ignore[index]
        (RESULTS / f"{name}.md").write_text(
            f"{text}\n\n![Curves of the means over steps]({name}.png)\n\n```json\n{json.dumps(report)}\n```\n"
        )
        draw(rows).save(RESULTS / f"{name}.png")
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line; `--entrant` and what follows is how the script calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 120, 240])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-3])
    parser.add_argument("--jobs", type=int, default=1, help="seeds to go through at a time")
    parser.add_argument("--write", action="store_true", help="also write a dated file and a picture into results/")
    parser.add_argument("--entrant", choices=ENTRANTS[1:])
    parser.add_argument("--job", type=json.loads)
    return parser.parse_args()


def compete(given: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Teach everybody the same pictures at each rate and length, and count what is right afterwards."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "train", LEARNT, 1000 * seed, "tags")
        held = make_dataset(Path(folder) / "held", HELD_OUT, 1000 * seed + LEARNT, "tags")
        for rate in given.rates:
            for steps in given.steps:
                for entrant in ENTRANTS:
                    out = Path(folder) / f"{entrant}-{rate}-{steps}"
                    job = {"dataset": str(dataset), "out": str(out), "rate": rate, "steps": steps, "seed": seed}
                    learn(entrant, job)
                    right = exact(held, out)
                    found.append({"entrant": entrant, "seed": seed, "rate": rate, "steps": steps, "exact": right})
                    print(f"{entrant:13} seed {seed} rate {rate:g} steps {steps}: {right:.2f}", file=sys.stderr)
    return found


def learn(entrant: str, job: dict[str, Any]) -> None:
    """Train one entrant, as a process of its own."""
    if entrant == "ours":
        command = ["-m", "florence2", "train", "--dataset", job["dataset"], "--output_dir", job["out"]]
        command += ["--model_id", "demo", "--task", TASK.name, "--batch_size", str(BATCH)]
        command += ["--learning_rate", str(job["rate"]), "--seed", str(job["seed"])]
        command += ["--trainer_args", f"max_steps={job['steps']}"]
    else:
        command = [__file__, "--entrant", entrant, "--job", json.dumps(job)]
    python(*command)


def exact(held: Path, adapter: Path) -> float:
    """Ask a trained adapter about held-out pictures, and give the share of captions that are right to the letter."""
    output = adapter / "said.jsonl"
    asked = ["--model_path", str(adapter), "--input_path", str(held), "--output_path", str(output)]
    python("-m", "florence2", "predict", *asked, "--task", TASK.name, "--dtype", "float32")
    said = {row["file_name"]: row["text"] for row in map(json.loads, output.read_text().splitlines())}
    right = [text == (held / name).with_suffix(".txt").read_text().strip() for name, text in said.items()]
    return float(sum(right)) / len(right)


def python(*words: str) -> None:
    """Run Python as a process of its own, and stop with the end of what it said if it fails."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """A folder of pictures and captions as a rival's trainer takes them."""

    def __init__(self, folder: Path, processor: Any, pad_to: int | None) -> None:
        self.paths, self.processor, self.pad_to = sorted(folder.glob("*.png")), processor, pad_to

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> dict[str, Any]:
        path = self.paths[at]
        text = path.with_suffix(".txt").read_text().strip()
        item = self.processor(text=TASK.token, images=Image.open(path).convert("RGB"), return_tensors="pt")
        found = {"pixel_values": item["pixel_values"][0], "input_ids": item["input_ids"][0]}
        found["labels"] = self.processor.tokenizer(text, return_tensors="pt").input_ids[0]
        if self.pad_to:
            for name in ("input_ids", "labels"):
                spare = self.pad_to - len(found[name])
                found[name] = torch.nn.functional.pad(found[name], (0, spare), value=1)
        return found


def together(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad to the longest, as the documentation does: prompts masked, labels ignored."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([item["input_ids"] for item in items], batch_first=True, padding_value=1)
    labels = pad([item["labels"] for item in items], batch_first=True, padding_value=-100)
    pixels = torch.stack([item["pixel_values"] for item in items])
    padded_is_attended = bool((items[0]["labels"] == 1).any())
    mask = torch.ones_like(ids) if padded_is_attended else (ids != 1).long()
    return {"pixel_values": pixels, "input_ids": ids, "labels": labels, "attention_mask": mask}


def learn_as_rival(given: argparse.Namespace) -> None:
    """Train as transformers' documentation writes it, or as the published trainer did."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        set_seed,
    )

    job = given.job
    set_seed(job["seed"])
    base = find_folder("demo", None, True)
    processor = Florence2Processor.from_pretrained(base)
    model = Florence2ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, lora_dropout=LORA.dropout, target_modules=list(LORA.target_modules)
    )
    learner = get_peft_model(model, lora)
    pad_to = model.config.text_config.max_position_embeddings if given.entrant == "published" else None
    trainer = Seq2SeqTrainer(
        model=learner,
        args=Seq2SeqTrainingArguments(
            job["out"] + "-run",
            per_device_train_batch_size=BATCH,
            max_steps=job["steps"],
            learning_rate=job["rate"],
            seed=job["seed"],
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=Images(Path(job["dataset"]), processor, pad_to),
        data_collator=together,
    )
    if given.entrant == "published":
        trainer.create_optimizer()
        trainer.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
            trainer.optimizer, max_lr=job["rate"], total_steps=job["steps"] + 1
        )
    trainer.train()
    learner.save_pretrained(job["out"])
    processor.save_pretrained(job["out"])


def table(report: dict[str, Any]) -> str:
    """Lay the means over the seeds out, with the least and the most."""
    rows = report["rows"]
    lines = [
        "# Learning: captions right to the letter after equal steps",
        "",
        f"{report['date']}, {report['machine']}: `{report['command']}`",
        "",
        "| learning rate | steps | " + " | ".join(ENTRANTS) + " |",
        "| --- | --- |" + " --- |" * len(ENTRANTS),
    ]
    for rate, steps in sorted({(row["rate"], row["steps"]) for row in rows}):
        cells = []
        for entrant in ENTRANTS:
            each = scores(rows, entrant, rate, steps)
            cells.append(f"{statistics.mean(each):.3f} ({min(each):.2f} to {max(each):.2f})")
        lines.append(f"| {rate:g} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scores(rows: list[dict[str, Any]], entrant: str, rate: float, steps: int) -> list[float]:
    """Pick the scores of all seeds."""
    return [r["exact"] for r in rows if (r["entrant"], r["rate"], r["steps"]) == (entrant, rate, steps)]


def draw(rows: list[dict[str, Any]]) -> Image.Image:
    """Draw the means over steps, one panel for each learning rate."""
    rates = sorted({row["rate"] for row in rows})
    wide, high, edge = 460, 320, 50
    image = Image.new("RGB", (wide * len(rates), high), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    most = max(row["steps"] for row in rows)
    for panel, rate in enumerate(rates):
        left = panel * wide + edge
        across, up = wide - 2 * edge, high - 2 * edge
        for tick in range(6):
            y = edge + up * (1 - tick / 5)
            pen.line((left, y, left + across, y), fill=(225, 225, 225))
            pen.text((left - 6, y), f"{tick / 5:.1f}", fill=(40, 40, 40), anchor="rm", font=font)
        pen.text((left + across / 2, 20), f"learning rate {rate:g}", fill=(40, 40, 40), anchor="mm", font=font)
        for number, entrant in enumerate(ENTRANTS):
            points: list[tuple[float, float]] = [(left, edge + up)]
            for steps in sorted({row["steps"] for row in rows}):
                mean = statistics.mean(scores(rows, entrant, rate, steps))
                points.append((left + across * steps / most, edge + up * (1 - mean)))
                pen.text((points[-1][0], high - edge + 12), str(steps), fill=(40, 40, 40), anchor="mm", font=font)
            pen.line(points, fill=COLOURS[entrant], width=3)
            pen.text((left + 10, edge + 10 + 18 * number), entrant, fill=COLOURS[entrant], anchor="lm", font=font)
        pen.text((left + across / 2, high - 16), "steps", fill=(40, 40, 40), anchor="mm", font=font)
    return image


if __name__ == "__main__":
    main()
