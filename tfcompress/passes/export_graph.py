"""The form of a quantization-aware model that converters turn into integers.

Batch normalization is folded in numpy, weights are plain constants on their integer
grid, and activations carry fake quantization with constant ranges.

Example:
    ```python
    plain, weights = export_graph_and_weights(qat, batch_size=1)
    weights[0].bits, weights[0].step   # the grid that weights[0].values lie on
    ```
"""

import keras
import numpy as np
from absl import logging

from tfcompress.graph import Graph, find_layers, rewrite
from tfcompress.layers import (
    Affine,
    ConstantFakeQuant,
    FakeQuant,
    NormalizedKernel,
    Parameter,
    TransformWeights,
)
from tfcompress.numerics.affine import fake_quantize
from tfcompress.passes.exported_weights import exported_weights, spread
from tfcompress.passes.extreme_index import index_of, is_index
from tfcompress.passes.quantize_rules import CONVOLUTIONS, TRANSPOSED
from tfcompress.passes.strip import effective_layer

# Of a range, to the converter (TensorFlow 2.21).
_SMALLEST_WIDTH = 1e-6


def is_quantization_aware(model):
    """Whether the model has quantizers."""
    return bool(find_layers(model, FakeQuant))


def export_graph(model, *, batch_size=None):
    """Rebuilds a quantization-aware model for export.

    Args:
        model: What `quantize_aware` returned, trained or calibrated.
        batch_size: Batch size of the result; `None` leaves it open.

    Returns:
        A float32 `keras.Model` for inference only, which computes what `model` does.

    Raises:
        ValueError: If a range was never seen.
    """
    return export_graph_and_weights(model, batch_size=batch_size)[0]


def export_graph_and_weights(model, *, batch_size=None):
    """As `export_graph`, with a list of the `ExportedWeight`s in the graph."""
    check_ranges(model)
    graph = Graph(model)
    visitor = _Export(graph)
    plain = rewrite(graph, visitor, batch_size=batch_size, dtype="float32")
    return plain, visitor.weights


def check_ranges(model):
    """Raises unless every quantizer of a model has seen data."""
    unseen = [q.name for q in find_layers(model, FakeQuant) if q.range() is None]
    if unseen:
        raise ValueError(
            f"Model {model.name!r} has seen no data, so {len(unseen)} quantizer(s) "
            f"have no range ({unseen[0]!r}, ...). Pass `calibration_data` to "
            "`quantize_aware`, or to the `from_tfmot` that made the model, or `fit` it "
            "first."
        )


def exported_range(quantizer):
    """The `(low, high)` that a file has for a quantizer: never empty.

    They are values of the grid on which the model rounds: where 0 lies half way between
    two values, a converter, of other precision, would move the grid the other way.

    What was always 0 (a ReLU that is dead, a state before the first step) is 0 on any
    grid. It gets one of steps like those of other layers, as runtimes refuse to come
    down from these to one of next to none.
    """
    low, high = quantizer.range()
    if low == high:
        low, high = quantizer.range_of_zeros()
    if quantizer.bits > 8:
        return low, high
    beyond = [2 * low - 1, 2 * high + 1]
    on_grid = fake_quantize(beyond, low, high, bits=quantizer.bits).numpy()
    return tuple(map(float, on_grid))


# What is a scale and a shift for each channel at inference.
_PER_CHANNEL = (keras.layers.BatchNormalization, Affine)


