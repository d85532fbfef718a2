"""Every knob, on one page without torch.

A field is a flag of the command line, a key of a YAML file and a keyword of the Python functions, under one name;
its docstring is its help text and its value here is its only default. The groups are what `--help` shows.
"""

from dataclasses import dataclass, field
from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class DataSettings:
    """What to learn from."""

    dataset: tuple[str, ...]
    """Pictures with answers, from one place or several: a folder, JSONL, COCO, YOLO, tars, a hub id (docs/data.md)."""

    dataset_dir: str | None = None
    """Folder that the file names in a JSONL dataset are relative to (default: the folder of the file)."""

    sampling_weights: tuple[str, ...] = ()
    """How often samples are drawn, by task or dataset: `od=2 caption=0.5 more.jsonl=3` (default: once an epoch)."""

    streaming: bool = False
    """Read tars or a hub dataset as a stream, without listing it first (needs `--trainer_args max_steps=N`)."""

    val_dataset: str | None = None
    """What to measure on: a dataset like `--dataset`, or a fraction of it such as 0.1 (default: nothing)."""

    image_column: str | None = None
    """Column of a hub or saved dataset that holds the pictures (default: found by its type)."""

    text_column: str | None = None
    """Column of a hub or saved dataset that holds the captions (default: `text` or `caption`)."""

    recursive: bool = False
    """Look for pictures in the folders below, too."""

    caption_extension: str = ".txt"
    """Extension of the caption beside each picture; `.caption` is tried next."""

    on_missing: Literal["error", "skip"] = "error"
    """What to do about pictures that cannot be read or have no caption: stop before training, or leave them out."""

    task: str = "more_detailed_caption"
    """What the model is asked about each picture: a task by name, or any words (also `--prompt`)."""

    num_workers: int = 0
    """Processes that read pictures ahead of the model; 0 reads them in the main process."""


@dataclass(frozen=True)
class CaptionSettings:
    """How captions and pictures are varied from epoch to epoch."""

    shuffle_captions: bool = False
    """Shuffle the comma-separated parts of each caption."""

    frozen_parts: int = 0
    """Parts at the front of each caption that are neither shuffled nor dropped."""

    caption_dropout: float = 0.0
    """Probability with which each part of a caption is left out."""

    caption_args: tuple[str, ...] = ()
    """More of kohya's caption options, as key=value (`keep_tokens_separator`, `enable_wildcard`, ...)."""

    augment: tuple[str, ...] = ()
    """Pictures seen otherwise, boxes with them: `hflip=0.5 crop=0.3 scale=0.8,1.2 order=shuffle` (docs/training.md)."""

    max_length: int | None = None
    """Tokens of a caption that are learnt; longer ones are cut (default: as many as the model has positions for)."""

    preview: int = 0
    """Show what this many samples look like over three epochs, then stop."""


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and where it runs."""

    model_id: str = "microsoft/Florence-2-base-ft"
    """Hub id or folder, in Microsoft's layout or transformers', or `demo` for the bundled small model."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    offline: bool = False
    """Use only files that are on this machine."""

    device: str | None = None
    """`cuda`, `cuda:1`, `mps` or `cpu` (default: the best there is)."""

    dtype: DType = "auto"
    """Arithmetic: float32 on a CPU; on a GPU bfloat16 where it has it, else float16."""

    quantize: bool = False
    """Hold the model's matrices in 4 bits (nf4) and train LoRA on them; needs bitsandbytes."""

    freeze: Literal["none", "vision", "language"] = "none"
    """Leave the picture half or the language half of the model as it is."""

    model_dropout_args: tuple[str, ...] = ()
    """Dropout inside the model, as key=value: drop_path_rate, dropout, ... (default: as the checkpoint says)."""


