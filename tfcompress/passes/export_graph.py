"""The form of a quantization-aware model that converters turn into integers.

Batch normalization is folded in numpy, weights are plain constants on their integer
grid, and activations carry fake quantization with constant ranges.
"""

import keras
import numpy as np

from tfcompress.graph import Graph, find_layers, rewrite
from tfcompress.layers import ConstantFakeQuant, FakeQuant, TransformWeights
from tfcompress.passes.strip import effective_layer

_SMALLEST_RANGE = 1e-6


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
    graph = Graph(model)
    unseen = [q.name for q in find_layers(model, FakeQuant) if q.range() is None]
    if unseen:
        raise ValueError(
            f"Model {model.name!r} has seen no data, so {len(unseen)} quantizer(s) "
            f"have no range ({unseen[0]!r}, ...). Pass `calibration_data` to "
            "`quantize_aware`, or `fit` the model first."
        )
    return rewrite(graph, _Export(graph), batch_size=batch_size, dtype="float32")


class _Export:
    """Visitor that folds, snaps and fixes."""

    def __init__(self, graph):
        self.graph = graph
        self.layers = {}

    def __call__(self, call, clone, args, kwargs):
        operation = call.operation
        if isinstance(operation, FakeQuant):
            return self._constant(operation)(args[0])
        if isinstance(operation, TransformWeights):
            return self._kernel(call)(*args, **kwargs)
        if isinstance(operation, keras.layers.BatchNormalization):
            return args[0]
        return clone(operation)(*args, **kwargs)

    def _constant(self, quantizer):
        low, high = quantizer.range()
        if high - low < _SMALLEST_RANGE:
            high = low + _SMALLEST_RANGE
        # One layer a call: a converter sees no shared layers, only names.
        return ConstantFakeQuant(low, high, quantizer.bits)

    def _kernel(self, call):
        normalization = self._normalization(call)
        key = id(call.operation), id(normalization)
        if key not in self.layers:
            self.layers[key] = (
                effective_layer(call.operation, dtype="float32")
                if normalization is None
                else fold(call.operation, normalization, name=self._name(call))
            )
        return self.layers[key]

    def _name(self, call):
        """The kernel's own name; numbered where it folds more than once."""
        name = call.operation.layer.name
        earlier = sum(operation == id(call.operation) for operation, _ in self.layers)
        return name if not earlier else f"{name}_folded_{earlier + 1}"

    def _normalization(self, call):
        following = self.graph.only_consumer(call.outputs[0])
        if following is None:
            return None
        operation = following.operation
        return (
            operation
            if isinstance(operation, keras.layers.BatchNormalization)
            else None
        )


def fold(wrapper, normalization, *, name=None):
    """Folds batch normalization into a kernel whose rounding is per channel.

    `w' = w * gamma / sqrt(variance + epsilon)` scales a channel's grid along with its
    weights, so rounded weights stay rounded, and zeros stay zeros.

    Args:
        wrapper: `TransformWeights` around a Conv1D, Conv2D, DepthwiseConv2D or Dense
            without activation.
        normalization: The BatchNormalization that follows it.
        name: Name of the folded layer.

    Returns:
        A layer with bias, holding the folded weights.

    Reference:
        Jacob et al., 2017, eq. 14. arXiv:1712.05877
    """
    source = effective_layer(wrapper, dtype="float32")
    layer = type(source).from_config(
        source.get_config() | {"use_bias": True, "name": name or source.name}
    )
    layer.build_from_config(source.get_build_config())
    kernel = source.kernel.numpy()
    bias = source.bias.numpy() if source.use_bias else 0.0
    scale, shift = _affine(normalization)
    channels = layer.bias.shape[0]
    per_channel = scale.reshape(_channel_shape(kernel.shape, channels))
    layer.kernel.assign(kernel * per_channel)
    layer.bias.assign(bias * scale + shift)
    return layer


def _affine(normalization):
    """Batch normalization at inference as `scale * x + shift`, float64 arrays."""
    variance = normalization.moving_variance.numpy().astype("float64")
    scale = 1.0 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        scale = scale * normalization.gamma.numpy()
    shift = -normalization.moving_mean.numpy() * scale
    if normalization.center:
        shift = shift + normalization.beta.numpy()
    return scale, shift


def _channel_shape(kernel_shape, channels):
    """`(out,)`, or `(in, multiplier)` for the kernel of a depthwise convolution."""
    return (channels,) if kernel_shape[-1] == channels else kernel_shape[-2:]
