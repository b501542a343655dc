"""What a model costs and what it is worth: size, work, time, accuracy.

Example:
    ```python
    before = tfc.measure("float.tflite", data=(x_test, y_test))
    after = tfc.measure("int8.tflite", data=(x_test, y_test))
    print(before.gzip_bytes / after.gzip_bytes, before.accuracy - after.accuracy)
    ```
"""

import functools
import math
import os
import pathlib
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import batches, check_model
from tfcompress.deploy.files import gzip_bytes
from tfcompress.deploy.runtime import TFLiteRunner, latency_ms
from tfcompress.deploy.tflite_file import FLOAT_TYPES, damage_named, read_tflite
from tfcompress.graph import check_scopes, find_layers, flat_call, kernels
from tfcompress.passes.quantize_rules import KERNELS
from tfcompress.passes.strip import strip


@dataclass(frozen=True)
class LayerWeights:
    """How many values a kernel has, and what they need at least.

    Attributes:
        name: Path of the kernel, or name of the tensor in a file.
        parameters: Number of weights.
        sparsity: Fraction of zeros.
        distinct_values: Number of different values.
        channel_values: The most different values in one output channel.
        bits: Bits a weight as it is stored.
        entropy_bits: Bits a weight of the shortest code of the weights one by one:
            `-sum(p * log2(p))` over the shares of the values. A bound for coders that
            do not look at neighbours, and without the table of values.
        entropy_bytes: The same for all weights, in bytes.
        gzip_bytes: Bytes of the kernel alone after gzip -9.
    """

    name: str
    parameters: int
    sparsity: float
    distinct_values: int
    channel_values: int
    bits: float
    entropy_bits: float
    entropy_bytes: int
    gzip_bytes: int


@dataclass(frozen=True)
class Measurement:
    """Figures of a model or file; `None` where one does not apply.

    Attributes:
        name: What was measured.
        parameters: Number of weights, biases and statistics.
        nonzero_parameters: Those that are not zero.
        sparsity: Fraction of zeros among `parameters`.
        macs: Multiply-accumulate operations of one example (matrix products and
            convolutions); `None` with loops, such as recurrent layers.
        bytes: Of a file, its size; of a Keras model, the size of its weights in memory.
        gzip_bytes: The same bytes after gzip -9.
        latency_ms: Of a `.tflite` file: median milliseconds of one inference (of the
            file's batch size) on one thread of this machine's CPU. `None` for a Keras
            model: export it first.
        accuracy: Fraction of examples whose class is right, if `data` were given.
        kernels: Tuple of `(path, parameters, sparsity)`, one for each kernel.
        layers: Tuple of `LayerWeights`, one for each kernel. `str` of it is of the
            whole; `layer_table()` shows these.
    """

    name: str
    parameters: int
    nonzero_parameters: int
    sparsity: float
    macs: int | None
    bytes: int
    gzip_bytes: int
    latency_ms: float | None = None
    accuracy: float | None = None
    kernels: tuple = field(default=(), repr=False)
    layers: tuple = field(default=(), repr=False)

    @property
    def entropy_bytes(self):
        """Sum of the layers' `entropy_bytes`: a bound for coding their weights."""
        return sum(layer.entropy_bytes for layer in self.layers)

    def layer_table(self):
        """Text with a row for each layer: values, bits a weight, bounds."""
        header = (
            "kernel",
            "weights",
            "zeros",
            "values",
            "a channel",
            "bits",
            "entropy",
            "bytes at least",
            "gzip",
        )
        rows = [
            (
                layer.name,
                f"{layer.parameters:,}",
                f"{layer.sparsity:.1%}",
                f"{layer.distinct_values:,}",
                f"{layer.channel_values:,}",
                f"{layer.bits:g}",
                f"{layer.entropy_bits:.2f}",
                f"{layer.entropy_bytes:,}",
                f"{layer.gzip_bytes:,}",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True)]
            )
            for row in (header, *rows)
        )

    def __str__(self):
        def show(value, text):
            return "-" if value is None else text.format(value)

        rows = [
            ("parameters", f"{self.parameters:,}"),
            ("nonzero", f"{self.nonzero_parameters:,} ({self.sparsity:.1%} zeros)"),
            ("MACs", show(self.macs, "{:,}")),
            ("bytes", f"{self.bytes:,}"),
            ("gzip bytes", f"{self.gzip_bytes:,}"),
            ("kernels", f"{self.entropy_bytes:,} bytes at least, by entropy"),
            ("latency, ms", show(self.latency_ms, "{:.3f}")),
            ("accuracy", show(self.accuracy, "{:.4f}")),
        ]
        return "\n".join([self.name, *(f"  {label:<12}{text}" for label, text in rows)])


