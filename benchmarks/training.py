"""Time and memory of one training step, ours beside its rivals: base architecture, random weights, 768 x 768.

    python benchmarks/training.py                   all tables; each row runs in its own process
    python benchmarks/training.py --table speed     one table: speed, memory or features
    python benchmarks/training.py --size tiny       the same with a tiny model, to test the script

The rows of `memory` have batch size 4; `--batch_size 2` needs about half of their memory.

Rivals: `transformers` is its Seq2SeqTrainer with peft as documented (labels padded to the longest, its own gradient
checkpointing). `published` reproduces the step of the published commands: prompt and labels padded to 1024, with a loss
on padding. All compute in bfloat16 if the device has native support (autocast), else in float32, because emulated
bfloat16 would only slow the rivals down. Weights are random; the work does not depend on them.
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

TABLES = {
    "speed": [
        "transformers",
        "published",
        "ours",
        "ours --compile",
    ],
    "memory": [
        "transformers --gradient_checkpointing",
        "ours --gradient_checkpointing",
        "ours",
        "transformers",
    ],
    "features": ["ours --freeze_vision", "ours --freeze_vision --cached_features"],
}
BATCH_SIZES = {"speed": 2, "memory": 4, "features": 2}
NUM_LABELS = 64
TARGETS = ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Result:
    """The measurements of one row: time of a step after the first, and peak memory of the process or the GPU."""

    row: str
    median_step_s: float
    step_range_s: tuple[float, float]
    images_per_s: float
    peak_gib: float


class NoiseDataset:
    """Samples of noise with the shapes of real ones, without files."""

    def __init__(self, options: argparse.Namespace, config: Any, pad_to: int | None = None) -> None:
        import torch

        self.options, self.config, self.pad_to = options, config, pad_to
        self.image_size = 64 if options.size == "tiny" else 768
        self.num_image_tokens = (self.image_size // 32) ** 2 + 1
        self.generator = torch.Generator().manual_seed(0)
        self.image = torch.randn(3, self.image_size, self.image_size, generator=self.generator)  # shared by all samples

    def __len__(self) -> int:
        return int(self.options.batch_size) * (int(self.options.steps) + 1)

    def sample_ids(self) -> tuple[list[int], list[int]]:
        """Return a prompt of 16 text tokens and a target, with `<s>` and `</s>`."""
        import torch

        ids = torch.randint(3, 200, (16 + NUM_LABELS,), generator=self.generator).tolist()
        prompt = [self.config.image_token_id] * self.num_image_tokens + [0, *ids[:14], 2]
        return prompt, [0, *ids[16 : 16 + NUM_LABELS - 2], 2]


class OurDataset(NoiseDataset):
    """Samples in the format of our training dataset: uint8 pixels, or features."""

    def __getitem__(self, index: Any) -> dict[str, Any]:
        prompt, labels = self.sample_ids()
        item: dict[str, Any] = {"input_ids": prompt, "labels": labels}
        if self.options.cached_features:
            width = self.config.text_config.d_model
            features_ND = self.image.flatten()[: self.num_image_tokens * width].view(-1, width)
            return item | {"features_ND": features_ND.half().numpy()}
        return item | {"pixels_HWC": self.image.mul(60).add(128).clamp(0, 255).byte().permute(1, 2, 0).numpy()}


class TransformersDataset(NoiseDataset):
    """Samples in the format of transformers' processor; `pad_to` pads them as the published trainer does."""

    def __getitem__(self, index: Any) -> dict[str, Any]:
        import torch

        prompt, labels = self.sample_ids()
        if self.pad_to is not None:  # padding is attended and trained on
            prompt += [1] * (self.pad_to - len(prompt))
            labels += [1] * (self.pad_to - len(labels))
        return {
            "input_ids": torch.tensor(prompt),
            "attention_mask": torch.ones(len(prompt), dtype=torch.long),
            "pixel_values": self.image,
            "labels": torch.tensor(labels),
        }


