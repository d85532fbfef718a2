"""Time and memory of one training step, ours beside its rivals: base architecture, random weights, 768 x 768.

    python benchmarks/training.py                 all rows, each in a process of its own, as a table
    python benchmarks/training.py --only speed    the rows of one question: speed, memory or features
    python benchmarks/training.py --small         the same with a tiny model, to try the file itself

Rows of `memory` are of batch 4; `--batch 2` takes about half of their memory.

Rivals: `transformers` is its Seq2SeqTrainer with peft, as its documentation writes it (labels padded to the longest,
its own gradient checkpointing where asked). `published` is a faithful rendering of the step behind the published
commands: prompt and labels padded to 1024, padding trained on. Everybody computes in bfloat16 where the device has it
(autocast), else in float32: half precision that is emulated would only make the rivals look slow.
Weights are random, so the words mean nothing; the work does not depend on them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

ROWS = {
    "speed": [
        "transformers",
        "published",
        "ours",
        "ours --compile",
    ],
    "memory": [
        "transformers --recompute",
        "ours --recompute",
        "ours",
        "transformers",
    ],
    "features": ["ours --frozen", "ours --frozen --features"],
}
BATCHES = {"speed": 2, "memory": 4, "features": 2}
LABELS = 64
TARGETS = ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Result:
    """What one row measured: seconds of each step after the first, and the most memory of the process, or the GPU."""

    row: str
    step_s: float
    spread_s: tuple[float, float]
    images_per_s: float
    peak_gib: float


class Images:
    """Samples made of noise: the shapes of real ones, and no disk."""

    def __init__(self, given: argparse.Namespace, config: Any, pad_to: int | None = None) -> None:
        import torch

        self.given, self.config, self.pad_to = given, config, pad_to
        self.size = 64 if given.small else 768
        self.places = (self.size // 32) ** 2 + 1
        self.noise = torch.Generator().manual_seed(0)
        self.image = torch.randn(3, self.size, self.size, generator=self.noise)  # one for all: to draw it takes long

    def __len__(self) -> int:
        return int(self.given.batch) * (int(self.given.steps) + 1)

    def ids(self) -> tuple[list[int], list[int]]:
        """Give a prompt of 16 words and a target, `<s>` and `</s>` included."""
        import torch

        words = torch.randint(3, 200, (16 + LABELS,), generator=self.noise).tolist()
        prompt = [self.config.image_token_id] * self.places + [0, *words[:14], 2]
        return prompt, [0, *words[16 : 16 + LABELS - 2], 2]


class OurImages(Images):
    """As `Lessons` gives them: bytes, or features."""

    def __getitem__(self, at: Any) -> dict[str, Any]:
        prompt, labels = self.ids()
        item: dict[str, Any] = {"index": 0, "input_ids": prompt, "labels": labels}
        if self.given.features:
            wide = self.config.text_config.d_model
            return item | {"features_ND": self.image.flatten()[: self.places * wide].view(-1, wide).half().numpy()}
        return item | {"pixels_HWC": self.image.mul(60).add(128).clamp(0, 255).byte().permute(1, 2, 0).numpy()}


class TheirImages(Images):
    """As transformers' processor gives them; with `pad_to`, as the published trainer pads them."""

    def __getitem__(self, at: Any) -> dict[str, Any]:
        import torch

        prompt, labels = self.ids()
        if self.pad_to is not None:  # padding is attended and trained on
            prompt += [1] * (self.pad_to - len(prompt))
            labels += [1] * (self.pad_to - len(labels))
        return {
            "input_ids": torch.tensor(prompt),
            "attention_mask": torch.ones(len(prompt), dtype=torch.long),
            "pixel_values": self.image,
            "labels": torch.tensor(labels),
        }


def build(small: bool) -> Any:
    """Make the base architecture, or a tiny one, with random weights."""
    import torch
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    vision = {"embed_dim": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2), "num_groups": (1, 2, 2, 2)} if small else {}
    depths = (1, 1, 1, 1) if small else (1, 1, 9, 1)
    wide = 64 if small else 768
    layers = 1 if small else 6
    text = BartConfig(
        vocab_size=51290,
        d_model=wide,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=wide // 64,
        decoder_attention_heads=wide // 64,
        encoder_ffn_dim=4 * wide,
        decoder_ffn_dim=4 * wide,
        max_position_embeddings=1024,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
    )
    config = Florence2Config(
        vision_config=Florence2VisionConfig(depths=depths, projection_dim=wide, drop_path_rate=0.1, **vision),
        text_config=text,
        image_token_id=51289,
    )
    torch.manual_seed(0)
    return Florence2ForConditionalGeneration(config)


def arguments(given: argparse.Namespace, folder: str, **more: Any) -> Any:
    """Word what all rivals share."""
    import torch
    from transformers import Seq2SeqTrainingArguments

    return Seq2SeqTrainingArguments(
        folder,
        per_device_train_batch_size=given.batch,
        max_steps=given.steps + 1,
        learning_rate=1e-4,
        bf16=given.dtype == "bfloat16",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        **more,
    )


