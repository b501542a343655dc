"""Makes a Keras 3 layer from the class name and config of a Keras 2 one.

Example:
    ```python
    layer = make_layer("LeakyReLU", {"name": "act", "alpha": 0.1})
    ```
"""

import inspect

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="tfcompress")
def hard_sigmoid_keras2(x):
    """Keras 2's `hard_sigmoid`, `clip(0.2 x + 0.5, 0, 1)`; Keras 3's is steeper."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


# Old name -> name in Keras 3.
_CLASSES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "GRUV2": "GRU",
    "LSTMV2": "LSTM",
    "MaxPool2D": "MaxPooling2D",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}
_ACTIVATIONS = {
    "softmax_v2": "softmax",
    "swish": "silu",
    "leaky_relu_v2": "leaky_relu",
    "hard_sigmoid": hard_sigmoid_keras2,
}
_ACTIVATION_KEYS = ("activation", "recurrent_activation")

# Old key -> key in Keras 3.
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}, "ThresholdedReLU": {}}

# What Keras 3 has no argument for, and the values under which it changes nothing.
# `...` is any value: it says how something is computed or made, not what.
_DROPPED = {
    "adjustment": (None,),
    "noise_shape": (None,),
    "rng_type": (...,),
    "batch_input_shape": (...,),
    "dynamic": (False, None),
    "experimental_autocast": (...,),
    "fused": (...,),
    "groups": (1,),
    "implementation": (...,),
    "input_dim": (...,),
    "input_dtype": (...,),
    "input_length": (...,),
    "input_shape": (...,),
    "key_shape": (...,),
    "query_shape": (...,),
    "optional": (False,),
    "ragged": (False,),
    "renorm": (False,),
    "softmax_robust_masking": (False,),
    "sparse": (False, None),
    "time_major": (False,),
    # Only layers without weights have no such argument.
    "trainable": (...,),
    "value_shape": (...,),
    "virtual_batch_size": (None,),
}
# Same name, other meaning, and nothing in Keras 3 to express the old one.
_CHANGED = {
    "RandomCrop": (
        "crops at inference too, which that of Keras 3 does not. Put CenterCrop or "
        "Resizing in its place in the old model"
    ),
}

# They made the start values, which the weights replace. Those of TensorFlow 1 have
# arguments that Keras 3 has not.
_STARTS = ("_initializer",)


class UnsupportedLegacyLayer(ValueError):
    """A layer of Keras 2 that Keras 3 has not, or not with these settings."""


def layer_class(class_name, custom_objects):
    """The Keras 3 class for a Keras 2 one.

    Raises:
        UnsupportedLegacyLayer: If there is none.
    """
    if class_name in custom_objects:
        return custom_objects[class_name]
    if class_name in _CHANGED:
        raise UnsupportedLegacyLayer(f"{class_name!r} {_CHANGED[class_name]}.")
    found = getattr(keras.layers, _CLASSES.get(class_name, class_name), None)
    if class_name == "Lambda" or not inspect.isclass(found):
        what = (
            "holds Python code that only the version that wrote it can run"
            if class_name == "Lambda"
            else "is no layer of Keras 3"
        )
        raise UnsupportedLegacyLayer(
            f"{class_name!r} {what}. Pass a Keras 3 layer class for it with the same "
            f"weights: custom_objects={{{class_name!r}: YourLayer}}."
        )
    return found


def make_layer(class_name, config, custom_objects=None):
    """Makes a Keras 3 layer, not built.

    Args:
        class_name: Its class in Keras 2.
        config: Its config in Keras 2.
        custom_objects: Dict from class names to classes of Keras 3.

    Returns:
        A `keras.layers.Layer`.

    Raises:
        UnsupportedLegacyLayer: If Keras 3 has no such layer, or it has a setting
            without counterpart; names it.
    """
    custom = custom_objects or {}
    cls = layer_class(class_name, custom)
    if class_name in custom:
        return cls.from_config(_plain(config))
    settings = _settings(class_name, config)
    known = _arguments(cls)
    arguments = {}
    for key, value in settings.items():
        if key.endswith(_STARTS) or key == "dtype" and _is_integer(value):
            continue
        if key in known:
            arguments[key] = _value(key, value, custom)
        elif not _may_go(key, value):
            raise UnsupportedLegacyLayer(
                f"layer {config.get('name')!r} ({class_name}) has {key}={value!r}, "
                "which Keras 3 has no counterpart for. Change it in the old model, or "
                f"pass custom_objects={{{class_name!r}: YourLayer}}."
            )
    return _called(cls, arguments, class_name, config)


def _settings(class_name, config):
    """The config under the names of Keras 3."""
    renamed = _RENAMED.get(class_name, {})
    settings = {renamed.get(k, k): v for k, v in config.items()}
    if class_name == "ThresholdedReLU":
        settings["threshold"] = settings.pop("theta")
    return settings


def _called(cls, arguments, class_name, config):
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as err:
        reason = " ".join(str(err).split())[:300]
        raise UnsupportedLegacyLayer(
            f"layer {config.get('name')!r} ({class_name}) has settings that Keras 3 "
            f"refuses: {reason}. Change them in the old model, or pass "
            f"custom_objects={{{class_name!r}: YourLayer}}."
        ) from err


def _may_go(key, value):
    if key.endswith(("_regularizer", "_constraint")):
        return value is None
    return key in _DROPPED and (_DROPPED[key] == (...,) or value in _DROPPED[key])


def _arguments(cls):
    """Names of the arguments that a layer's class takes."""
    names = set()
    for base in cls.__mro__:
        if base is keras.layers.Layer:
            names |= {"name", "trainable", "dtype", "activity_regularizer"}
            break
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self", "kwargs"}