def create_model(size: str) -> Any:
    """Create the base architecture, or a tiny one, with random weights."""
    import torch
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    is_tiny = size == "tiny"
    vision = {"embed_dim": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2), "num_groups": (1, 2, 2, 2)} if is_tiny else {}
    depths = (1, 1, 1, 1) if is_tiny else (1, 1, 9, 1)
    width = 64 if is_tiny else 768
    layers = 1 if is_tiny else 6
    text = BartConfig(
        vocab_size=51290,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=1024,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
    )
    config = Florence2Config(
        vision_config=Florence2VisionConfig(depths=depths, projection_dim=width, drop_path_rate=0.1, **vision),
        text_config=text,
        image_token_id=51289,
    )
    torch.manual_seed(0)
    return Florence2ForConditionalGeneration(config)


def training_arguments(options: argparse.Namespace, folder: str, **values: Any) -> Any:
    """Return the training arguments that all contestants share."""
    import torch
    from transformers import Seq2SeqTrainingArguments

    return Seq2SeqTrainingArguments(
        folder,
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps + 1,
        learning_rate=1e-4,
        bf16=options.dtype == "bfloat16",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        **values,
    )


def create_our_trainer(options: argparse.Namespace, folder: str) -> Any:
    """Create our trainer as `florence2 train` does."""
    import torch
    from PIL import Image

    from florence2.config import LoraSettings, TrainingSettings
    from florence2.devices import pick_device
    from florence2.model.processing import Preprocessor
    from florence2.system import tune_allocator
    from florence2.training.dataset.collator import Florence2Collator
    from florence2.training.optimizer.optimizer_config import OptimizerConfig
    from florence2.training.performance.compile import compile_model
    from florence2.training.performance.cuda_graph_step import PAD_TO, can_use_cuda_graphs
    from florence2.training.performance.memory import checkpoint_activations
    from florence2.training.prepare_model import LoraOptions, prepare_model_for_training
    from florence2.training.trainer import Florence2Trainer
    from florence2.training.trainer_config import TargetTokens, TrainerConfig

    if not options.gradient_checkpointing:
        tune_allocator()  # like the command
    dtype, lora = getattr(torch, options.dtype), LoraSettings()
    model = create_model(options.size).to(pick_device(None), dtype)
    dataset = OurDataset(options, model.config)
    peft_model = prepare_model_for_training(
        model,
        lora=LoraOptions(lora.rank, lora.alpha, lora.dropout, lora.target_modules),
        freeze="vision" if options.freeze_vision else "none",
        dtype=dtype,
        num_image_tokens=dataset.num_image_tokens,
    )
    if options.gradient_checkpointing:
        checkpoint_activations(peft_model)
    if options.compile:
        compile_model(peft_model)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    side = (dataset.image_size, dataset.image_size)
    preprocessor = Preprocessor(
        side, mean, std, 1 / 255, Image.Resampling.BICUBIC, dataset.num_image_tokens, 51289, None
    )
    args = training_arguments(options, folder, label_names=["labels"])
    optimizer = OptimizerConfig(TrainingSettings().optim, args.learning_rate, "constant")
    use_cuda_graphs = can_use_cuda_graphs(
        peft_model,
        optimizer.name,
        checkpoints_activations=options.gradient_checkpointing,
        is_compiled=options.compile,
    )
    tokens = TargetTokens(51289, 2, 1)
    trainer_config = TrainerConfig(preprocessor, tokens, optimizer, lambda *_: None, use_cuda_graphs)
    return Florence2Trainer(
        trainer_config,
        model=peft_model,
        args=args,
        train_dataset=dataset,
        data_collator=Florence2Collator(1, PAD_TO, len(dataset.sample_ids()[0]))
        if use_cuda_graphs
        else Florence2Collator(1),
    )


