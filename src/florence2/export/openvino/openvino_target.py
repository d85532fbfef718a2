"""The target `openvino` of `florence2 export`."""

import json
from pathlib import Path

import torch
from transformers.utils.hub import convert_file_size_to_int

from florence2.errors import OptionError
from florence2.export.comparison import LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.runtime.graph_logits import graph_logits
from florence2.export.runtime.openvino_graphs import require_openvino


def write(source: ExportSource, folder: Path, dtype: torch.dtype | str, max_shard_size: str) -> None:
    """Write the graphs, and the files of transformers beside them; the weights of a graph are one file."""
    require_openvino("`--to openvino`")
    from florence2.export.openvino.write_openvino import write_openvino

    name = str(dtype).removeprefix("torch.")
    write_openvino(source.model, source.processor, folder, dtype=name, samples=source.samples)
    largest = max(folder.rglob("*.bin"), key=lambda path: path.stat().st_size)
    if largest.stat().st_size > convert_file_size_to_int(max_shard_size):
        what = f"OpenVINO's `{largest.name}` has {largest.stat().st_size / 1e6:,.1f} MB and cannot be split"
        raise OptionError(what, "pass a larger `--max_shard_size`, or none")


def read_logits(source: ExportSource, folder: Path) -> LogitsFn:
    """Compile the graphs."""
    return graph_logits(source, folder)


def usage(source: ExportSource, _: Path) -> str:
    """Return the section of the README that says how to load the export."""
    return _USAGE.replace("TASK", json.dumps(source.task.token, ensure_ascii=False))


_USAGE = """
## Use

`openvino/` has five graphs with dynamic batch and lengths: `vision_encoder`, `embed_tokens`, `encoder_model`,
`cross_attention` (the encoder's states to the keys and values of the decoder's cross-attention) and `decoder_model`.
With the search of transformers:

```python
import florence2

model, processor = florence2.load_exported("path/to/this/folder")
inputs = processor(text=TASK, images=image, return_tensors="pt")
ids = model.generate(**inputs, num_beams=3, max_new_tokens=256)
```
"""