def ours(given: argparse.Namespace, folder: str) -> Any:
    """Make our trainer as `florence2 train` would."""
    import torch
    from PIL import Image

    from florence2.config import LoraSettings, ModelSettings, TrainingSettings
    from florence2.devices import pick_device
    from florence2.model.processing import Preprocessor
    from florence2.system import tune_allocator
    from florence2.training.dataset.florence2_dataset import Florence2Collator
    from florence2.training.performance.compile import compile_model
    from florence2.training.performance.cuda_graph_step import PAD_TO, can_use_cuda_graphs
    from florence2.training.performance.memory import checkpoint_activations
    from florence2.training.prepare_model import frozen_modules, prepare_model_for_training
    from florence2.training.trainer import Florence2Trainer
    from florence2.training.trainer_config import TrainerConfig

    if not given.recompute:
        tune_allocator()  # as the command does
    model = build(given.small).to(pick_device(None), getattr(torch, given.dtype))
    learner = prepare_model_for_training(
        model, ModelSettings(freeze="vision" if given.frozen else "none"), LoraSettings()
    )
    if given.recompute:
        checkpoint_activations(learner)
    if given.compile:
        compile_model(learner)
    images = OurImages(given, model.config)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    side = (images.size, images.size)
    preprocessor = Preprocessor(side, mean, std, 1 / 255, Image.Resampling.BICUBIC, images.places, 51289, None)
    args = arguments(given, folder, label_names=["labels"])
    learning = TrainingSettings(gradient_checkpointing=given.recompute, compile=given.compile)
    records = can_use_cuda_graphs(learner, learning)
    method = TrainerConfig(
        *(preprocessor, 51289, 2, 1, lambda *_: None, learning.optim),
        frozen_modules=frozen_modules(learner),
        use_cuda_graphs=records,
    )
    return Florence2Trainer(
        method,
        model=learner,
        args=args,
        train_dataset=images,
        data_collator=Florence2Collator(1, PAD_TO, len(images.ids()[0])) if records else Florence2Collator(1),
    )


def theirs(given: argparse.Namespace, folder: str) -> Any:
    """Make transformers' trainer with peft, as documented; with the published row, its data."""
    from peft import LoraConfig, get_peft_model
    from transformers import Seq2SeqTrainer

    model = build(given.small)
    config = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.25, target_modules=list(TARGETS))
    recompute = {"activation_checkpointing": True} if given.recompute else {}
    return Seq2SeqTrainer(
        model=get_peft_model(model, config),
        args=arguments(given, folder, **recompute),
        train_dataset=TheirImages(given, model.config, 1024 if given.who == "published" else None),
    )


def measure(given: argparse.Namespace) -> Result:
    """Take the steps and note when each ended; the first, which warms up and compiles, is left out."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = (ours if given.who == "ours" else theirs)(given, folder)
        if hasattr(trainer, "_get_train_sampler") and given.who == "ours":
            trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
        trainer.add_callback(Clock())
        trainer.train()
    steps = sorted(b - a for a, b in pairwise(ends))
    middle = steps[len(steps) // 2]
    on_gpu = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    row = " ".join(sys.argv[sys.argv.index("--row") + 1 :]) if "--row" in sys.argv else given.who
    return Result(row, middle, (steps[0], steps[-1]), given.batch / middle, peak)


def table(rows: list[str], extra: list[str]) -> None:
    """Run each row in a process of its own and print what came out, compared with the first."""
    print("| row | step s | least to most | pictures/s | peak GiB | time / first | memory / first |")
    print("|---|---|---|---|---|---|---|")
    first: dict[str, Any] = {}
    for row in rows:
        command = [sys.executable, __file__, *extra, "--row", *row.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["?"]
            print(f"| {row} | failed: {last[0]} |")
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        first = first or result
        low, high = result["spread_s"]
        print(
            f"| {row} | {result['step_s']:.3f} | {low:.3f} to {high:.3f} | {result['pictures_per_s']:.3f} "
            f"| {result['peak_gib']:.2f} | {result['step_s'] / first['step_s']:.2f} "
            f"| {result['peak_gib'] / first['peak_gib']:.2f} |",
            flush=True,
        )


def arithmetic(asked: str) -> str:
    """Choose what everybody computes in."""
    from florence2.devices import inference_dtype, pick_device

    return asked if asked != "auto" else str(inference_dtype("auto", pick_device(None))).removeprefix("torch.")


def main() -> None:
    """Read the words and run the table, or one row of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ROWS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--row", dest="who", choices=["ours", "transformers", "published"])
    parser.add_argument("--batch", type=int, help="pictures of a step (2; where memory is compared 4)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    for flag in ("--recompute", "--compile", "--frozen", "--features"):
        parser.add_argument(flag, action="store_true")
    given = parser.parse_args()
    if given.who:
        given.dtype, given.batch = arithmetic(given.dtype), given.batch or BATCHES["speed"]
        print(json.dumps(asdict(measure(given))))
        return
    extra = ["--steps", str(given.steps), "--dtype", arithmetic(given.dtype), *(["--small"] if given.small else [])]
    print(f"{arithmetic(given.dtype)}, {given.steps} steps after the first")
    for name, rows in ROWS.items():
        if given.only in (None, name):
            batch = given.batch or BATCHES[name]
            print(f"\n{name}, batch {batch}\n", flush=True)
            table(rows, [*extra, "--batch", str(batch)])


if __name__ == "__main__":
    main()
