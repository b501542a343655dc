"""What a Keras 2 model consists of, whether it lives in memory or in a file.

Neither `tf_keras` nor TFMOT is imported for a model in memory or an `.h5` file. A
`.keras` file or SavedModel of Keras 2 is loaded by `tf_keras`, which leaves `tf.keras`
as it is.

Example:
    ```python
    description = described(model)      # or read_h5("model.h5")
    [layer.class_name for layer in description.layers]
    ```
"""

import contextlib
import json
import os
from dataclasses import dataclass, field

import h5py
import numpy as np


@dataclass
class LegacyLayer:
    """A layer of a Keras 2 model.

    Attributes:
        name: Its name in the graph.
        class_name: `"Conv2D"`, `"PruneLowMagnitude"`, ...
        config: Its configuration.
        inbound: Its calls, in the form of Keras 2.
        weights: List of `(name, array)`: trainable ones, then the others.
        model: `LegacyModel` of a nested model in memory that has wrappers in it.
    """

    name: str
    class_name: str
    config: dict
    inbound: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    model: object = None


@dataclass
class LegacyModel:
    """A Keras 2 model.

    Attributes:
        name: Its name.
        kind: `"Functional"` or `"Sequential"`.
        layers: `LegacyLayer`s in the order of the model.
        inputs: For a functional one: structure of `[layer, node, tensor]`.
        outputs: Likewise.
    """

    name: str
    kind: str
    layers: list
    inputs: object = None
    outputs: object = None


def described(model):
    """Describes a `tf_keras` model.

    Args:
        model: Functional or Sequential model of Keras 2, TFMOT's wrappers included.

    Returns:
        A `LegacyModel`.

    Raises:
        ValueError: If it is a subclassed model, which has no graph to read.
    """
    try:
        config = model.get_config()
    except NotImplementedError:
        config = {}
    if not isinstance(config, dict) or "layers" not in config:
        raise ValueError(_subclassed(f"Model {model.name!r}"))
    kind = "Functional" if "output_layers" in config else "Sequential"
    weights = {
        layer.name: [
            (weight.name, _array(weight))
            for weight in layer.trainable_weights + layer.non_trainable_weights
        ]
        for layer in model.layers
    }
    if kind == "Sequential" and getattr(model, "input_shape", None) is not None:
        config = {**config, "build_input_shape": model.input_shape}
    found = from_config(kind, config, weights)
    inside = {layer.name: layer for layer in model.layers}
    for entry in found.layers:
        if is_model(entry.class_name) and holds_wrappers(entry.config):
            entry.model = described(inside[entry.name])
    return found


def read_h5(path):
    """Describes a whole model in an `.h5` file.

    Args:
        path: Path of a file that `model.save` of Keras 2 wrote.

    Returns:
        A `LegacyModel`.

    Raises:
        ValueError: If it holds weights only, or a subclassed model, or if Keras 1
            wrote it.
    """
    with opened(path) as file:
        if "model_config" not in file.attrs:
            raise ValueError(
                f"{os.fspath(path)!r} holds weights only. Build the model in Keras 3 "
                "and call model.load_weights(path)."
            )
        _check_keras_1(path)
        config = json.loads(_text(file.attrs["model_config"]))
        if not isinstance(config, dict) or not {"class_name", "config"} <= set(config):
            raise KeyError("`model_config` tells of no layers")
        groups = file["model_weights"]
        weights = {
            _text(name): [
                (_text(weight), np.asarray(groups[_text(name)][_text(weight)]))
                for weight in _attribute(groups[_text(name)], "weight_names")
            ]
            for name in _attribute(groups, "layer_names")
        }
    kind = "Functional" if config["class_name"] in MODELS else config["class_name"]
    if kind not in ("Functional", "Sequential"):
        raise ValueError(_subclassed(f"The model in {os.fspath(path)!r}"))
    return from_config(kind, config["config"], weights)


