"""Loads saved models of any Keras version.

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

from tfcompress.legacy.build import build
from tfcompress.legacy.read import described, keras_version, read_h5


def load_model(path, *, custom_objects=None, compile=False):
    """Loads a `.keras` or `.h5` file as a Keras 3 model, whichever version wrote it.

    Files of Keras 3 are loaded by `keras.models.load_model`, safe mode on. Those of
    Keras 1 and 2 are rebuilt in Keras 3 with the same weights, and predict the same:
    arguments that went are translated, and what differs under one name (Keras 2's
    `hard_sigmoid`) keeps its old meaning. TFMOT's wrappers in an `.h5` file are taken
    off; `from_tfmot` keeps the ranges of quantization too.

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
        return build(description, custom_objects).model
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
    try:
        model = tf_keras.models.load_model(path, compile=False)
    except Exception as err:
        reason = " ".join(str(err).split())[:300]
        raise ValueError(
            f"Keras 2 cannot load {os.fspath(path)!r}: {reason}. If it has layers of "
            "your own, or TFMOT's, load it in tf_keras with them and pass the model "
            "to tfc.from_tfmot, or save it as an .h5 file."
        ) from err
    return described(model)
