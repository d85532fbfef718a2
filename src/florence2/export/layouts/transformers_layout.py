"""Export in transformers' own layout: `from_pretrained` of transformers loads it without code of this package."""

import copy
import json
from pathlib import Path

import torch
from transformers import Florence2ForConditionalGeneration

from florence2.export.comparison import LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.layouts.torch_logits import require_equal_weights, torch_logits

_USAGE = """
## Use

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("path/to/this/folder")
processor = AutoProcessor.from_pretrained("path/to/this/folder")
image = Image.open("image.jpg").convert("RGB")
inputs = processor(images=image, text={prompt}, return_tensors="pt").to(dtype=model.dtype)
ids = model.generate(**inputs, max_new_tokens=256)
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
```
"""


def write(source: ExportSource, folder: Path, dtype: str, max_shard_size: str) -> None:
    """Write weights, config, generation config, processor and tokenizer."""
    chosen = getattr(torch, dtype)
    model = source.model if chosen == torch.float32 else copy.deepcopy(source.model).to(chosen)
    model.config.dtype = chosen
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    source.processor.save_pretrained(folder)


def read_logits(source: ExportSource, folder: Path) -> LogitsFn:
    """Load an export by transformers alone."""
    model = Florence2ForConditionalGeneration.from_pretrained(folder, dtype="auto").eval()
    require_equal_weights(model, source)
    return torch_logits(model)


def usage(source: ExportSource, _: Path) -> str:
    """Return the section of the README that says how to load the export."""
    return _USAGE.format(prompt=json.dumps(source.task.prompt, ensure_ascii=False))