def create_rival_trainer(options: argparse.Namespace, folder: str) -> Any:
    """Create transformers' trainer with peft, as documented; the row `published` pads the data."""
    from peft import LoraConfig, get_peft_model
    from transformers import Seq2SeqTrainer

    model = create_model(options.size)
    config = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.25, target_modules=list(TARGETS))
    checkpointing = {"activation_checkpointing": True} if options.gradient_checkpointing else {}
    return Seq2SeqTrainer(
        model=get_peft_model(model, config),
        args=training_arguments(options, folder, **checkpointing),
        train_dataset=TransformersDataset(options, model.config, 1024 if options.row == "published" else None),
    )


def measure(options: argparse.Namespace) -> Result:
    """Run the steps and measure all but the first, which compiles and warms up."""
    import torch
    from transformers import TrainerCallback

    step_ends: list[float] = []

    class StepTimer(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            step_ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        create_trainer = create_our_trainer if options.row == "ours" else create_rival_trainer
        trainer = create_trainer(options, folder)
        if hasattr(trainer, "_get_train_sampler") and options.row == "ours":
            trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
        trainer.add_callback(StepTimer())
        trainer.train()
    steps = sorted(b - a for a, b in pairwise(step_ends))
    median = steps[len(steps) // 2]
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    row = " ".join(sys.argv[sys.argv.index("--row") + 1 :])
    return Result(row, median, (steps[0], steps[-1]), options.batch_size / median, peak)


def print_table(rows: list[str], arguments: list[str]) -> None:
    """Run each row in its own process and print its result, also relative to the first row."""
    print("| row | step s | min to max | images/s | peak GiB | time / first | memory / first |")
    print("|---|---|---|---|---|---|---|")
    first: dict[str, Any] = {}
    for row in rows:
        command = [sys.executable, __file__, *arguments, "--row", *row.split()]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            error = process.stderr.strip().splitlines()[-1:] or ["?"]
            print(f"| {row} | failed: {error[0]} |")
            continue
        result = json.loads(process.stdout.splitlines()[-1])
        first = first or result
        low, high = result["step_range_s"]
        print(
            f"| {row} | {result['median_step_s']:.3f} | {low:.3f} to {high:.3f} | {result['images_per_s']:.3f} "
            f"| {result['peak_gib']:.2f} | {result['median_step_s'] / first['median_step_s']:.2f} "
            f"| {result['peak_gib'] / first['peak_gib']:.2f} |",
            flush=True,
        )


def resolve_dtype(dtype: str) -> str:
    """Return the dtype that all contestants compute in."""
    from florence2.devices import inference_dtype, pick_device

    return dtype if dtype != "auto" else str(inference_dtype("auto", pick_device(None))).removeprefix("torch.")


def main() -> None:
    """Parse the command line and run the tables, or one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=list(TABLES))
    parser.add_argument("--size", choices=["base", "tiny"], default="base")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--row", choices=["ours", "transformers", "published"], help="run only this one, without a table"
    )
    parser.add_argument("--batch_size", type=int, help="default: 2; 4 in the table `memory`")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    for flag in ("--gradient_checkpointing", "--compile", "--freeze_vision", "--cached_features"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if options.row:
        options.dtype = resolve_dtype(options.dtype)
        options.batch_size = options.batch_size or BATCH_SIZES["speed"]
        print(json.dumps(asdict(measure(options))))
        return
    dtype = resolve_dtype(options.dtype)
    arguments = ["--steps", str(options.steps), "--dtype", dtype, "--size", options.size]
    print(f"{dtype}, {options.steps} steps after the first")
    for name, rows in TABLES.items():
        if options.table in (None, name):
            batch_size = options.batch_size or BATCH_SIZES[name]
            print(f"\n{name}, batch size {batch_size}\n", flush=True)
            print_table(rows, [*arguments, "--batch_size", str(batch_size)])


if __name__ == "__main__":
    main()