@dataclass(frozen=True)
class LoraSettings:
    """What is trained."""

    rank: int = 4
    """LoRA rank; 0 trains all weights."""

    alpha: float = 4
    """LoRA scaling: updates are multiplied by alpha / rank."""

    dropout: float = 0.25
    """Dropout in front of each LoRA layer."""

    target_modules: tuple[str, ...] = ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")
    """Layers that get LoRA: names, one regular expression, `all-linear`, `vision` or `language`."""

    lora_args: tuple[str, ...] = ()
    """More of peft's `LoraConfig`, as key=value (`use_rslora=true`, `init_lora_weights=pissa`, ...)."""


@dataclass(frozen=True)
class TrainingSettings:
    """How it learns."""

    epochs: float = 5
    """Passes over the dataset."""

    batch_size: int = 1
    """Pictures per step and device."""

    gradient_accumulation_steps: int = 1
    """Batches added up into one step."""

    auto_batch: bool = False
    """Take steps of `--batch_size` x `--gradient_accumulation_steps` in the largest batches that fit into memory."""

    learning_rate: float = 1e-4
    """Highest learning rate."""

    optim: str = "adamw_torch_fused"
    """An optimizer of transformers or of the package pytorch-optimizer by name, or a class as `package.Class`."""

    optimizer_args: tuple[str, ...] = ()
    """Arguments of the optimizer, as key=value."""

    lr_scheduler_type: str = "warmup_stable_decay"
    """A learning rate schedule of transformers by name, or `onecycle`; by default the rate falls in the last fifth."""

    vision_learning_rate: float | None = None
    """Learning rate of the picture half of the model (default: that of the rest)."""

    lora_plus_ratio: float | None = None
    """LoRA+: how much faster the B matrices learn than the A matrices, such as 16."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    compile: bool = False
    """Compile the vision tower, and on a GPU the rest's layers; takes some minutes, and needs a C++ compiler."""

    seed: int = 42
    """Seed of everything random."""


@dataclass(frozen=True)
class SavingSettings:
    """What is kept, and shown."""

    output_dir: str
    """Folder for the adapter, its checkpoints and its records."""

    save_every_n_epochs: int | None = None
    """Write a checkpoint every so many epochs (default: every epoch, unless steps are given)."""

    save_every_n_steps: int | None = None
    """Write a checkpoint every so many steps."""

    sample_every_n_epochs: int | None = None
    """Caption the same few pictures every so many epochs, to watch the model learn."""

    sample_every_n_steps: int | None = None
    """Caption the same few pictures every so many steps."""

    eval_metrics: tuple[str, ...] = ()
    """Scores to measure beside the loss, as `florence2 evaluate` names them; the first, or `loss`, tells the best."""

    eval_samples: int = 100
    """Questions that are asked for `--eval_metrics`, at most; the loss is that of all."""

    early_stopping: int | None = None
    """Stop after so many measurements without a better one (default: never)."""

    resume: str = "never"
    """`auto` goes on from the newest checkpoint in `--output_dir`, if any; or the folder of a checkpoint."""

    log_with: str = "none"
    """`wandb`, `tensorboard`, `all`, `none`, or another integration of transformers by name."""

    trainer_args: tuple[str, ...] = ()
    """Anything else of transformers' `Seq2SeqTrainingArguments`, as key=value (`warmup_steps=10`, ...)."""


@dataclass(frozen=True)
class TrainSettings:
    """Fine-tune Florence-2 on your pictures: samples in, an adapter out."""

    data: DataSettings
    saving: SavingSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)


@dataclass(frozen=True)
class InputSettings:
    """What is asked, of which pictures."""

    input_path: str
    """A picture, a folder, a pattern such as `'photos/*.jpg'`, or a JSONL list."""

    task: tuple[str, ...] = ()
    """A task by name, several, a cascade such as od+region_to_category, or any words (also `--prompt`; default: what
    the model was fine-tuned with, else caption)."""

    task_input: str = ""
    """What the task is asked about: words, classes such as `cat, dog`, or a region as x1,y1,x2,y2 in pixels."""

    recursive: bool = False
    """Look for pictures in the folders below, too."""