@contextlib.contextmanager
def opened(path):
    """Opens an `.h5` file; what is wrong with its content is a `ValueError`."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as err:
        raise ValueError(
            f"{os.fspath(path)!r} is damaged, or no model of Keras: {err}. Copy it "
            "again."
        ) from err


def _attribute(group, name):
    """An attribute, which Keras cuts into parts when it is long."""
    if name in group.attrs:
        return list(group.attrs[name])
    found, part = [], 0
    while f"{name}{part}" in group.attrs:
        found += list(group.attrs[f"{name}{part}"])
        part += 1
    return found


def keras_version(path):
    """The version of Keras that wrote an `.h5` file; `"1"` where it does not say."""
    with opened(path) as file:
        holder = file if "keras_version" in file.attrs else file.get("model_weights")
        version = None if holder is None else holder.attrs.get("keras_version")
    return "1" if version is None else _text(version)


def _check_keras_1(path):
    version = keras_version(path)
    if version.split(".")[0] == "1":
        raise ValueError(
            f"{os.fspath(path)!r} was written by Keras 1, whose layers have other "
            "arguments and orders of weights. Load it with Keras 2.0 to 2.3, which "
            "translate them (pip install keras==2.3.1 tensorflow==1.15 h5py==2.10, in "
            "Python 3.7), and save it there again."
        )


MODELS = ("Functional", "Model", "ModelV2")
# How the names of TFMOT's classes of wrappers begin.
WRAPPERS = (
    "PruneLowMagnitude",
    "ClusterWeights",
    "QuantizeAnnotate",
    "QuantizeWrapper",
)


def is_model(class_name):
    """Whether a class of Keras 2 is a model that has a graph."""
    return class_name.split(">")[-1] in (*MODELS, "Sequential")


def holds_wrappers(config):
    """Whether a layer in a model's config, nested ones included, has a wrapper."""
    return any(
        entry["class_name"].split(">")[-1].startswith(WRAPPERS)
        or is_model(entry["class_name"])
        and holds_wrappers(entry["config"])
        for entry in (config if isinstance(config, list) else config["layers"])
    )


def from_config(kind, config, weights):
    """A `LegacyModel` from the config of Keras 2.

    Args:
        kind: `"Functional"` or `"Sequential"`.
        config: What `get_config` of the model gave.
        weights: Dict from the name of a layer to its list of `(name, array)`.
    """
    # Keras 2.2 and older wrote the list of layers and nothing else.
    config = {"layers": config} if isinstance(config, list) else config
    layers = [_entry(*numbered, weights) for numbered in enumerate(config["layers"])]
    if kind == "Sequential" and layers[0].class_name != "InputLayer":
        shape = _first_shape(layers[0].config) or config.get("build_input_shape")
        if shape is None:
            raise ValueError(
                f"Sequential model {config.get('name')!r} has no input shape. Build it "
                "before it is saved: model.build(input_shape)."
            )
        entry = {"batch_input_shape": shape, "name": "input"}
        layers.insert(0, LegacyLayer("input", "InputLayer", entry))
    return LegacyModel(
        config.get("name", "model"),
        kind,
        layers,
        config.get("input_layers"),
        config.get("output_layers"),
    )


def _entry(number, entry, weights):
    config = entry["config"]
    if isinstance(config, list):
        # A Sequential model of Keras 2.2; inside another one it has no name there.
        name = entry.get("name") or (list(weights) or [f"sequential_{number}"])[number]
        config = {"name": name, "layers": config}
    name = entry.get("name") or config["name"]
    return LegacyLayer(
        name=name,
        class_name=entry["class_name"].split(">")[-1],
        config=config,
        inbound=entry.get("inbound_nodes") or [],
        weights=weights.get(name, []),
    )


def _first_shape(config):
    """The input shape that the first layer has, or the layer that it wraps."""
    while config:
        shape = config.get("batch_input_shape") or config.get("batch_shape")
        if shape is not None:
            return shape
        inner = config.get("layer")
        config = inner["config"] if isinstance(inner, dict) else None
    return None


def _array(weight):
    return np.asarray(weight.numpy())


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _subclassed(what):
    return (
        f"{what} is a subclassed Keras 2 model, which has no graph that could be "
        "read. Build the same model in Keras 3 and copy the weights: "
        "new.set_weights(old.get_weights())."
    )
