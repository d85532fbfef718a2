"""The JSON files beside the graphs, with what transformers.js reads in them; transformers reads the same folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2.files import to_json

# The names that transformers.js has for a precision.
WEB_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8", "q4": "q4"}
_TASK_TABLES = ("tasks_answer_post_processing_type", "task_prompts_without_inputs", "task_prompts_with_input")


def write_web_files(model: Any, processor: Any, folder: Path, dtype: str, num_data_files: Mapping[str, int]) -> None:
    """Write config, generation config, processor and tokenizer.

    `num_data_files` counts the files with external weights of each graph that has any.
    """
    config = model.config.to_dict() | {"dtype": "float32", "is_encoder_decoder": True}
    options: dict[str, Any] = {"dtype": WEB_DTYPES[dtype]}
    if num_data_files:
        options["use_external_data_format"] = dict(num_data_files)
    config["transformers.js_config"] = options
    (folder / "config.json").write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    images = json.loads(to_json(processor.image_processor.to_dict()))
    images |= {"processor_class": "Florence2Processor", "image_processor_type": "CLIPImageProcessor"}
    images |= {name: getattr(processor, name) for name in _TASK_TABLES}
    (folder / "preprocessor_config.json").write_text(to_json(images, indent=2) + "\n", encoding="utf-8")
