"""Every flag, on one page without torch.

A field is a flag of the command line, a key of a YAML file and a keyword of the Python functions, under one name. Its
docstring is its help text and its value here is its only default. A class is a group of `--help`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Annotated, Literal

from florence2.settings_io import Bounds

# What Python may pass in place of a text, or of a tuple of texts.
PathText = Annotated[str, PathLike]
Paths = Annotated[tuple[str, ...], PathLike]
Pairs = Annotated[tuple[str, ...], Mapping]  # `key=value`
Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
Port = Annotated[int, Bounds(0, 65535)]
Positive = Annotated[float, Bounds(0, includes_low=False)]
PositiveOrZero = Annotated[float, Bounds(0)]
Probability = Annotated[float, Bounds(0, 1)]
DType = Literal["auto", "float32", "bfloat16", "float16"]
InferenceDType = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
DEFAULT_TASK = "more_detailed_caption"  # of a dataset that names none
DEFAULT_MAX_LENGTH = 256  # of a prediction, in tokens
ImageWorkers = Literal["processes", "threads"]
DEFAULT_NUM_WORKERS = 2  # images that are opened at a time for predictions
DEFAULT_IMAGE_WORKERS: ImageWorkers = "processes"
DEFAULT_TARGET_MODULES = ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class SourceSettings:
    """Where the images and texts of a dataset are found."""

    dataset_dir: PathText | None = None
    """Folder that the file names in a dataset file are relative to (default: the folder of the file)."""

    recursive: bool = False
    """Read the images in subfolders, too."""

    image_column: str | None = None
    """Column of a table or hub dataset that holds the images (default: found by its type)."""

    text_column: str | None = None
    """Column of a table or hub dataset that holds the texts (default: `text` or `caption`)."""


@dataclass(frozen=True)
class HubSettings:
    """Access to the Hugging Face Hub."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    offline: bool = False
    """Use only files that are on this machine."""


@dataclass(frozen=True)
class DeviceSettings:
    """Where the model runs."""

    device: str | None = None
    """`cuda`, `cuda:1`, `mps` or `cpu` (default: the best available)."""


@dataclass(frozen=True)
class ComputeSettings(DeviceSettings):
    """Where the model is trained, and in which precision."""

    dtype: DType = "auto"
    """Precision. `auto` is bfloat16 on a GPU that supports it, else float16; on a CPU that supports it natively it is
    bfloat16 for prediction, and for training from 100 million parameters on; else float32."""


@dataclass(frozen=True)
class InferenceSettings(DeviceSettings):
    """Where the model predicts, and in which precision."""

    dtype: InferenceDType = "auto"
    """Precision. `auto` is bfloat16 on a device that supports it, else float16 on a GPU and float32 on a CPU; `int8`
    is faster on a CPU with AVX-512 VNNI, `fp8` is for GPUs from compute capability 8.9 on."""


@dataclass(frozen=True)
class DataSettings:
    """What the model is trained and validated on."""

    dataset: Paths
    """Images with annotations, from one or more sources: a folder, JSONL, COCO, YOLO, tar shards or a hub id
    (docs/data.md)."""

    sampling_weights: Pairs = ()
    """How often an epoch draws each sample, by task or dataset: `od=2 caption=0.5 more.jsonl=3` (default: once)."""

    streaming: bool = False
    """Read tar shards or a hub dataset as a stream, without listing it first; needs `--trainer_args max_steps=N`."""

    val_dataset: PathText | None = None
    """Validation set: a dataset like `--dataset`, or a fraction of it such as 0.1 (default: none)."""

    caption_extension: str = ".txt"
    """Extension of the caption file beside each image; `.caption` is tried next."""

    on_missing: Literal["error", "skip"] = "error"
    """How to handle images that cannot be read or have no caption: stop before training, or skip them. Header and end
    of each image are read; one that turns out damaged later is named, and the next sample replaces it."""

    task: str = DEFAULT_TASK
    """Task of the samples that name none: a task by name, or a prompt of your own (also `--prompt`)."""

    num_workers: CountOrZero = 0
    """Number of processes that load images; 0 loads them in the main process."""