class _Export:
    """Visitor that folds, snaps and fixes."""

    def __init__(self, graph):
        self.graph = graph
        self.layers = {}
        self.weights = []

    def __call__(self, call, clone, args, kwargs):
        operation = call.operation
        if isinstance(operation, FakeQuant):
            return self._constant(call, args[0])
        if isinstance(operation, TransformWeights):
            if not operation.rounds:
                return self._float(operation)(*args, **kwargs)
            outputs = self._kernel(call)(*args, **kwargs)
            return self._as_operand(call, outputs)
        if isinstance(operation, _PER_CHANNEL):
            if self._folds(call):
                return args[0]
            if not self._is_float(call):
                return self._affine(operation)(args[0])
        if is_index(operation):
            x = self._read_by_one(call.input_tensors[0], args[0])
            return index_of(operation)(x)
        return clone(operation)(*args, **kwargs)

    def _constant(self, call, x):
        # One layer a call: a converter sees no shared layers, only names.
        low, high = exported_range(call.operation)
        if high - low < _SMALLEST_WIDTH:
            logging.warning(
                "%s saw values from %.1g to %.1g only; TFLite's converter makes grids "
                "no narrower than %g. Multiply the model's inputs, or let its weights "
                "be larger.",
                call.operation.name,
                low,
                high,
                _SMALLEST_WIDTH,
            )
        rounded = ConstantFakeQuant(low, high, call.operation.bits)
        producer = self.graph.producer(call.input_tensors[0])
        if producer is None or not isinstance(producer.operation, FakeQuant):
            return rounded(x)
        return _apart(rounded, x)

    def _read_by_one(self, old, x):
        """The tensor, rounded once more where it has other readers.

        Of a tensor with several the converter hands this one the float form.
        """
        producer = self.graph.producer(old)
        if producer is None or not isinstance(producer.operation, FakeQuant):
            return x
        if self.graph.only_consumer(old) is not None:
            return x
        quantizer = producer.operation
        return _apart(ConstantFakeQuant(*exported_range(quantizer), quantizer.bits), x)

    def _kernel(self, call):
        normalization = self._normalization(call)
        wrapper = call.operation
        if isinstance(wrapper.layer, NormalizedKernel):
            normalization = wrapper.layer.normalization
        key = id(wrapper), id(normalization)
        if key not in self.layers:
            if normalization is None:
                layer, factor = _unfolded(wrapper), None
            else:
                layer = fold(wrapper, normalization, name=self._name(call))
                factor = scale_and_shift(normalization)[0]
                factor = factor.reshape(channel_shape(layer))
            self.layers[key] = layer
            self.weights += exported_weights(wrapper, layer, factor)
        return self.layers[key]

    def _float(self, wrapper):
        """A layer that only shares values, the same at each call."""
        if id(wrapper) not in self.layers:
            self.layers[id(wrapper)] = effective_layer(wrapper, dtype="float32")
        return self.layers[id(wrapper)]

    def _as_operand(self, call, outputs):
        """Rounds a weight that is an operand, as the converter would not by itself."""
        wrapper = call.operation
        if not isinstance(wrapper.layer, Parameter):
            return outputs
        layer = self.layers[id(wrapper), id(None)]
        weight = next(w for w in self.weights if w.name == layer.name)
        # Zeros lie on any grid.
        scale = float(np.abs(weight.values).max() or 1.0) / 127
        if weight.step is not None and 2 <= weight.bits <= 8 and weight.step.max() > 0:
            scale = float(weight.step.max()) / spread(weight.bits)
        return ConstantFakeQuant(-128 * scale, 127 * scale)(outputs)

    def _affine(self, operation):
        """One depthwise convolution, the same at each call of a shared layer."""
        if id(operation) not in self.layers:
            layer = Affine(as_convolution=True, name=operation.name, dtype="float32")
            scale, shift = scale_and_shift(operation)
            layer.build((None, len(scale)))
            layer.set_weights([scale, told_apart(shift)])
            self.layers[id(operation)] = layer
        return self.layers[id(operation)]

    def _is_float(self, call):
        """Whether it normalizes a kernel that stays float; converters fold it there."""
        producer = self.graph.producer(call.input_tensors[0])
        return producer is not None and type(producer.operation) in CONVOLUTIONS

    def _name(self, call):
        """The kernel's own name; numbered where it folds more than once."""
        name = call.operation.name
        earlier = sum(
            key[0] == id(call.operation) for key in self.layers if type(key) is tuple
        )
        return name if not earlier else f"{name}_folded_{earlier + 1}"

    def _normalization(self, call):
        following = self.graph.only_consumer(call.outputs[0])
        if following is None or not self._folds(following):
            return None
        return following.operation

    def _folds(self, call):
        """Whether the call is a scale and shift that a kernel takes in."""
        if not isinstance(call.operation, _PER_CHANNEL):
            return False
        producer = self.graph.producer(call.input_tensors[0])
        kernel = None if producer is None else producer.operation
        return isinstance(kernel, TransformWeights) and kernel.rounds


