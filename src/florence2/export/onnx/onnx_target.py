"""The target `onnx` of `florence2 export`."""

import json
from pathlib import Path

import torch
from transformers.utils.hub import convert_file_size_to_int

from florence2.export.comparison import LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.runtime.graph_logits import graph_logits
from florence2.export.runtime.onnx_graphs import require_onnx


def write(source: ExportSource, folder: Path, dtype: torch.dtype | str, max_shard_size: str) -> None:
    """Write the graphs, and the files that transformers.js reads beside them."""
    require_onnx("`--to onnx`")
    from florence2.export.onnx.write_onnx import MAX_FILE_BYTES, write_onnx

    limit = min(convert_file_size_to_int(max_shard_size), MAX_FILE_BYTES)
    name = str(dtype).removeprefix("torch.")
    write_onnx(source.model, source.processor, folder, dtype=name, max_file_bytes=limit)


def read_logits(source: ExportSource, folder: Path) -> LogitsFn:
    """Load the graphs in onnxruntime."""
    return graph_logits(source, folder)


def usage(source: ExportSource, _: Path) -> str:
    """Return the section of the README that says how to load the export in JavaScript and in Python."""
    return _USAGE.replace("TASK", json.dumps(source.task.token, ensure_ascii=False))


_USAGE = """
## Use

`onnx/` has four graphs in the layout of transformers.js. In Node or a browser:

```js
import { AutoProcessor, Florence2ForConditionalGeneration, RawImage } from '@huggingface/transformers';

const model = await Florence2ForConditionalGeneration.from_pretrained(id);
const processor = await AutoProcessor.from_pretrained(id);
const image = await RawImage.read('image.jpg');
const inputs = await processor(image, processor.construct_prompts(TASK));
const ids = await model.generate({ ...inputs, num_beams: 1, max_new_tokens: 256 });
const [text] = processor.batch_decode(ids, { skip_special_tokens: false });
console.log(processor.post_process_generation(text, TASK, image.size));
```

`id` is the name of this folder below `env.localModelPath`, or of the repository. transformers.js has no beam search.
For tasks with boxes pass `no_repeat_ngram_size: 0` to `generate`, because boxes repeat themselves.

In Python, with onnxruntime and the search of transformers:

```python
import florence2

model, processor = florence2.load_exported("path/to/this/folder")
inputs = processor(text=TASK, images=image, return_tensors="pt")
ids = model.generate(**inputs, num_beams=3, max_new_tokens=256)
```
"""
