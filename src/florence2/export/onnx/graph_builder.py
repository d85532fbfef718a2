"""A builder of ONNX graphs: one method for each operation that Florence-2 has.

Tensors that enter a graph as weights are initializers of the outermost graph, stored once by name, so that both
branches of an `If` use the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from florence2.errors import UserError

OPSET = 20  # the first with Gelu; onnxruntime 1.17 and later, and OpenVINO, read it
IR_VERSION = 9
PRODUCER = "florence2"
_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
Shape = Sequence[int | str]


class GraphBuilder:
    """One graph under construction; a value is the name of a tensor in it.

    `prefix` begins the names of its values. A `parent` is the graph around a branch of an `If`; weights go there.
    Weights have the dtype `dtype`, float32 or float16.
    """

    def __init__(self, dtype: torch.dtype, *, prefix: str = "", parent: GraphBuilder | None = None) -> None:
        self.dtype = dtype
        self.prefix = prefix
        self.parent = parent
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._count = 0

    @property
    def float_type(self) -> int:
        """The ONNX element type of weights and of values between operations."""
        return TensorProto.FLOAT16 if self.dtype == torch.float16 else TensorProto.FLOAT

    @property
    def lowest(self) -> float:
        """The most negative finite number, which masks an attention weight."""
        return float(torch.finfo(self.dtype).min)

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.add_many(op, *inputs, outputs=[output or self._new_name(op)], **attributes)[0]

    def add_many(self, op: str, *inputs: str, outputs: Sequence[str] | int, **attributes: Any) -> list[str]:
        """Append a node with these outputs, or with so many, and return their names."""
        names = [self._new_name(op) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._count += 1
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=f"{self.prefix}node_{self._count}", **attributes)
        )
        return names

    def weight(self, name: str, tensor: Tensor) -> str:
        """Store a weight under its name and return the name."""
        return self._store(name, tensor.detach().cpu().to(self.dtype).contiguous().numpy())

    def ints(self, *values: int) -> str:
        """Return a constant vector of integers."""
        return self._store("ints_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """Return a constant scalar of the graph's dtype."""
        kind = np.float16 if self.dtype == torch.float16 else np.float32
        return self._store(f"number_{value!r}", np.array(value, dtype=kind))

    def integer(self, value: int) -> str:
        """Return a constant integer scalar."""
        return self._store(f"integer_{value}", np.array(value, dtype=np.int64))

    def cast_in(self, value: str) -> str:
        """Convert a float32 input of the graph to the dtype of its weights."""
        return value if self.dtype == torch.float32 else self.add("Cast", value, to=self.float_type)

    def cast_out(self, value: str, output: str) -> str:
        """Convert a value to a float32 output of the graph."""
        if self.dtype == torch.float32:
            return self.add("Identity", value, output=output)
        return self.add("Cast", value, to=TensorProto.FLOAT, output=output)

    def linear(self, value: str, layer: nn.Linear, name: str, scale: float | Tensor = 1.0) -> str:
        """Multiply by a layer's weight, transposed once here, and add its bias.

        Both are multiplied by `scale` first, a number or one for each output.
        """
        product = self.add("MatMul", value, self.weight(f"{name}.weight", layer.weight.float().T * scale))
        bias: Tensor | None = layer.bias
        if bias is None:
            return product
        return self.add("Add", product, self.weight(f"{name}.bias", bias.float() * scale))

    def layer_norm(self, value: str, layer: nn.LayerNorm, name: str) -> str:
        """Normalize the last axis."""
        weights = (self.weight(f"{name}.weight", layer.weight), self.weight(f"{name}.bias", layer.bias))
        return self.add("LayerNormalization", value, *weights, axis=-1, epsilon=layer.eps)

    def convolution(self, value: str, layer: nn.Conv2d, name: str) -> str:
        """Convolve a BCHW value."""
        assert layer.bias is not None
        weights = (self.weight(f"{name}.weight", layer.weight), self.weight(f"{name}.bias", layer.bias))
        assert not isinstance(layer.padding, str)
        vertical, horizontal = layer.padding
        return self.add(
            *("Conv", value, *weights),
            group=layer.groups,
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=[vertical, horizontal, vertical, horizontal],
        )

    def activation(self, value: str, name: str) -> str:
        """Apply the activation function of that name in transformers' configs."""
        if name == "relu":
            return self.add("Relu", value)
        if name not in _GELU:
            known = ", ".join(["relu", *_GELU])
            raise UserError(f"the model's activation function `{name}` has no ONNX form here", f"known: {known}")
        return self.add("Gelu", value, approximate=_GELU[name])

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape; 0 copies an axis, -1 is inferred."""
        return self.add("Reshape", value, self.ints(*shape))

    def transpose(self, value: str, *axes: int) -> str:
        """Permute the axes."""
        return self.add("Transpose", value, perm=list(axes))

    def attention(self, query: str, key_T: str, value: str, mask: str | None = None) -> str:
        """Attend: `softmax(query key_T + mask) value`; the query is scaled before."""
        scores = self.add("MatMul", query, key_T)
        if mask is not None:
            scores = self.add("Add", scores, mask)
        return self.add("MatMul", self.add("Softmax", scores, axis=-1), value)

    def size(self, value: str, axis: int) -> str:
        """Return the size of one axis, a vector of one integer."""
        return self.add("Shape", value, start=axis, end=axis + 1)

    def branch(self, prefix: str) -> GraphBuilder:
        """Start a branch of an `If` in this graph."""
        return GraphBuilder(self.dtype, prefix=prefix, parent=self)

    def to_graph(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """Return the finished graph; a branch has no inputs."""
        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=list(self.initializers.values()))

    def to_model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the finished model."""
        return helper.make_model(
            self.to_graph(name, inputs, outputs),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
        )

    def _new_name(self, op: str) -> str:
        self._count += 1
        return f"{self.prefix}{op}_{self._count}"

    def _store(self, name: str, array: np.ndarray) -> str:
        if self.parent is not None:
            return self.parent._store(name, array)
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(array, name)
        return name


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """Declare a float32 input or output; a string names a dynamic axis."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def integers(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """Declare an int64 input."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, list(shape))


def booleans(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """Declare a boolean input."""
    return helper.make_tensor_value_info(name, TensorProto.BOOL, list(shape))