@dataclass(frozen=True)
class CaptionSettings:
    """How captions and images are augmented."""

    shuffle_captions: bool = False
    """Shuffle the comma-separated parts of each caption."""

    frozen_parts: CountOrZero = 0
    """Number of parts at the start of a caption that are neither shuffled nor dropped (kohya's `keep_tokens`)."""

    caption_dropout: Probability = 0.0
    """Probability of dropping each part of a caption (kohya's `caption_tag_dropout_rate`)."""

    caption_args: Pairs = ()
    """More caption options of kohya's sd-scripts, as key=value (`keep_tokens_separator`, `enable_wildcard`, ...)."""

    augment: Pairs = ()
    """Image augmentation, which transforms boxes, too: `hflip=0.5 crop=0.3 scale=0.8,1.2 order=shuffle`
    (docs/training.md)."""

    max_length: Count | None = None
    """Maximum number of tokens of a target; longer ones are truncated (default: the model's number of positions)."""

    preview: CountOrZero = 0
    """Print this many samples as three epochs augment them, then exit."""


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained."""

    model_id: PathText = "microsoft/Florence-2-base-ft"
    """Hub id, folder in the layout of Microsoft or of transformers, or `demo` for the bundled small model."""

    quantize: bool = False
    """Load the base model in 4 bits (nf4) and train LoRA on it; needs bitsandbytes."""

    freeze: Literal["none", "vision", "language"] = "none"
    """Freeze the vision component or the language component of the model."""

    model_dropout_args: Pairs = ()
    """Dropout rates of the model, as key=value: drop_path_rate, dropout, ... (default: those of the checkpoint)."""


@dataclass(frozen=True)
class LoraSettings:
    """Which weights are trained."""

    rank: CountOrZero = 4
    """LoRA rank; 0 trains all weights."""

    alpha: Positive = 4
    """LoRA scaling: updates are multiplied by alpha / rank."""

    dropout: Probability = 0.25
    """Dropout before each LoRA layer."""

    target_modules: tuple[str, ...] = DEFAULT_TARGET_MODULES
    """Layers that get LoRA: names, one regular expression, `all-linear`, `vision` or `language`."""

    lora_args: Pairs = ()
    """More fields of peft's `LoraConfig`, as key=value (`use_rslora=true`, `init_lora_weights=pissa`, ...)."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the weights are optimized."""

    epochs: Positive = 5
    """Number of passes over the dataset."""

    batch_size: Count = 1
    """Number of samples per batch and device."""

    gradient_accumulation_steps: Count = 1
    """Number of batches whose gradients are summed in one step."""

    auto_batch: bool = False
    """Use the largest batches that fit into memory for steps of `--batch_size` x `--gradient_accumulation_steps`."""

    learning_rate: PositiveOrZero = 1e-4
    """Peak learning rate."""

    optim: str = "adamw_torch_fused"
    """Optimizer: a name of transformers or of the package pytorch-optimizer, or a class as `package.Class`."""

    optimizer_args: Pairs = ()
    """Arguments of the optimizer, as key=value."""

    lr_scheduler_type: str = "warmup_stable_decay"
    """Learning rate schedule: a name of transformers, or `onecycle`; the default decays over the last fifth."""

    vision_learning_rate: PositiveOrZero | None = None
    """Peak learning rate of the vision component (default: `--learning_rate`)."""

    lora_plus_ratio: Positive | None = None
    """LoRA+: ratio of the learning rates of the B and A matrices, such as 16 (default: 1)."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    compile: bool = False
    """Compile the vision tower, and on a GPU the other layers, too: takes minutes and needs a C++ compiler."""

    seed: int = 42
    """Seed of all random numbers."""


@dataclass(frozen=True)
class SavingSettings:
    """What is saved, evaluated and logged."""

    output_dir: PathText
    """Folder for the adapter, the checkpoints and the logs."""

    save_every_n_epochs: Count | None = None
    """Save a checkpoint every N epochs (default: every epoch, unless `--save_every_n_steps` is set)."""

    save_every_n_steps: Count | None = None
    """Save a checkpoint every N steps."""

    sample_every_n_epochs: Count | None = None
    """Predict the same few images every N epochs, to follow the training."""

    sample_every_n_steps: Count | None = None
    """Predict the same few images every N steps, to follow the training."""

    eval_metrics: tuple[str, ...] = ()
    """Metrics to compute beside the loss, as `florence2 evaluate` names them; the first, or `loss`, selects the best
    checkpoint."""

    eval_samples: Count = 100
    """Maximum number of samples for `--eval_metrics`; the loss is computed on the whole validation set."""

    early_stopping: Count | None = None
    """Stop after N evaluations without an improvement (default: never)."""

    resume: PathText = "never"
    """`auto` resumes from the newest checkpoint in `--output_dir`, if there is one; or pass a checkpoint folder."""

    log_with: str = "none"
    """`wandb`, `tensorboard`, `all`, `none`, or another integration of transformers by name."""

    trainer_args: Pairs = ()
    """More of transformers' `Seq2SeqTrainingArguments`, as key=value (`warmup_steps=10`, ...)."""


