"""Activations that TFLite has no integer kernel for, from those that it has one for."""

from keras import layers, ops

from tfcompress.graph import clone

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


def elu(x, alpha=1.0):
    """`relu(x) + alpha * (exp(min(x, 0)) - 1)`."""
    negative = ops.exp(ops.minimum(x, 0.0)) - 1.0
    return ops.relu(x) + (negative if alpha == 1.0 else negative * alpha)


def selu(x):
    """Scaled `elu`."""
    return elu(x, _SELU_ALPHA) * _SELU_SCALE


def celu(x, alpha=1.0):
    """`relu(x) + alpha * (exp(min(x, 0) / alpha) - 1)`."""
    negative = (ops.exp(ops.minimum(x, 0.0) * (1.0 / alpha)) - 1.0) * alpha
    return ops.relu(x) + negative


def silu(x):
    """`x * sigmoid(x)`."""
    return x * ops.sigmoid(x)


def softplus(x):
    """`relu(x) + log(1 + exp(-|x|))`, which does not overflow."""
    return ops.relu(x) + ops.log(ops.exp(ops.abs(x) * -1.0) + 1.0)


def log_sigmoid(x):
    """`-softplus(-x)`."""
    return softplus(x * -1.0) * -1.0


def mish(x):
    """`x * tanh(softplus(x))`."""
    return x * ops.tanh(softplus(x))


def softsign(x):
    """`x / (1 + |x|)`, the quotient as `exp(-log(1 + |x|))`."""
    return x * ops.exp(ops.log(ops.abs(x) + 1.0) * -1.0)


def squareplus(x, b=4):
    """`(x + sqrt(x * x + b)) / 2`."""
    return (x + ops.sqrt(x * x + float(b))) * 0.5


def hard_sigmoid(x):
    """`relu6(x + 3) / 6`."""
    return ops.relu6(x + 3.0) * (1.0 / 6.0)


def hard_tanh(x):
    """`x` between -1 and 1."""
    return ops.clip(x, -1.0, 1.0)


def tanh_shrink(x):
    """`x - tanh(x)`."""
    return x - ops.tanh(x)


def glu(x, axis=-1):
    """First half times the sigmoid of the second."""
    first, second = ops.split(x, 2, axis=axis)
    return first * ops.sigmoid(second)


def relu(x, negative_slope=0.0, max_value=None, threshold=0.0):
    """Keras' general ReLU: leaky, bounded, with a threshold."""
    if threshold != 0.0:
        low = (x - threshold) * negative_slope if negative_slope else ops.zeros_like(x)
        y = ops.where(ops.greater(x, threshold), x, low)
    else:
        y = ops.leaky_relu(x, negative_slope) if negative_slope else ops.relu(x)
    return y if max_value is None else ops.minimum(y, float(max_value))


# Name of the activation function -> what computes it.
ACTIVATIONS = {
    function.__name__: function
    for function in (
        elu,
        selu,
        celu,
        silu,
        softplus,
        log_sigmoid,
        mish,
        softsign,
        squareplus,
        hard_sigmoid,
        hard_tanh,
        tanh_shrink,
        glu,
    )
} | {"exponential": ops.exp}


def activation_layer(layer):
    """Form of `keras.layers.Activation`."""
    function = layer.activation
    if isinstance(function, layers.Layer):
        return clone(function)
    return ACTIVATIONS.get(getattr(function, "__name__", None))


def elu_layer(layer):
    """Form of `keras.layers.ELU`."""
    return lambda x: elu(x, float(layer.alpha))


def relu_layer(layer):
    """Form of `keras.layers.ReLU`, where it is not one that TFLite has."""
    plain = layer.threshold == 0
    if plain and (layer.max_value is None or _is_relu6(layer)):
        return None
    return lambda x: relu(
        x,
        negative_slope=float(layer.negative_slope),
        max_value=layer.max_value,
        threshold=float(layer.threshold),
    )


def _is_relu6(layer):
    return layer.negative_slope == 0 and layer.max_value == 6


def softmax_layer(layer):
    """Form of `keras.layers.Softmax`: masked, or not over the last axis."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if len(axes) != 1:
        return None

    def softmax(x, mask=None):
        if mask is not None:
            x = masked(x, mask)
        return softmax_over(x, axes[0])

    return softmax


def softmax_over(x, axis):
    """Softmax over any axis by one over the last."""
    rank = len(x.shape)
    if axis % rank == rank - 1:
        return ops.softmax(x, axis=-1)
    return ops.swapaxes(ops.softmax(ops.swapaxes(x, axis, -1), axis=-1), axis, -1)


# Far enough below the largest score that its probability rounds to zero:
# exp(-16) is 1e-7, and a step of an 8-bit probability is 4e-3.
_MASKED = -16.0


def masked(scores, mask):
    """Scores with those low where `mask` is false.

    Args:
        scores: Float tensor.
        mask: Bool tensor or array that broadcasts to it.
    """
    highest = ops.max(scores, axis=-1, keepdims=True)
    relative = ops.maximum(scores - highest, _MASKED)
    return ops.where(mask, relative, _MASKED)


LAYERS = {
    layers.Activation: activation_layer,
    layers.ELU: elu_layer,
    layers.ReLU: relu_layer,
    layers.Softmax: softmax_layer,
}


def _operation(name):
    def form(operation):
        settings = {
            key: getattr(operation, key)
            for key in ("alpha", "axis", "b")
            if hasattr(operation, key)
        }
        return lambda x: ACTIVATIONS[name](x, **settings)

    return form


# Class name of the Keras operation -> form.
OPERATIONS = {
    "Elu": _operation("elu"),
    "Selu": _operation("selu"),
    "Celu": _operation("celu"),
    "Silu": _operation("silu"),
    "Softplus": _operation("softplus"),
    "LogSigmoid": _operation("log_sigmoid"),
    "Softsign": _operation("softsign"),
    "Squareplus": _operation("squareplus"),
    "HardSigmoid": _operation("hard_sigmoid"),
    "HardTanh": _operation("hard_tanh"),
    "TanhShrink": _operation("tanh_shrink"),
    "Glu": _operation("glu"),
}