def _apart(rounded, x):
    """Rounds what is rounded already.

    The converter drops one of two roundings in a row; with an axis in between that
    comes and goes it converts from one scale to the other.
    """
    return keras.ops.squeeze(rounded(keras.ops.expand_dims(x, 1)), 1)


def fold(wrapper, normalization, *, name=None):
    """Folds a scale and shift per channel into a kernel that is rounded per channel.

    `w' = w * gamma / sqrt(variance + epsilon)` scales a channel's grid along with its
    weights, so rounded weights stay rounded, and zeros stay zeros.

    Args:
        wrapper: `TransformWeights` around a Conv1D, Conv2D, DepthwiseConv2D or Dense
            without activation.
        normalization: The BatchNormalization or `Affine` that follows it.
        name: Name of the folded layer.

    Returns:
        A layer with bias, holding the folded weights.

    Reference:
        Jacob et al., 2017, eq. 14. arXiv:1712.05877
    """
    source = wrapper.layer
    if isinstance(source, NormalizedKernel):
        source = source.layer
    config = source.get_config()
    # Random numbers that are overwritten at once take most of the time.
    cheap = {key: "zeros" for key in config if key.endswith("kernel_initializer")}
    layer = type(source).from_config(
        config
        | cheap
        | {"use_bias": True, "name": name or wrapper.name, "dtype": "float32"}
    )
    layer.build_from_config(source.get_build_config())
    kernel = wrapper.effective_weights()["kernel"].astype("float32")
    bias = source.bias.numpy().astype("float32") if source.use_bias else 0.0
    scale, shift = scale_and_shift(normalization)
    layer.kernel.assign(kernel * scale.reshape(channel_shape(layer)))
    layer.bias.assign(told_apart(bias * scale + shift))
    return layer


def _unfolded(wrapper):
    layer = effective_layer(wrapper, dtype="float32")
    if getattr(layer, "bias", None) is not None:
        layer.bias.assign(told_apart(layer.bias.numpy()))
    return layer


def told_apart(bias):
    """A bias that is not one number throughout, unless that is 0.

    TFLite's converter keeps such a constant as a single number and rounds it with the
    step of the first channel alone, while the runtime multiplies by each channel's: a
    bias of 0.1 everywhere became 0.1, 0.057, ... One value that is the next float32
    makes it write them all.
    """
    bias = np.array(bias, "float32")
    if bias.size > 1 and bias[0] != 0 and (bias == bias[0]).all():
        bias[0] = np.nextafter(bias[0], np.float32(0))
    return bias


def scale_and_shift(normalization):
    """What it is at inference, `scale * x + shift`, as float64 arrays."""
    if isinstance(normalization, Affine):
        scale, shift = (
            None if v is None else v.numpy().astype("float64")
            for v in (normalization.scale, normalization.shift)
        )
        if scale is None:
            scale = np.ones_like(shift)
        return scale, np.zeros_like(scale) if shift is None else shift
    variance = normalization.moving_variance.numpy().astype("float64")
    scale = 1.0 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        scale = scale * normalization.gamma.numpy()
    shift = -normalization.moving_mean.numpy() * scale
    if normalization.center:
        shift = shift + normalization.beta.numpy()
    return scale, shift


def channel_shape(layer):
    """Shape in which a factor for each channel multiplies the kernel."""
    shape = layer.kernel.shape
    if isinstance(layer, (*TRANSPOSED, keras.layers.Conv3DTranspose)):
        return (shape[-2], 1)
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return shape[-2:]
    return (shape[-1],)