@dataclass(frozen=True)
class OutputSettings:
    """Where the answers go."""

    output_path: str = "captions.jsonl"
    """JSON lines, one for each picture; a run that was interrupted goes on where it stopped."""

    sidecar: str | None = None
    """Also write each caption beside its picture, with this extension, such as .txt."""

    if_exists: Literal["skip", "overwrite", "append", "prepend"] = "skip"
    """What to do about a picture that has a sidecar already."""

    export: tuple[str, ...] = ()
    """Also write all answers as a dataset: jsonl, coco, yolo, folder or shards, each as FORMAT or FORMAT=FOLDER."""

    save_images: str | None = None
    """Also save each picture with its answer drawn on it, to this folder."""

    prefix: str = ""
    """Text put in front of every caption."""

    suffix: str = ""
    """Text put behind every caption."""


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is chosen, token by token."""

    max_length: int = 256
    """Tokens of a caption, at most."""

    num_beams: int = 1
    """Beams of the search; 1 takes the likeliest token each time."""

    do_sample: bool = False
    """Draw each token by its probability instead of taking the likeliest."""

    temperature: float = 1.0
    """Sampling: below 1 keeps closer to the likeliest words, above 1 strays."""

    top_p: float = 1.0
    """Sampling: draw from the likeliest tokens that make up this much probability."""

    top_k: int = 0
    """Sampling: draw from this many likeliest tokens; 0 is all of them."""

    no_repeat_ngram_size: int | None = None
    """Never repeat this many tokens in a row (default: as the checkpoint says for captions, 0 for anything else)."""

    seed: int = 0
    """Seed of the sampling; each picture draws from its own stream."""

    generation_args: tuple[str, ...] = ()
    """More of how answers are chosen, as key=value: length_penalty, early_stopping, min_length, repetition_penalty,
    num_return_sequences."""


@dataclass(frozen=True)
class WeightsSettings:
    """Which model answers, and where it runs."""

    model_path: str
    """Fine-tuned model: the `--output_dir` of a training, a checkpoint, an adapter, a hub id, or `demo`."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    offline: bool = False
    """Use only files that are on this machine."""

    device: str | None = None
    """`cuda`, `cuda:1`, `mps` or `cpu` (default: the best there is)."""

    dtype: DType = "auto"
    """Arithmetic: bfloat16 where a GPU or a CPU multiplies it itself; else float16 on a GPU, float32 on a CPU."""


@dataclass(frozen=True)
class SpeedSettings:
    """How fast it goes."""

    devices: str | None = None
    """Answer on several devices at once, a process on each: `0,1` are GPUs, `cpu,cpu` will do, too."""

    batch_size: int | None = None
    """Pictures answered at a time (default: as many as suit the device); no answer depends on it."""

    engine: Literal["continuous", "generate"] = "continuous"
    """`continuous` is continuous batching in slots; `generate` is transformers' `generate`."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vision tower: always, never, or when there are pictures enough to pay for it."""

    num_workers: int = 2
    """Threads that read pictures ahead of the model."""

    full_decode: bool = False
    """Decode JPEGs in full before they are made small: slower, and equal to transformers' pixels to the bit."""


@dataclass(frozen=True)
class PredictSettings:
    """Answer a task about every picture: pictures in, `captions.jsonl` out."""

    model: WeightsSettings
    input: InputSettings
    output: OutputSettings = field(default_factory=OutputSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)


@dataclass(frozen=True)
class DemoSettings:
    """Teach the bundled model a new caption style, offline, in about two minutes, and show what came of it."""

    output_dir: str = "florence2-demo"
    """Folder for the pictures, the adapter, the captions and the page."""

    make_dataset: str | None = None
    """Only write pictures to this folder, with a caption beside each and a JSONL for every task."""

    num_samples: int = 64
    """How many pictures `--make_dataset` writes."""

    style: str = "caption"
    """What the captions of `--make_dataset` say: caption, detailed_caption, more_detailed_caption or tags."""

    seed: int = 0
    """Seed of the pictures; another seed gives other pictures."""