@dataclass(frozen=True)
class TrainSettings:
    """Fine-tune Florence-2 on your images: samples in, an adapter out."""

    data: DataSettings
    saving: SavingSettings
    source: SourceSettings = field(default_factory=SourceSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)


@dataclass(frozen=True)
class InputSettings:
    """Which images are predicted, for which tasks."""

    input_path: PathText
    """An image, a folder, tars, Parquet, JSONL, or a pattern such as `'photos/*.jpg'` or `'{00..39}.tar'`; local, at
    s3://, gs://, hf:// or http(s)://, or a dataset on the hub."""

    task: tuple[str, ...] = ()
    """A task by name, several tasks, a cascade such as od+region_to_category, or a prompt of your own (also
    `--prompt`; default: the task that the model was fine-tuned on, else caption)."""

    task_input: str = ""
    """Input of the task: text, classes such as `cat, dog`, or a region as x1,y1,x2,y2 in pixels."""

    recursive: bool = False
    """Read the images in subfolders, too."""


@dataclass(frozen=True)
class OutputSettings:
    """Where the predictions are written."""

    output_path: PathText = "captions.jsonl"
    """JSON lines, one per prediction, or a .parquet file; a name that ends in `/` is a folder with a file for each
    shard of the input (of Parquet where it ends in `.parquet/`); local or in a store. An interrupted run resumes."""

    overwrite_output: bool = False
    """Predict all images again, and replace the predictions of this run in `--output_path`."""

    sidecar: str | None = None
    """Write each caption to a file beside its image, too, with this extension, such as .txt."""

    if_exists: Literal["skip", "overwrite", "append", "prepend"] = "skip"
    """How to handle an image that already has a sidecar: skip the image, or change the caption in the sidecar."""

    export: Pairs = ()
    """Export all predictions as a dataset, too: jsonl, coco, yolo, folder or shards, each as FORMAT or
    FORMAT=FOLDER."""

    save_images: PathText | None = None
    """Save each image with its prediction drawn on it to this folder, too."""

    prefix: str = ""
    """Text before every caption."""

    suffix: str = ""
    """Text after every caption."""


@dataclass(frozen=True)
class GenerationSettings:
    """How the tokens of a prediction are generated."""

    max_length: Count = DEFAULT_MAX_LENGTH
    """Maximum number of tokens of a prediction."""

    num_beams: Count = 1
    """Number of beams; 1 is greedy search, or sampling with `--do_sample`."""

    do_sample: bool = False
    """Sample each token by its probability instead of taking the most likely one."""

    temperature: Positive = 1.0
    """Sampling temperature: below 1 favours likely tokens, above 1 unlikely ones."""

    top_p: Annotated[float, Bounds(0, 1, includes_low=False)] = 1.0
    """Sample from the most likely tokens that make up this much probability."""

    top_k: CountOrZero = 0
    """Sample from this many of the most likely tokens; 0 is all of them."""

    seed: int = 0
    """Seed of the sampling; each sample has a random stream of its own."""

    min_score: Probability = 0.0
    """Remove objects whose score is below this from the text, the answer and all that is made of them."""

    generation_args: Pairs = ()
    """More generation options, as key=value: length_penalty, early_stopping, min_length, repetition_penalty,
    no_repeat_ngram_size (default: as the checkpoint says for captions, 0 for other tasks), num_return_sequences."""


@dataclass(frozen=True)
class WeightsSettings:
    """Which model predicts."""

    model_path: PathText
    """Fine-tuned model: the `--output_dir` of a training, a checkpoint, an adapter, a hub id, or `demo`."""

    base_model: PathText | None = None
    """Base of the adapter, a folder or a hub id (default: the one that its `adapter_config.json` names)."""


