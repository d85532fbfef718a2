"""The settings of a prediction run, resolved once: model, tasks, generation config, engine and run id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.config import GenerationSettings, InputSettings, OutputSettings, PredictSettings
from florence2.devices import is_8_bit
from florence2.distributed import launcher_rank
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import OptionError
from florence2.log import logger
from florence2.model.storage.checkpoint_files import ADAPTER_CONFIG, find_folder, read_json
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.model.tasks import OutputType, Task
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.create_engine import EngineSpec, ModelSource, parse_devices
from florence2.results.journal import make_run_id, weights_fingerprint
from florence2.settings_io import parse_options, setting_names, settings_to_dict

DEFAULT_TASK = "caption"


@dataclass(frozen=True)
class PredictSpec:
    """What a prediction run does: which tasks run on which images, by which engine, and where predictions go.

    `run_id` names everything that determines the predictions; what only affects speed is not part of it.
    """

    input: InputSettings
    output: OutputSettings
    pipeline: TaskPipeline
    engine: EngineSpec
    run_id: str

    @classmethod
    def resolve(cls, settings: PredictSettings) -> PredictSpec:
        """Parse all flags, and find the files of the model."""
        speed = settings.speed
        generation = parse_generation_config(settings.generation)
        model = ModelSource.resolve(
            settings.model.model_path, settings.hub, settings.compute.dtype, settings.model.base_model
        )
        config = EngineConfig(
            generation=generation,
            batch_size=speed.batch_size,
            num_workers=speed.num_workers,
            image_workers=speed.image_workers,
            full_decode=speed.full_decode,
            compile=speed.compile,
        )
        devices = parse_devices(settings.compute, speed.devices)
        return cls(
            settings.input,
            settings.output,
            _parse_pipeline(settings.input, model),
            EngineSpec(speed.engine, model, devices, config, launcher_rank()),
            _run_id(settings, generation, model),
        )

    def check_min_score(self, tasks: Sequence[Task], *, may_have_others: bool = False) -> None:
        """Refuse `--min_score` where all tasks answer text, or warn about it where rows may have tasks of their own."""
        if not self.engine.config.generation.min_score or any(
            task.output_type is not OutputType.TEXT for task in tasks
        ):
            return
        what = f"`--min_score` removes objects, and {' and '.join(f'`{task.name}`' for task in tasks)} answers text"
        if not may_have_others:
            raise OptionError(what, "remove `--min_score`")
        logger.warning(f"{what}: it applies only to rows with a task of their own that answers objects")


def parse_generation_config(settings: GenerationSettings) -> GenerationConfig:
    """Read the generation flags and `--generation_args`; unknown keys are refused by name."""
    values = settings_to_dict(settings)
    words = values.pop("generation_args")
    options = parse_options("--generation_args", words, setting_names(GenerationConfig))
    for name, value in options.items():
        if name in values:
            raise OptionError(f"`--generation_args {name}` has a flag of its own", f"pass `--{name}`")
        if not _is_valid_option(name, value):
            raise OptionError(f"`--generation_args {name}={value}` is not valid", "see `florence2 predict --help`")
    return GenerationConfig(**values, **options)


def _is_valid_option(name: str, value: Any) -> bool:
    """Return whether a parsed value has the type of its option."""
    if name == "early_stopping":
        return isinstance(value, bool) or value == "never"
    types = (int, float) if isinstance(getattr(GenerationConfig, name), float) else (int,)
    return isinstance(value, types) and not isinstance(value, bool)


def _parse_pipeline(settings: InputSettings, model: ModelSource) -> TaskPipeline:
    """Read the tasks: those of the flags, else the one that the model was fine-tuned on, else captions."""
    metadata = read_run_metadata(model.folder)
    default = metadata.task if metadata else DEFAULT_TASK
    return TaskPipeline.parse(settings.task or (default,), settings.task_input)


def _run_id(settings: PredictSettings, generation: GenerationConfig, model: ModelSource) -> str:
    flags, output = settings_to_dict(settings.generation), settings.output
    options = {
        name: value
        for name, value in settings_to_dict(generation).items()
        if name in flags or value != getattr(GenerationConfig, name)
    }
    fingerprint = weights_fingerprint(model.folder)
    # Speed alone decides between the floating-point dtypes; 8 bits are a coarser model.
    precision = (model.dtype,) if is_8_bit(model.dtype) else ()
    return make_run_id(
        str(model.folder),
        fingerprint,
        options,
        settings.speed.full_decode,
        output.prefix,
        output.suffix,
        *precision,
        *_base(model),
    )


def _base(model: ModelSource) -> tuple[object, ...]:
    """Return name, revision and weight files of the base of an adapter; nothing for other models.

    The commit of a base on the hub is not known without the network: it counts by its id and revision.
    """
    if not model.is_adapter:
        return ()
    config = read_json(model.folder / ADAPTER_CONFIG)
    own = config.get("base_model_name_or_path")
    name = str(model.base or own or "")
    folders = [path for path in (Path(name), model.folder / name) if name and path.is_dir()]
    files = weights_fingerprint(find_folder(str(folders[0]))) if folders else []
    return name, config.get("revision") if model.base in (None, own) else None, files