@dataclass(frozen=True)
class ReferenceSettings:
    """What would have been right."""

    references: str
    """Pictures with right answers: anything that `--dataset` of `florence2 train` takes."""

    task: str | None = None
    """What references without a task of their own ask (default: what most predictions answer)."""

    dataset_dir: str | None = None
    """Folder that the file names in a JSONL of references are relative to (default: the folder of the file)."""

    recursive: bool = False
    """Look for pictures in the folders below, too."""

    image_column: str | None = None
    """Column of a hub or saved dataset that holds the pictures (default: found by its type)."""

    text_column: str | None = None
    """Column of a hub or saved dataset that holds the answers (default: `text` or `caption`)."""


@dataclass(frozen=True)
class MetricSettings:
    """How it is scored, and where the scores go."""

    text_metrics: Literal["auto", "caption", "ocr", "answer"] = "auto"
    """What answers in words are scored as (default: what the task is; a prompt of your own asks for a short answer)."""

    missing_predictions: Literal["wrong", "skip"] = "wrong"
    """What to do about questions without a prediction: count them as wrong answers, or leave them out."""

    meteor: bool = False
    """Also score captions by METEOR, which needs Java, 2 GB of memory and some seconds."""

    bootstrap_samples: int = 1000
    """How often pictures are drawn anew for the 95% intervals; 0 gives none."""

    output_path: str = "-"
    """File for the scores as JSON; `-` is standard output."""

    html: str | None = None
    """Also write a page with the table and the worst answers as pictures."""

    num_worst: int = 12
    """How many of the worst answers of each task are shown."""


@dataclass(frozen=True)
class PredictionSettings:
    """What was said: files of predictions, or a model that is asked first."""

    predictions: str | None = None
    """Predictions as `florence2 predict` writes them; with `--model_path`, where to write them."""

    compare: tuple[str, ...] = ()
    """Two files of predictions, A and B: how the scores change from A to B on the same pictures."""

    model_path: str | None = None
    """Ask this model first: as in `florence2 predict`."""

    device: str | None = None
    """`cuda`, `cuda:1`, `mps` or `cpu` (default: the best there is)."""

    dtype: DType = "auto"
    """Arithmetic: bfloat16 where a GPU or a CPU multiplies it itself; else float16 on a GPU, float32 on a CPU."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    offline: bool = False
    """Use only files that are on this machine."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Score predictions against right answers: a table, JSON and a page of the worst."""

    reference: ReferenceSettings
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    score: MetricSettings = field(default_factory=MetricSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)


@dataclass(frozen=True)
class DataCommandSettings:
    """Look at a dataset: `data check PATH`, `data preview PATH [PAGE]`, `data convert PATH FOLDER --to FORMAT`."""

    action: Literal["check", "preview", "convert"]
    """Name what is wrong, write a page with what will be learnt, or write it in another format."""

    dataset: str
    """Anything that `--dataset` of `florence2 train` takes."""

    output: str | None = None
    """`show`: the page (default: data.html); `convert`: the folder to write, which must be new or empty."""

    to: Literal["jsonl", "coco", "yolo", "folder", "shards"] = "jsonl"
    """What `convert` writes; `folder` is a caption beside each picture, `shards` are tars."""

    link_mode: Literal["link", "copy"] = "link"
    """How `convert` brings the pictures along; what cannot be linked is copied, nothing is ever moved."""

    task: str = DataSettings.task
    """What is asked where the dataset does not say; lists of objects take any task that asks for objects."""

    dataset_dir: str | None = None
    """Folder that the file names in a list are relative to (default: found beside the list)."""

    recursive: bool = False
    """Look for pictures in the folders below, too."""

    image_column: str | None = None
    """Column of a table or dataset that holds the pictures (default: found)."""

    text_column: str | None = None
    """Column of a table or dataset that holds the answers (default: `text` or `caption`)."""

    model_id: str | None = None
    """`check`: the model whose tokenizer counts how long answers are (default: only what is surely too long)."""

    offline: bool = False
    """Use only files that are on this machine."""

    json: bool = False
    """`check`: write everything as one JSON object."""

    num_samples: int = 32
    """How many answers `show` puts on the page, drawn at random."""

    seed: int = 0
    """Seed of that draw."""