@dataclass(frozen=True)
class SpeedSettings:
    """How the work is batched and parallelized."""

    devices: str | None = None
    """Predict on several devices at once, one process each: `0,1` are GPUs; `cpu,cpu` works, too."""

    batch_size: Count | None = None
    """Number of samples predicted at a time (default: chosen for the device); predictions do not depend on it."""

    engine: Literal["continuous", "generate"] = "continuous"
    """`continuous` is continuous batching; `generate` is transformers' `generate`."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vision tower in the background: always, never, or on a GPU with enough images to repay it."""

    num_workers: CountOrZero = DEFAULT_NUM_WORKERS
    """Number of images that are loaded at a time, each by a worker."""

    image_workers: ImageWorkers = DEFAULT_IMAGE_WORKERS
    """What decodes images: `processes`, so that an image that crashes its decoder or takes too much memory is an error
    of its own; or `threads`."""

    full_decode: bool = False
    """Decode JPEGs at full size before they are resized: slower, but pixels equal those of transformers to the bit."""


@dataclass(frozen=True)
class ClusterSettings:
    """Prediction on many machines (`pip install "florence2[cluster]"`)."""

    cluster: str | None = None
    """Predict on a Ray cluster: its address, or `auto` for the one of this machine, which is started if absent."""

    max_in_flight: Count | None = None
    """Largest number of images that an engine of the cluster has at a time (default: 1024 with a GPU, else 64)."""