def measure(model, data=None, *, name=None):
    """Measures a Keras model or a `.tflite` file.

    A model that a pass of this library returned is measured with its effective
    weights, and without the rounding of activations: measure the exported file for
    that.

    Args:
        model: Built `keras.Model`, or path of a `.tflite` file.
        data: `(inputs, labels)` arrays or a batched data set of such pairs. Labels are
            class numbers `(examples,)` or one-hot `(examples, classes)`; of a model
            with a single output value, 0 or 1 (threshold one half).
        name: Name in the result; `None` takes the model's or the file's.

    Returns:
        A `Measurement`.

    Raises:
        TypeError: If `model` is neither.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or the data do not fit.
    """
    if isinstance(model, (str, os.PathLike)):
        return _measure_file(model, data, name)
    check_model(model)
    return _measure_model(strip(model), data, name or model.name)


def _measure_model(model, data, name):
    weights = [variable.numpy() for variable in model.weights]
    content = b"".join(w.tobytes() for w in weights)
    return Measurement(
        name=name,
        **_counts(sum(w.size for w in weights), sum(map(np.count_nonzero, weights))),
        macs=model_macs(model),
        bytes=len(content),
        gzip_bytes=gzip_bytes(content),
        accuracy=None
        if data is None
        else accuracy_of(keras_runner(model), model, data),
        kernels=tuple(
            _kernel(path, np.prod(v.shape), np.count_nonzero(v.numpy()))
            for path, v in kernels(model).items()
        ),
        layers=tuple(
            layer_weights(path, v.numpy(), axes=_channel_axes(model, v))
            for path, v in kernels(model).items()
        ),
    )


def _measure_file(path, data, name):
    file = read_tflite(path)
    with damage_named(path):
        found, macs = _parameters(file), _file_macs(file)
        depthwise = _depthwise_kernels(file)
    latency = latency_ms(path)
    accuracy = None
    if data is not None:
        runner = TFLiteRunner(path)
        accuracy = accuracy_of(runner.predict, _Inputs(runner), data)
    return Measurement(
        name=name or pathlib.Path(path).name,
        **_counts(sum(t.size for t, _ in found), sum(n for _, n in found)),
        macs=macs,
        bytes=file.bytes,
        gzip_bytes=gzip_bytes(pathlib.Path(path).read_bytes()),
        latency_ms=latency,
        accuracy=accuracy,
        kernels=tuple(
            _kernel(t.name, t.size, nonzero) for t, nonzero in found if len(t.shape) > 1
        ),
        layers=tuple(
            _stored_weights(t, depthwise) for t, _ in found if len(t.shape) > 1
        ),
    )


def _counts(parameters, nonzero):
    return {
        "parameters": int(parameters),
        "nonzero_parameters": int(nonzero),
        "sparsity": 1 - int(nonzero) / int(parameters) if parameters else 0.0,
    }


def _kernel(path, size, nonzero):
    return path, int(size), 1 - int(nonzero) / int(size)


def _channel_axes(model, variable):
    """The axes of a kernel that are its output channels."""
    for layer in find_layers(model, tuple(KERNELS)):
        name, axes = KERNELS.get(type(layer), (None, ()))
        if axes and any(v is variable and v.name == name for v in layer.weights):
            return axes
    return (-1,)