def _value(key, value, custom):
    if key == "dtype":
        return dtype_name(value)
    if key in _ACTIVATION_KEYS:
        return activation(value)
    if key == "name":
        return safe_name(value)
    if isinstance(value, keras.layers.Layer):
        return value
    if key == "axis":
        return _axis(value)
    if isinstance(value, dict) and "class_name" in value and "config" in value:
        name = value["class_name"].split(">")[-1]
        if key in ("layer", "backward_layer", "cell", "forward_layer"):
            return make_layer(name, value["config"], custom)
        return {"class_name": name, "config": _plain(value["config"])}
    if key == "cells":
        return [make_layer(c["class_name"], c["config"], custom) for c in value]
    return _plain(value)


def activation(value):
    """The activation of Keras 3 for what a config of Keras 2 says."""
    if isinstance(value, dict):
        name, config = value.get("class_name", ""), value.get("config")
        if name.split(">")[-1] == "QuantizeAwareActivation":
            return activation(config["activation"])
        if name.split(">")[-1] == "NoOpActivation":
            return "linear"
        if isinstance(config, str):
            return activation(config)
        if inspect.isclass(getattr(keras.layers, name.split(">")[-1], None)):
            return make_layer(name.split(">")[-1], config)
        return keras.activations.get({"class_name": name, "config": _plain(config)})
    return _ACTIVATIONS.get(value, value)


def safe_name(name):
    """A name that Keras 3 takes: it has no `/` in names."""
    return name.replace("/", "_")


def dtype_name(value):
    """The name of a dtype or a policy."""
    if isinstance(value, dict):
        return value["config"]["name"]
    return getattr(value, "name", value)


def _is_integer(dtype):
    """Whether Keras 3 would round a layer's inputs, which Keras 2 did not."""
    return "int" in str(dtype_name(dtype))


def _axis(value):
    """Keras 2 wrote lists of one axis."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return int(value[0])
    return _plain(value)


def _plain(value):
    """Without the containers and numbers that TensorFlow wraps."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(map(_plain, value))
            if type(value) is tuple
            else [_plain(v) for v in value]
        )
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value