@dataclass(frozen=True)
class PredictSettings:
    """Run a task on every image: images in, `captions.jsonl` out."""

    model: WeightsSettings
    input: InputSettings
    output: OutputSettings = field(default_factory=OutputSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    compute: InferenceSettings = field(default_factory=InferenceSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)


@dataclass(frozen=True)
class StatusSettings:
    """Say how far a prediction is: numbers of shards and lines of its output, as JSON."""

    status: PathText
    """The `--output_path` of the run, a file or a folder that ends in `/`; local or in a store."""


@dataclass(frozen=True)
class DemoSettings:
    """Fine-tune the bundled model on a new caption style, offline, in about two minutes, and show the result."""

    output_dir: PathText = "florence2-demo"
    """Folder for the images, the adapter, the captions and the HTML page."""

    make_dataset: PathText | None = None
    """Only write images to this folder, with a caption beside each and a JSONL file for every task."""

    num_samples: Count = 64
    """Number of images that `--make_dataset` writes."""

    style: str = "caption"
    """Caption style of `--make_dataset`: caption, detailed_caption, more_detailed_caption or tags."""

    seed: int = 0
    """Seed of the images."""


@dataclass(frozen=True)
class ReferenceSettings:
    """What the predictions are compared to."""

    references: PathText
    """Images with reference answers: anything that `--dataset` of `florence2 train` accepts."""

    task: str | None = None
    """Task of the references that name none (default: the most common task of the predictions)."""


@dataclass(frozen=True)
class MetricSettings:
    """How the predictions are scored, and where the scores are written."""

    text_metrics: Literal["auto", "caption", "ocr", "answer"] = "auto"
    """Score text predictions as captions, as OCR or as short answers (default: by task; the predictions of a prompt
    of your own are short answers)."""

    missing_predictions: Literal["wrong", "skip"] = "wrong"
    """How to handle references without a prediction: count them as wrong, or skip them."""

    meteor: bool = False
    """Compute METEOR for captions, too, which needs Java, 2 GB of memory and some seconds."""

    bootstrap_samples: CountOrZero = 1000
    """Number of bootstrap resamples for the 95% confidence intervals; 0 computes no intervals."""

    output_path: PathText = "-"
    """JSON file for the scores; `-` is standard output."""

    html: PathText | None = None
    """Write an HTML page with the scores and the worst predictions to this file, too."""

    num_worst: CountOrZero = 12
    """Number of the worst predictions to show for each task."""


@dataclass(frozen=True)
class PredictionSettings:
    """What is scored: files of predictions, or a model that predicts first."""

    predictions: PathText | None = None
    """Predictions as `florence2 predict` writes them; with `--model_path`, the file to write them to."""

    compare: Paths = ()
    """Two files of predictions, A and B: score the differences from A to B on the same images."""

    model_path: PathText | None = None
    """Predict with this model first: as in `florence2 predict`."""

    base_model: PathText | None = None
    """Base of the adapter that predicts (default: the one that its `adapter_config.json` names)."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Score predictions against reference answers: a table, JSON and a page of the worst predictions."""

    reference: ReferenceSettings
    source: SourceSettings = field(default_factory=SourceSettings)
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    score: MetricSettings = field(default_factory=MetricSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    compute: InferenceSettings = field(default_factory=InferenceSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)


@dataclass(frozen=True)
class InspectedSettings:
    """Which dataset is read."""

    dataset: PathText
    """Anything that `--dataset` of `florence2 train` accepts."""

    task: str = DEFAULT_TASK
    """Task of the rows that name none; lists of objects accept every task that detects objects."""

    offline: bool = False
    """Use only files that are on this machine."""


@dataclass(frozen=True)
class CheckSettings:
    """Count the samples of a dataset and list its errors: `florence2 data check PATH`."""

    data: InspectedSettings
    source: SourceSettings = field(default_factory=SourceSettings)

    model_id: PathText | None = None
    """Model whose tokenizer counts the tokens of each target (default: report only targets that no tokenizer fits)."""

    json: bool = False
    """Print the report as one JSON object."""


@dataclass(frozen=True)
class PreviewSettings:
    """Write an HTML page with images and their targets: `florence2 data preview PATH [PAGE]`."""

    data: InspectedSettings
    source: SourceSettings = field(default_factory=SourceSettings)

    output: PathText = "data.html"
    """HTML page to write."""

    num_samples: Count = 32
    """Number of samples on the page, chosen at random."""

    seed: int = 0
    """Seed of that choice."""


@dataclass(frozen=True)
class ConvertSettings:
    """Write a dataset in another format: `florence2 data convert PATH FOLDER --to FORMAT`."""

    data: InspectedSettings

    output: PathText
    """Folder to write, which must be new or empty."""

    source: SourceSettings = field(default_factory=SourceSettings)

    to: Literal["jsonl", "coco", "yolo", "folder", "shards"] = "jsonl"
    """Format to write: `folder` puts a caption file beside each image, `shards` are tar files."""

    link_mode: Literal["link", "copy"] = "link"
    """How to add the images: as hard links, or as copies; an image that cannot be linked is copied."""

    min_score: Probability = 0.0
    """Leave out predicted objects whose score is below this; for predictions of `florence2 predict`."""


@dataclass(frozen=True)
class DoctorSettings:
    """Report what this machine offers, what is missing, and whether a model or dataset is sound."""

    path: PathText | None = None
    """A checkpoint, an adapter, a hub id in the cache, `demo`, or a dataset: `florence2 doctor PATH`."""

    json: bool = False
    """Print the report as one JSON object."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    base_model: PathText | None = None
    """Base of the adapter, a folder or a hub id (default: the one that its `adapter_config.json` names)."""

    against_published: bool = False
    """Compare the model with what is published about it: file sizes, hashes and answers in float32. Downloads it."""

    images: PathText | None = None
    """With `--against_published`: folder with the images of the published examples, such as car.jpg."""

    fetch_images: bool = False
    """With `--against_published`: download those images."""

    expected: PathText | None = None
    """With `--against_published`: JSON file with the published facts (default: those in the package)."""


@dataclass(frozen=True)
class ExportSettings:
    """Write a model in the layout of another program: `florence2 export --model_path RUN --to TARGET`."""

    model: WeightsSettings

    output_path: PathText
    """Folder to write; it appears once it is complete."""

    to: Literal["transformers", "microsoft", "adapter-microsoft", "onnx", "openvino"] = "transformers"
    """Target: the layout of transformers' own class; Microsoft's, which ComfyUI, taggui and others read; an adapter
    with Microsoft's module names; ONNX graphs for transformers.js and onnxruntime; OpenVINO's graphs
    (docs/export.md)."""

    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "q4"] = "auto"
    """Precision of the weights; `auto` is the smallest that holds each of them exactly, and float32 for graphs. `int8`
    and `q4` (4 bits) are for graphs only."""

    max_shard_size: str = "5GB"
    """Maximum size of one file of weights."""

    overwrite: bool = False
    """Replace an older export in `--output_path`; other folders with content are never replaced."""

    images: PathText | None = None
    """Images on which the export is compared with the model: an image, a folder or a pattern, of which three are
    taken (default: three images of this package). OpenVINO's `int8` is calibrated on the first 64 of them."""

    push_to_hub: str | None = None
    """Upload the export to this repository of the Hugging Face Hub."""

    hub: HubSettings = field(default_factory=HubSettings)


@dataclass(frozen=True)
class ServedModelSettings:
    """Which models are served."""

    model_path: PathText
    """Model of requests that name none: an `--output_dir`, a checkpoint, an adapter, a hub id, or `demo`."""

    adapter: tuple[str, ...] = ()
    """More models, as NAME=PATH; they use the memory of `--model_path` for all weights that are equal."""

    base_model: PathText | None = None
    """Base of every adapter, a folder or a hub id (default: the one that its `adapter_config.json` names)."""


@dataclass(frozen=True)
class AddressSettings:
    """Where the server listens, and who may use it; the environment variable `FLORENCE2_API_KEY` is its key."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach is refused without a key."""

    port: Port = 8000
    """Port to listen on; 0 chooses a free one."""

    allowed_hosts: tuple[str, ...] = ()
    """Names under which a proxy or DNS reaches this server, `Host` in HTTP; `*` is all (default: without a key
    `localhost` and loopback addresses, with a key all)."""

    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the server (CORS), such as `http://localhost:3000`; `*` is all (default: its
    own page only)."""

    allowed_media_domains: tuple[str, ...] = ()
    """Hosts from which images are fetched by URL (default: none)."""


@dataclass(frozen=True)
class RequestLimitSettings:
    """What one request may cost, and how many are in work."""

    max_request_mb: Count = 32
    """Maximum size of a request in MiB."""

    max_image_pixels: Count = 100_000_000
    """Maximum number of pixels of an image."""

    max_images: Count = 16
    """Maximum number of images in a request."""

    max_predictions: Count = 256
    """Maximum number of predictions of a request, with those of its cascades."""

    max_queue: Count = 256
    """Number of requests in work; further ones get status 503."""

    image_timeout: Positive = 10.0
    """Seconds of processor time in which an image must be decoded."""

    request_timeout: Positive = 120.0
    """Seconds in which a request must arrive, and then be answered."""

    max_length: Count = 256
    """Maximum number of tokens of a prediction."""

    num_beams: Count = 1
    """Number of beams of requests that name none; no request may have more."""

    batch_size: Count | None = None
    """Number of samples predicted at a time by each model (default: chosen for the device)."""


@dataclass(frozen=True)
class ServeSettings:
    """Serve models over HTTP, in the protocols of OpenAI, Ollama and this project."""

    model: ServedModelSettings
    address: AddressSettings = field(default_factory=AddressSettings)
    limits: RequestLimitSettings = field(default_factory=RequestLimitSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    compute: InferenceSettings = field(default_factory=InferenceSettings)


@dataclass(frozen=True)
class ReviewSettings:
    """Correct captions and boxes in a browser: `florence2 review FOLDER_OR_TABLE`."""

    dataset: PathText
    """Folder of images with caption files or a table, or a JSONL or CSV such as `captions.jsonl`; it is changed in
    place."""

    port: Port = 8001
    """Port of this machine's loopback to listen on; 0 chooses a free one."""

    task: str = DEFAULT_TASK
    """Task of the rows that name none, and of caption files."""

    recursive: bool = False
    """Read caption files in subfolders, too."""

    caption_extension: str = ".txt"
    """Extension of caption files."""

    model_path: PathText | None = None
    """Model that can predict an image again on the page (default: none is loaded)."""

    hub: HubSettings = field(default_factory=HubSettings)
    compute: InferenceSettings = field(default_factory=InferenceSettings)


@dataclass(frozen=True)
class McpSettings:
    """Offer a model to an MCP client over stdin and stdout: tools that caption, detect, read text and ground."""

    model: WeightsSettings

    root: Paths = (".",)
    """Folders that the client may read images from; nothing outside of them is opened."""

    max_length: Count = 256
    """Maximum number of tokens of an answer."""

    num_beams: Count = 1
    """Number of beams; 1 is greedy search."""

    hub: HubSettings = field(default_factory=HubSettings)
    compute: InferenceSettings = field(default_factory=InferenceSettings)