def layer_weights(name, values, *, axes=(-1,), stored=None):
    """What the values of a kernel need.

    Args:
        name: Its name.
        values: Numpy array, real numbers or integers.
        axes: Axes that are the output channels.
        stored: Its bytes where it is stored; `None` for those of the array.

    Returns:
        A `LayerWeights`.
    """
    values = np.asarray(values)
    stored = values.tobytes() if stored is None else stored
    _, counts = np.unique(values, return_counts=True)
    share = counts / values.size
    entropy = float(-(share * np.log2(share)).sum())
    channels = np.moveaxis(values, axes, range(len(axes)))
    count = math.prod(channels.shape[: len(axes)])
    channels = np.sort(channels.reshape(count, -1), axis=1)
    changes = (channels[:, 1:] != channels[:, :-1]).sum(axis=1)
    return LayerWeights(
        name=name,
        parameters=values.size,
        sparsity=1 - int(np.count_nonzero(values)) / values.size,
        distinct_values=len(counts),
        channel_values=int(changes.max()) + 1,
        bits=8 * len(stored) / values.size,
        entropy_bits=max(entropy, 0.0),
        entropy_bytes=math.ceil(max(entropy, 0.0) * values.size / 8),
        gzip_bytes=gzip_bytes(stored),
    )


def _depthwise_kernels(file):
    """Indices of constants that depthwise convolutions read, converted or not."""
    converted = {
        op.outputs[0].index: op.inputs[0].index
        for op in file.operations
        if op.operator == "DEQUANTIZE"
    }
    kernels = [
        op.inputs[1].index
        for op in file.operations
        if op.operator == "DEPTHWISE_CONV_2D"
    ]
    return {converted.get(index, index) for index in kernels}


def _stored_weights(tensor, depthwise):
    several = tensor.scale is not None and tensor.scale.size > 1
    axis = 3 if tensor.index in depthwise and len(tensor.shape) == 4 else 0
    return layer_weights(
        tensor.name,
        _without_zero_point(tensor),
        axes=(tensor.quantized_axis if several else axis,),
        stored=bytes(tensor.buffer),
    )


def _without_zero_point(tensor):
    """The constant's integers, zero at 0; its own values if it is not quantized."""
    value = tensor.value()
    if tensor.zero_point is None:
        return value
    shape = [1] * value.ndim
    if value.ndim:
        shape[tensor.quantized_axis] = -1
    return value.astype(np.int64) - tensor.zero_point.reshape(shape)


def _parameters(file):
    """Constants that are weights, with the number of their nonzero values."""
    found = []
    for tensor in file.constants():
        if tensor.dtype in FLOAT_TYPES or tensor.scale is not None:
            value = _without_zero_point(tensor)
            found.append((tensor, int(np.count_nonzero(value))))
    return found


# Multiply-accumulate operations.


def model_macs(model):
    """Multiply-accumulates of one example; `None` with loops or sizes not known.

    Counted in the TensorFlow graph, which holds for subclassed models too.
    """
    if not getattr(model, "inputs", None):
        return None
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype) for t in model.inputs]
    check_scopes(model)
    infer = tf.function(flat_call(model), autograph=False)
    return _graph_macs(infer.get_concrete_function(*specs).graph)


def _graph_macs(graph):
    """MACs of a TensorFlow graph, `None` if a loop or an open shape hides them."""
    total = 0
    for operation in graph.get_operations():
        if operation.type in ("While", "StatelessWhile"):
            return None
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            # Keras runs grouped convolutions on the CPU in a function of their own.
            called = graph._get_function(operation.get_attr("f").name)
            macs = _graph_macs(called.graph)
        else:
            macs = _graph_operation_macs(operation)
        if macs is None:
            return None
        total += macs
    return total


def _graph_operation_macs(operation):
    """MACs of a TensorFlow operation, 0 if it multiplies nothing, `None` if unknown."""
    kind = operation.type
    if kind not in _GRAPH_MACS:
        return 0
    shapes = [t.shape for t in (*operation.inputs, operation.outputs[0])]
    if not all(shape.is_fully_defined() for shape in shapes):
        return None
    *inputs, output = (tuple(shape) for shape in shapes)
    return _GRAPH_MACS[kind](operation, inputs, output)


def _einsum_macs(operation, inputs, output):
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {}
    for term, shape in zip(terms, inputs, strict=True):
        sizes.update(zip(term, shape, strict=True))
    return math.prod(sizes.values())


def _matmul_macs(operation, inputs, output):
    attribute = "transpose_a" if operation.type == "MatMul" else "adj_x"
    axis = -2 if operation.get_attr(attribute) else -1
    return math.prod(output) * inputs[0][axis]


