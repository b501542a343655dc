"""TensorFlow functions in a Keras 2 graph, as operations of Keras 3.

Keras 2 put `x + y` or `tf.nn.relu(x)` into a model as layers `TFOpLambda` and
`SlicingOpLambda`, which Keras 3 does not have.

Example:
    ```python
    call_function("math.add", (x, y), {})
    ```
"""

import keras
from keras import ops

from tfcompress.legacy.layers import UnsupportedLegacyLayer

CLASSES = ("TFOpLambda", "SlicingOpLambda")


def _reduction(function):
    return lambda x, axis=None, keepdims=False: function(
        x, axis=_axes(axis), keepdims=bool(keepdims)
    )


def _axes(axis):
    return tuple(axis) if isinstance(axis, list) else axis


def _getitem(x, slice_spec):
    return x[tuple(map(_slice, slice_spec))]


def _slice(part):
    if isinstance(part, dict):
        return slice(part.get("start"), part.get("stop"), part.get("step"))
    # JSON has no Ellipsis.
    return Ellipsis if part in ("Ellipsis", "...") else part


def _transpose(x, perm=None):
    return ops.transpose(x, axes=perm)


def _cast(x, dtype):
    # A config holds "float32", or "<dtype: 'float32'>" from memory.
    name = getattr(dtype, "name", str(dtype))
    return ops.cast(x, name.removeprefix("<dtype: '").removesuffix("'>"))


def _resize(images, size, method="bilinear", antialias=False, **kwargs):
    if antialias or kwargs.get("preserve_aspect_ratio"):
        raise UnsupportedLegacyLayer(
            "tf.image.resize with antialias or preserve_aspect_ratio has no counterpart"
        )
    return ops.image.resize(images, tuple(size), interpolation=method)


_BINARY = {
    "add": ops.add,
    "subtract": ops.subtract,
    "multiply": ops.multiply,
    "divide": ops.divide,
    "truediv": ops.divide,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "pow": ops.power,
}
_OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide"}
_UNARY = {
    "abs": ops.abs,
    "exp": ops.exp,
    "log": ops.log,
    "negative": ops.negative,
    "rsqrt": ops.rsqrt,
    "sigmoid": ops.sigmoid,
    "sqrt": ops.sqrt,
    "square": ops.square,
    "tanh": ops.tanh,
}
_FUNCTIONS = {
    **{f"math.{name}": function for name, function in _BINARY.items()},
    **{f"math.{name}": function for name, function in _UNARY.items()},
    **{f"__operators__.{k}": _BINARY[v] for k, v in _OPERATORS.items()},
    "__operators__.getitem": _getitem,
    "__operators__.neg": ops.negative,
    "cast": _cast,
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis=axis),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "identity": lambda input: input,
    "image.resize": _resize,
    "linalg.matmul": ops.matmul,
    "math.reduce_max": _reduction(ops.max),
    "math.reduce_mean": _reduction(ops.mean),
    "math.reduce_min": _reduction(ops.min),
    "math.reduce_sum": _reduction(ops.sum),
    "nn.elu": ops.elu,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.sigmoid": ops.sigmoid,
    "nn.silu": ops.silu,
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis=axis),
    "nn.softmax_v2": lambda logits, axis=-1: ops.softmax(logits, axis=axis),
    "nn.swish": ops.silu,
    "nn.tanh": ops.tanh,
    "reshape": lambda tensor, shape: ops.reshape(tensor, tuple(shape)),
    "split": lambda value, num_or_size_splits, axis=0: _split(
        value, num_or_size_splits, axis
    ),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis=_axes(axis)),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "stop_gradient": ops.stop_gradient,
    "transpose": _transpose,
}


def _split(value, parts, axis):
    if isinstance(parts, int):
        return ops.split(value, parts, axis=axis)
    ends = [sum(parts[: i + 1]) for i in range(len(parts) - 1)]
    return ops.split(value, ends, axis=axis)


def call_function(name, args, kwargs):
    """Calls the Keras operation that computes what a TensorFlow function does.

    Args:
        name: TensorFlow's name below `tf.`: `"math.add"`.
        args: Positional arguments.
        kwargs: Named arguments, as TensorFlow names them.

    Returns:
        A `KerasTensor`, or a list of them.

    Raises:
        UnsupportedLegacyLayer: If there is no counterpart for it.
    """
    short = name.removeprefix("math.") if name.startswith("math.nn") else name
    function = _FUNCTIONS.get(short)
    if function is None:
        raise UnsupportedLegacyLayer(
            f"the function tf.{name} in the graph has no counterpart here. Rebuild "
            "that part of the model with keras.layers or keras.ops of Keras 3"
        )
    settings = {k: v for k, v in kwargs.items() if v is not None and k != "name"}
    if short.startswith(("math.", "__operators__.")) and short != (
        "__operators__.getitem"
    ):
        # TensorFlow calls them x and y, or input_tensor.
        args = (*args, *(settings.pop(k) for k in ("y",) if k in settings))
    try:
        result = function(*args, **settings)
    except TypeError as err:
        raise UnsupportedLegacyLayer(
            f"tf.{name} is called with {sorted(settings)}, which has no counterpart"
        ) from err
    return keras.tree.map_structure(lambda t: t, result)
