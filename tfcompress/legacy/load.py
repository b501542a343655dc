"""Loads saved models of Keras 2 and 3.

Example:
    ```python
    model = tfc.load_model("model_of_2019.h5")
    ```
"""

import json
import os
import pathlib
import zipfile

import keras
from absl import logging

from tfcompress.checks import is_legacy_model
from tfcompress.legacy.build import build
from tfcompress.legacy.read import described, keras_version, read_h5


def load_model(path, *, custom_objects=None, compile=False):
    """Loads a `.keras` or `.h5` file of Keras 2 or 3 as a Keras 3 model.

    Files of Keras 3 are loaded by `keras.models.load_model`, safe mode on. Those of
    Keras 2 are rebuilt in Keras 3 with the same weights, and predict the same:
    arguments that went are translated, what differs under one name (Keras 2's
    `hard_sigmoid`) keeps its old meaning, and `/` in the names of layers becomes `_`.
    The code of a `Lambda` is not run: such a model is refused, but for an `.h5` file
    with a class for it in `custom_objects`. TFMOT's wrappers in an `.h5` file are taken
    off; `from_tfmot` keeps the ranges of quantization too. Files of Keras 1 are
    refused: the error says which versions turn them into ones of Keras 2.

    Args:
        path: Path of a `.keras` or `.h5` file, or of a folder with a SavedModel that
            Keras 2 wrote. The last, and a `.keras` file of Keras 2, need `tf_keras`.
        custom_objects: Dict from class names in the file to classes of Keras 3.
        compile: Whether the model gets the optimizer, loss and metrics that Keras 3
            saved with it. One of Keras 2 never does: compile it again.

    Returns:
        A `keras.Model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be loaded; says what is in the way and what to do.
    """
    path = checked_path(path)
    description = legacy_description(path)
    if description is not None:
        built = build(description, custom_objects)
        if built.quantizations:
            logging.warning(
                "%r is quantization-aware; this is the float model of it. "
                "tfc.from_tfmot(path) keeps its ranges and grids.",
                os.fspath(path),
            )
        return built.model
    try:
        return keras.models.load_model(
            path, custom_objects=custom_objects, compile=compile
        )
    except Exception as err:
        reason = " ".join(str(err).split())[:300] or type(err).__name__
        raise ValueError(
            f"Cannot load {os.fspath(path)!r} as a Keras 3 model: {reason}"
        ) from err


def checked_path(path):
    """The path, if there is something.

    Raises:
        FileNotFoundError: If there is nothing.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No such model file: {os.fspath(path)!r}")
    return path


def legacy_description(path):
    """The `LegacyModel` of a path, or `None` if Keras 3 wrote it or it is none."""
    path = pathlib.Path(path)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return _through_tf_keras(path)
        raise ValueError(
            f"{os.fspath(path)!r} is a folder without a SavedModel. Pass the .keras or "
            ".h5 file."
        )
    if _is_hdf5(path):
        old = _major(keras_version(path)) < 3
        return read_h5(path) if old else None
    if zipfile.is_zipfile(path):
        return _through_tf_keras(path) if _major(_zip_version(path)) < 3 else None
    return None


def _is_hdf5(path):
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _zip_version(path):
    # Where it is not to be found, Keras 3 shall say what is wrong.
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("metadata.json"))["keras_version"]
    except (KeyError, ValueError, zipfile.BadZipFile):
        return "3"


def _major(version):
    number = version.split(".")[0]
    return int(number) if number.isdigit() else 3


def _through_tf_keras(path):
    try:
        import tf_keras
    except ImportError as err:
        raise ValueError(
            f"{os.fspath(path)!r} was written by Keras 2, whose format only Keras 2 "
            "reads. Install it (pip install tf-keras), or load and save it there as "
            "an .h5 file."
        ) from err
    _check_no_code(path)
    try:
        model = tf_keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as err:
        reason = " ".join(str(err).split())[:300]
        raise ValueError(
            f"Keras 2 cannot load {os.fspath(path)!r}: {reason}. If it has layers of "
            "your own, or TFMOT's, load it in tf_keras with them and pass the model "
            "to tfc.from_tfmot, or save it as an .h5 file."
        ) from err
    if not is_legacy_model(model):
        raise ValueError(_EXPORTED.format(os.fspath(path)))
    return described(model)


_EXPORTED = (
    "{!r} holds functions without the layers that they came from: model.export or "
    "tf.saved_model.save wrote it. Load the .keras or .h5 file of that model instead."
)


def _check_no_code(path):
    """Raises an error if `tf_keras` would run Python code that the path holds."""
    texts = _metadata(path) if path.is_dir() else [_zip_config(path)]
    try:
        found = any(_holds_code(json.loads(text)) for text in texts)
    except ValueError as err:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {err}.") from err
    if found:
        raise ValueError(
            f"{os.fspath(path)!r} has a Lambda, whose Python code would run as it is "
            "loaded. If you trust it, load it in tf_keras and pass the model to "
            "tfc.from_tfmot, with a Keras 3 layer class that does the same: "
            "custom_objects={'Lambda': YourLayer}."
        )


def _zip_config(path):
    try:
        with zipfile.ZipFile(path) as file:
            return file.read("config.json")
    except (KeyError, zipfile.BadZipFile) as err:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {err}.") from err


def _metadata(path):
    """What a SavedModel says of its layers, in JSON; nothing is loaded."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

    file = path / "keras_metadata.pb"
    try:
        if file.is_file():
            nodes = SavedMetadata.FromString(file.read_bytes()).nodes
        else:
            # Until TensorFlow 2.4.
            model = SavedModel.FromString((path / "saved_model.pb").read_bytes())
            objects = model.meta_graphs[0].object_graph_def.nodes
            nodes = [node.user_object for node in objects]
    except (DecodeError, IndexError) as err:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {err}.") from err
    texts = [node.metadata for node in nodes if node.metadata]
    if not texts:
        raise ValueError(_EXPORTED.format(os.fspath(path)))
    return texts


def _holds_code(config):
    """Whether a `Lambda`, or a lambda as an activation, is in a config."""
    if isinstance(config, dict):
        name = config.get("class_name")
        if isinstance(name, str) and name.split(">")[-1] in ("Lambda", "__lambda__"):
            return True
        config = list(config.values())
    return isinstance(config, list) and any(map(_holds_code, config))
