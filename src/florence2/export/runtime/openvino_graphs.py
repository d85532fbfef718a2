"""The OpenVINO graphs of a folder, run on the CPU."""

from pathlib import Path

import numpy as np

from florence2.errors import MissingPackageError
from florence2.export.runtime.exported_model import Arrays
from florence2.export.runtime.precisions import graph_path
from florence2.system import switch_off_telemetry

OPENVINO_FOLDER = "openvino"
PARTS = ("vision_encoder", "embed_tokens", "encoder_model", "cross_attention", "decoder_model")
SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_int8"}


class OpenVINOGraphs:
    """Compiled graphs of one precision; `num_threads` 0 lets OpenVINO choose.

    Graphs in float32 are computed in float32. For the others OpenVINO chooses: bfloat16 where the CPU has it.
    """

    def __init__(self, folder: Path, dtype: str, *, num_threads: int = 0) -> None:
        require_openvino("loading this folder")
        import openvino

        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if dtype == "float32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if num_threads:
            options["INFERENCE_NUM_THREADS"] = num_threads
        core = openvino.Core()
        self._graphs, self._outputs = {}, {}
        for part in PARTS:
            path = graph_path(folder / OPENVINO_FOLDER, part, SUFFIXES[dtype], "xml")
            graph = core.read_model(path)
            # A compiled graph adds names of its own to those of the outputs, and retains their order.
            self._outputs[part] = [output.any_name for output in graph.outputs]
            self._graphs[part] = core.compile_model(graph, "CPU", options)
        decoder = self._graphs["decoder_model"]
        self._cache_shapes = {
            each.any_name: (each.partial_shape[1].get_length(), 0, each.partial_shape[3].get_length())
            for each in decoder.inputs
            if each.any_name.startswith("past") and ".decoder." in each.any_name
        }

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return the features (B, N, D) of pixels (B, 3, H, W)."""
        return self._run("vision_encoder", pixel_values=pixel_values)["image_features"]

    def embed_tokens(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the embeddings (B, N, D) of ids (B, N)."""
        return self._run("embed_tokens", input_ids=input_ids)["inputs_embeds"]

    def encode(self, inputs_embeds: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the encoder's states (B, N, D)."""
        return self._run("encoder_model", inputs_embeds=inputs_embeds, attention_mask=attention_mask)[
            "last_hidden_state"
        ]

    def decode(self, inputs_embeds: np.ndarray, states: np.ndarray, mask: np.ndarray, past: Arrays) -> Arrays:
        """Return `logits` and `present.*`; at the first step, with an empty `past`, the cross-attention's as well."""
        cross: Arrays = {}
        if not past:
            cross = self._run("cross_attention", encoder_hidden_states=states)
            past = {name.replace("present", "past_key_values"): value for name, value in cross.items()}
            for name, shape in self._cache_shapes.items():
                past[name] = np.zeros((len(inputs_embeds), *shape), np.float32)
        return cross | self._run("decoder_model", inputs_embeds=inputs_embeds, encoder_attention_mask=mask, **past)

    def _run(self, part: str, **inputs: np.ndarray) -> Arrays:
        return dict(zip(self._outputs[part], self._graphs[part](inputs).to_tuple(), strict=True))


def require_openvino(what: str) -> None:
    """Raise MissingPackageError where openvino, nncf or onnx is not installed."""
    switch_off_telemetry()
    try:
        import nncf  # noqa: F401
        import onnx  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        message = f"{what} needs the package {error.name}"
        raise MissingPackageError(message, "run `pip install 'florence2[openvino]'`") from None
