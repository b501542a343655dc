"""What each operation needs in order to be quantized: the table, and nothing else.

To support a further layer, add it here, or give it a form in `lowering/`.
"""

import keras
from keras import layers

from tfcompress.layers import Affine, ConstantTensor, FusedBatchNormalization, Parameter

# Layer -> (name of the weight, axes that have a scale of their own).
KERNELS = {
    layers.Conv1D: ("kernel", (-1,)),
    layers.Conv2D: ("kernel", (-1,)),
    layers.Conv1DTranspose: ("kernel", (-2,)),
    layers.Conv2DTranspose: ("kernel", (-2,)),
    layers.DepthwiseConv1D: ("kernel", (-2, -1)),
    layers.DepthwiseConv2D: ("kernel", (-2, -1)),
    layers.Dense: ("kernel", (-1,)),
    layers.PReLU: ("alpha", ()),
    Parameter: ("value", ()),
}

# Kernels into which batch normalization folds.
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose)
CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.Dense,
    *TRANSPOSED,
)

NORMALIZATIONS = (layers.BatchNormalization, FusedBatchNormalization)

# Augmentation: the identity at inference. Older versions of Keras have fewer of them.
_AUGMENTATIONS = tuple(
    getattr(layers, f"Random{name}")
    for name in (
        "Brightness",
        "ColorDegeneration",
        "ColorJitter",
        "Contrast",
        "ElasticTransform",
        "Erasing",
        "Flip",
        "GaussianBlur",
        "Grayscale",
        "Hue",
        "Invert",
        "Perspective",
        "Posterization",
        "Rotation",
        "Saturation",
        "Sharpness",
        "Shear",
        "Translation",
        "Zoom",
    )
    if hasattr(layers, f"Random{name}")
)

# Output has the scale of the input and lies on its grid.
PASS_THROUGH = (
    *_AUGMENTATIONS,
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Dropout,
    layers.Flatten,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.RepeatVector,
    layers.Reshape,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
PASS_THROUGH_OPERATIONS = (
    "Amax",
    "Amin",
    "BroadcastTo",
    "Cast",
    "ConvertToTensor",
    "Copy",
    "DepthToSpace",
    "ExpandDims",
    "GetItem",
    "Identity",
    "Max",
    "MaxPool",
    "Min",
    "Moveaxis",
    "Pad",
    "Ravel",
    "Repeat",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "StopGradient",
    "Swapaxes",
    "Take",
    "Tile",
    "Transpose",
    "Unstack",
)

# Output has the scale of the input but must be rounded to its grid.
SAME_SCALE = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Resizing,
    layers.UpSampling2D,
)
SAME_SCALE_OPERATIONS = ("AveragePool", "Resize")

# All inputs and the output have one scale.
JOINS = (layers.Concatenate, layers.Maximum, layers.Minimum)
JOIN_OPERATIONS = ("Append", "Concatenate", "Maximum", "Minimum", "Stack", "Where")

# Output has a scale of its own.
OWN_SCALE = (
    layers.Add,
    layers.Embedding,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.LeakyReLU,
    layers.Multiply,
    layers.ReLU,
    layers.Subtract,
    Affine,
    ConstantTensor,
    *NORMALIZATIONS,
)
OWN_SCALE_OPERATIONS = (
    "Absolute",
    "Add",
    "Clip",
    "Einsum",
    "Exp",
    "Log",
    "Matmul",
    "Mean",
    "Multiply",
    "Rsqrt",
    "Sqrt",
    "Subtract",
    "Sum",
    "ZerosLike",
)

# Operations on integers and truth values, which are not quantized.
INDEX_OPERATIONS = (
    "Argmax",
    "Argmin",
    "Equal",
    "Greater",
    "GreaterEqual",
    "Less",
    "LessEqual",
    "LogicalAnd",
    "LogicalNot",
    "LogicalOr",
    "NotEqual",
)

# Activation -> whether TFLite prescribes the range of its output.
ACTIVATIONS = {
    "linear": False,
    "relu": False,
    "relu6": False,
    "leaky_relu": False,
    "gelu": False,
    "hard_silu": False,
    "softmax": True,
    "log_softmax": True,
    "sigmoid": True,
    "tanh": True,
}
# What the converter (TensorFlow 2.21) refuses or leaves float in 16 bits.
_ONLY_8_BITS = (layers.PReLU,)
_ONLY_8_BITS_OPERATIONS = (
    "Equal",
    "Greater",
    "GreaterEqual",
    "Less",
    "LessEqual",
    "Log",
    "NotEqual",
    "Repeat",
    "Tile",
)
_ONLY_8_BITS_ACTIVATIONS = ("gelu", "hard_silu", "log_softmax")

FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
_ALIASES = {"hard_swish": "hard_silu", "leakyrelu": "leaky_relu"}
_OPERATION_ACTIVATIONS = {
    "Gelu": "gelu",
    "HardSilu": "hard_silu",
    "LeakyRelu": "leaky_relu",
    "LogSoftmax": "log_softmax",
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Tanh": "tanh",
}


def prescribed_range(name, bits=8):
    """The range that TFLite prescribes for the output of an activation.

    Args:
        name: As `activation` returns it.
        bits: 8, or 16 (symmetric).

    Returns:
        `(low, high)`, or `None`.
    """
    if not ACTIVATIONS.get(name, False):
        return None
    if name == "log_softmax":
        return (-255 * 16 / 256, 0.0) if bits == 8 else (-16.0, 16.0 * 32767 / 32768)
    if bits == 16:
        return -1.0, 32767 / 32768
    return (-1.0, 127 / 128) if name == "tanh" else (0.0, 255 / 256)


def activation(operation):
    """Name of the activation that an activation layer or Keras operation applies.

    Returns:
        `"relu"`, `"softmax"`, ...; `None` if it is no activation.
    """
    if isinstance(operation, layers.Activation):
        name = getattr(operation.activation, "__name__", "custom")
        return _ALIASES.get(name, name)
    if isinstance(operation, layers.Softmax):
        return "softmax"
    if isinstance(operation, layers.LeakyReLU):
        return "leaky_relu"
    if isinstance(operation, layers.ReLU):
        return _relu_name(operation)
    if isinstance(operation, keras.layers.Layer):
        return None
    return _OPERATION_ACTIVATIONS.get(type(operation).__name__)


def _relu_name(relu):
    if relu.threshold != 0:
        return "thresholded_relu"
    if relu.negative_slope == 0:
        return {None: "relu", 6.0: "relu6"}.get(relu.max_value, "bounded_relu")
    return "leaky_relu" if relu.max_value is None else "bounded_leaky_relu"


def _is(operation, classes, names):
    if isinstance(operation, keras.layers.Layer):
        return type(operation) in classes
    return type(operation).__name__ in names


def is_addition(operation):
    """Whether it is `x + y` or `keras.layers.Add`."""
    return _is(operation, (layers.Add,), ("Add",))


def passes_through(operation):
    """Whether the output lies on the grid of the input."""
    if isinstance(operation, layers.Activation) and activation(operation) == "linear":
        return True
    return _is(operation, PASS_THROUGH, PASS_THROUGH_OPERATIONS)


def keeps_scale(operation):
    """Whether the output is rounded to the grid of the input."""
    if isinstance(operation, layers.UpSampling2D) or _resizes(operation):
        return getattr(operation, "interpolation", "bilinear") != "nearest"
    return _is(operation, SAME_SCALE, SAME_SCALE_OPERATIONS)


def _resizes(operation):
    return isinstance(operation, layers.Resizing) or type(operation).__name__ == (
        "Resize"
    )


def joins(operation):
    """Whether all inputs and the output have one scale."""
    return _is(operation, JOINS, JOIN_OPERATIONS)


def shares_scale(operation):
    """Whether the output has the scale of the input."""
    same = _is(operation, SAME_SCALE, SAME_SCALE_OPERATIONS)
    return passes_through(operation) or same or joins(operation)


def known(operation):
    """Whether the operation can be quantized as it is."""
    name = activation(operation)
    if name is not None:
        return name in ACTIVATIONS
    classes = (*KERNELS, *PASS_THROUGH, *SAME_SCALE, *JOINS, *OWN_SCALE)
    names = (
        *PASS_THROUGH_OPERATIONS,
        *SAME_SCALE_OPERATIONS,
        *JOIN_OPERATIONS,
        *OWN_SCALE_OPERATIONS,
        *INDEX_OPERATIONS,
    )
    return _is(operation, classes, names)


def only_8_bits(operation):
    """Whether the operation has no form with activations of 16 bits."""
    if isinstance(operation, layers.UpSampling2D):
        return operation.interpolation == "nearest"
    if activation(operation) in _ONLY_8_BITS_ACTIVATIONS:
        return True
    return _is(operation, _ONLY_8_BITS, _ONLY_8_BITS_OPERATIONS)
