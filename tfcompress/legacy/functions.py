"""TensorFlow functions in a Keras 2 graph, as operations of Keras 3.

Keras 2 put `x + y` or `tf.nn.relu(x)` into a model as layers `TFOpLambda` and
`SlicingOpLambda`, which Keras 3 does not have.

Example:
    ```python
    call_function("math.add", (x, y), {})
    ```
"""

import math

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


class _Shape:
    """What `tf.shape` gave: lengths of a tensor's axes, `None` where not known."""

    def __init__(self, tensor, lengths):
        self.tensor = tensor
        self.lengths = lengths


class _Length(_Shape):
    """A length that is not known."""


def _getitem(x, slice_spec):
    parts = slice_spec if isinstance(slice_spec, (list, tuple)) else (slice_spec,)
    parts = tuple(map(_slice, parts))
    if not isinstance(x, _Shape):
        return x[parts]
    found = x.lengths[parts[0]]
    if isinstance(found, tuple):
        return _Shape(x.tensor, found)
    return _Length(x.tensor, (None,)) if found is None else found


def _reshape(tensor, shape):
    """Reshapes; besides -1 the shape may have the unknown length of the tensor."""
    lengths, tensors = [], []
    for part in [shape] if isinstance(shape, _Shape) else shape:
        lengths += part.lengths if isinstance(part, _Shape) else [int(part)]
        tensors += [part.tensor] if isinstance(part, _Shape) else []
    if None in lengths and -1 in lengths:
        known = [n for n in tensor.shape if n is not None]
        # Of another tensor the unknown length may be another one.
        mine = all(t is tensor for t in tensors) and len(known) == len(tensor.shape) - 1
        if lengths.count(None) > 1 or not mine:
            raise UnsupportedLegacyLayer(
                f"tf.reshape to {lengths} from {tensor.shape} has two unknown lengths. "
                "Write the known ones as numbers in the old model"
            )
        others = [n for n in lengths if n is not None and n != -1]
        rest = math.prod(known) // math.prod(others)
        lengths = [rest if n == -1 else n for n in lengths]
    return ops.reshape(tensor, tuple(-1 if n is None else n for n in lengths))


def _slice(part):
    if isinstance(part, dict):
        return slice(part.get("start"), part.get("stop"), part.get("step"))
    # JSON has no Ellipsis.
    return Ellipsis if part in ("Ellipsis", "...") else part


def _transpose(a, perm=None, conjugate=False):
    return ops.transpose(a, axes=perm)


def _matmul(a, b, transpose_a=False, transpose_b=False):
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _pad(tensor, paddings, mode="CONSTANT", constant_values=0):
    fill = {"constant_values": constant_values} if mode.lower() == "constant" else {}
    return ops.pad(tensor, paddings, mode=mode.lower(), **fill)


def _l2_normalize(x, axis=None, epsilon=1e-12):
    square = ops.sum(ops.square(x), axis=_axes(axis), keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, epsilon))


def _argmax(input, axis=0, output_type="int64"):
    return _cast(ops.argmax(input, axis=axis), output_type)


def _depth_to_space(input, block_size, data_format="NHWC"):
    _, height, width, depth = input.shape
    if data_format != "NHWC" or None in (height, width):
        raise UnsupportedLegacyLayer(
            f"tf.nn.depth_to_space of shape {input.shape}, {data_format!r}, has no "
            "counterpart. Give the model a fixed height and width, channels last"
        )
    n, kept = block_size, depth // block_size**2
    x = ops.reshape(input, (-1, height, width, n, n, kept))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * n, width * n, kept))


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
    "truediv": ops.divide,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "pow": ops.power,
}
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
    "__operators__.add": ops.add,
    "__operators__.getitem": _getitem,
    "cast": _cast,
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis=axis),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "identity": lambda input: input,
    "image.resize": _resize,
    "linalg.matmul": _matmul,
    "math.argmax": _argmax,
    "math.greater": ops.greater,
    "math.l2_normalize": _l2_normalize,
    "math.reduce_max": _reduction(ops.max),
    "math.reduce_mean": _reduction(ops.mean),
    "math.reduce_min": _reduction(ops.min),
    "math.reduce_sum": _reduction(ops.sum),
    "nn.depth_to_space": _depth_to_space,
    "nn.elu": ops.elu,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.silu": ops.silu,
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis=axis),
    "pad": _pad,
    "reshape": _reshape,
    "shape": lambda input, out_type=None: _Shape(input, tuple(input.shape)),
    "split": lambda value, num_or_size_splits, axis=0: _split(
        value, num_or_size_splits, axis
    ),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis=_axes(axis)),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "stop_gradient": ops.stop_gradient,
    "transpose": _transpose,
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num, axis),
    "where": lambda condition, x, y: ops.where(condition, x, y),
}
_OF_SHAPES = ("__operators__.getitem", "reshape")


def _split(value, parts, axis):
    if isinstance(parts, int):
        return ops.split(value, parts, axis=axis)
    ends = [sum(parts[: i + 1]) for i in range(len(parts) - 1)]
    return ops.split(value, ends, axis=axis)


def check_function(name):
    """Raises an error if there is no counterpart for a function of TensorFlow.

    Raises:
        UnsupportedLegacyLayer: If there is none.
    """
    if _key(name) not in _FUNCTIONS:
        raise UnsupportedLegacyLayer(
            f"the function tf.{name} in the graph has no counterpart here. Rebuild "
            "that part of the model with keras.layers or keras.ops of Keras 3"
        )


def _key(name):
    return name.removeprefix("compat.v1.")


def call_function(name, args, kwargs):
    """Calls the Keras operation that computes what a TensorFlow function does.

    Args:
        name: TensorFlow's name below `tf.`: `"math.add"`.
        args: Positional arguments.
        kwargs: Named arguments, as TensorFlow names them.

    Returns:
        A `KerasTensor`, or a list of them; of `tf.shape` an object that other functions
        take.

    Raises:
        UnsupportedLegacyLayer: If there is no counterpart for it.
    """
    check_function(name)
    key = _key(name)
    settings = {k: v for k, v in kwargs.items() if v is not None and k != "name"}
    if key.startswith(("math.", "__operators__.")) and "y" in settings:
        # Some operations of Keras call them x1 and x2.
        args = (*args, settings.pop("y"))
    given = keras.tree.flatten([args, settings])
    if key not in _OF_SHAPES and any(isinstance(part, _Shape) for part in given):
        raise UnsupportedLegacyLayer(
            f"tf.{name} computes with what tf.shape gave, which is known when data "
            "come. Take the shape of the tensor instead: x.shape"
        )
    try:
        return _FUNCTIONS[key](*args, **settings)
    except (TypeError, ValueError) as err:
        if isinstance(err, UnsupportedLegacyLayer):
            raise
        reason = " ".join(str(err).split())[:200]
        raise UnsupportedLegacyLayer(
            f"tf.{name} is called with {sorted(settings)}, which has no counterpart: "
            f"{reason}"
        ) from err
