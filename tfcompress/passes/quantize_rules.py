"""What each operation needs in order to be quantized: the table, and nothing else.

To support a further layer, add it here.
"""

import keras
from keras import layers

# Layer -> (name of the weight, axes that have a scale of their own).
KERNELS = {
    layers.Conv1D: ("kernel", (-1,)),
    layers.Conv2D: ("kernel", (-1,)),
    layers.DepthwiseConv2D: ("kernel", (-2, -1)),
    layers.Dense: ("kernel", (-1,)),
    layers.PReLU: ("alpha", ()),
}

# Output has the scale of the input and lies on its grid.
PASS_THROUGH = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.Identity,
)

# Output has the scale of the input but must be rounded to its grid.
SAME_SCALE = (layers.AveragePooling1D, layers.AveragePooling2D)

# All inputs and the output have one scale.
JOINS = (layers.Concatenate,)

# Output has a scale of its own.
OWN_SCALE = (
    layers.Add,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.ReLU,
    layers.LeakyReLU,
)

# Kernels into which batch normalization folds and a ReLU fuses.
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)

# Activation -> the range that TFLite prescribes for its output; `None`: observed.
ACTIVATIONS = {
    "linear": None,
    "relu": None,
    "relu6": None,
    "leaky_relu": None,
    "softmax": (0.0, 255 / 256),
    "sigmoid": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")


def activation(operation):
    """Name of the activation that an activation layer or Keras operation applies.

    Returns:
        `"relu"`, `"softmax"`, ...; `None` if it is no activation.
    """
    if isinstance(operation, layers.Activation):
        return getattr(operation.activation, "__name__", "custom")
    if isinstance(operation, layers.Softmax):
        return "softmax"
    if isinstance(operation, layers.LeakyReLU):
        return "leaky_relu"
    if isinstance(operation, layers.ReLU):
        return _relu_name(operation)
    name = type(operation).__name__.lower()
    if not isinstance(operation, keras.layers.Layer) and name in ("relu", "relu6"):
        return name
    return None


def _relu_name(relu):
    if relu.threshold != 0:
        return "thresholded_relu"
    if relu.negative_slope == 0:
        return {None: "relu", 6.0: "relu6"}.get(relu.max_value, "bounded_relu")
    return "leaky_relu" if relu.max_value is None else "bounded_leaky_relu"


def is_addition(operation):
    """Whether it is `x + y` or `keras.layers.Add`."""
    return isinstance(operation, layers.Add) or (
        not isinstance(operation, keras.layers.Layer)
        and type(operation).__name__ == "Add"
    )


def supported(operation):
    """Whether the operation can be quantized (batch normalization: if it folds)."""
    if activation(operation) is not None:
        return activation(operation) in ACTIVATIONS
    known = (*KERNELS, *PASS_THROUGH, *SAME_SCALE, *JOINS, *OWN_SCALE)
    return is_addition(operation) or type(operation) in known


def supported_names():
    """Names of what can be quantized, for messages."""
    classes = (*KERNELS, *PASS_THROUGH, *SAME_SCALE, *JOINS, *OWN_SCALE)
    names = {cls.__name__ for cls in classes} | {"BatchNormalization behind a kernel"}
    return sorted(names | {f"activation {name!r}" for name in ACTIVATIONS})