_GRAPH_MACS = {
    "Conv2D": lambda op, i, o: math.prod(o) * math.prod(i[1][:-1]),
    "Conv3D": lambda op, i, o: math.prod(o) * math.prod(i[1][:-1]),
    "DepthwiseConv2dNative": lambda op, i, o: math.prod(o) * math.prod(i[1][:2]),
    "Conv2DBackpropInput": lambda op, i, o: math.prod(i[2]) * math.prod(i[1][:-1]),
    "Conv3DBackpropInputV2": lambda op, i, o: math.prod(i[2]) * math.prod(i[1][:-1]),
    "MatMul": _matmul_macs,
    "BatchMatMulV2": _matmul_macs,
    "Einsum": _einsum_macs,
}


def _file_macs(file):
    total = 0
    for operation in file.operations:
        if operation.operator == "WHILE":
            return None
        if operation.operator in _FILE_MACS:
            shapes = [t.shape if t else () for t in operation.inputs]
            total += _FILE_MACS[operation.operator](shapes, operation.outputs[0].shape)
    return total


_FILE_MACS = {
    "CONV_2D": lambda i, o: math.prod(o) * math.prod(i[1][1:]),
    "CONV_3D": lambda i, o: math.prod(o) * math.prod(i[1][:-1]),
    "DEPTHWISE_CONV_2D": lambda i, o: math.prod(o) * math.prod(i[1][1:3]),
    "TRANSPOSE_CONV": lambda i, o: math.prod(i[2]) * math.prod(i[1][:-1]),
    "FULLY_CONNECTED": lambda i, o: math.prod(o) * i[1][-1],
    "BATCH_MATMUL": lambda i, o: math.prod(o) * i[0][-1],
}


# Accuracy.


class _Inputs:
    """The inputs of a file as `checks.batches` wants them."""

    def __init__(self, runner):
        self.inputs = [
            keras.KerasTensor((None, *d["shape"][1:]), "float32", name=d["name"])
            for d in runner.inputs
        ]


def keras_runner(model):
    """A function that runs a model on a list of inputs, as a list of arrays."""
    check_scopes(model)
    infer = tf.function(flat_call(model), autograph=False)

    # Traced by hand: a `tf.function` made for each model that is measured looks to
    # TensorFlow like one that is traced again and again, and it warns.
    @functools.cache
    def traced(*signature):
        return infer.get_concrete_function(*(tf.TensorSpec(*s) for s in signature))

    def run(inputs):
        tensors = [tf.convert_to_tensor(value) for value in inputs]
        outputs = traced(*((tuple(t.shape), t.dtype) for t in tensors))(*tensors)
        return [np.asarray(t) for t in keras.tree.flatten(outputs)]

    return run


def accuracy_of(run, model, data):
    """Fraction of examples whose class is right.

    Args:
        run: Function from a list of inputs to a list of outputs, of which there is one.
        model: What has the `inputs` that the data are for.
        data: `(inputs, labels)` or a batched data set, as of `measure`.
    """
    right = examples = 0
    for inputs, labels in batches(model, data, argument="data", batch_size=128):
        count, of = right_of(run(inputs), labels)
        right, examples = right + count, examples + of
    return right / examples


def right_of(outputs, labels):
    """How many examples of a batch are of the right class, and how many there are.

    Args:
        outputs: List of the outputs of a model, of which there is one.
        labels: Class numbers or one-hot rows.
    """
    if labels is None:
        raise ValueError("`data` must hold labels: pass (inputs, labels).")
    if len(outputs) != 1:
        raise ValueError(
            f"Accuracy needs a model with one output. Received: {len(outputs)} outputs"
        )
    found, wanted = _classes(outputs[0]), _labels(labels, outputs[0])
    return int(np.sum(found == wanted)), found.size


def _classes(outputs):
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] > 0.5).astype("int64")
    return outputs.argmax(axis=-1)


def _labels(labels, outputs):
    labels = np.asarray(labels)
    if outputs.shape[-1] > 1 and labels.shape == outputs.shape:
        return labels.argmax(axis=-1)
    if labels.shape == (*outputs.shape[:-1], 1):
        labels = labels[..., 0]
    if labels.shape != outputs.shape[:-1]:
        raise ValueError(
            f"`data`: labels of shape {labels.shape} do not fit outputs of shape "
            f"{outputs.shape}; give class numbers or one-hot rows."
        )
    return labels.astype("int64")
