"""The folder of a run: what it was started with, and what each stage left.

Example:
    ```python
    folder = RunFolder("out")
    folder.check({"recipe": ..., "model": ..., "data": ...})
    folder.begin({"recipe": ..., "model": ..., "data": ...})
    if not folder.is_done(stage):
        folder.finish(stage, model, {"accuracy": 0.9})
    ```
"""

import hashlib
import json
import os
import pathlib
import shutil

import keras
import numpy as np

from tfcompress.deploy.files import save_keras, written_atomically
from tfcompress.graph import config_text, find_layers


class RunFolder:
    """Files of a run.

    `run.json` holds what the run was started with, and each stage has a folder with
    `report.json`, written last, and `model.keras` if it changed the model.

    Args:
        path: Folder; made if it is missing.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def check(self, started_with):
        """Raises unless the folder is free, or holds a run that was started so.

        Args:
            started_with: Dict of plain data that must be the same to go on.

        Raises:
            ValueError: If the folder holds another run, or things that are none.
        """
        file = self.path / "run.json"
        if file.exists():
            self._check_same(json.loads(file.read_text()), started_with)
        elif self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`directory` is a file: {os.fspath(self.path)!r}")
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"Folder {os.fspath(self.path)!r} holds files, and no run of a recipe. "
                "Give an empty or a new one."
            )

    def begin(self, started_with):
        """Claims the folder for a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", started_with)

    def _check_same(self, there, here):
        for key, value in here.items():
            if there.get(key) == value:
                continue
            what = f"another {key.replace('_', ' ')}"
            if key == "recipe":
                what += _first_difference(there.get(key, []), value)
            raise ValueError(
                f"Folder {os.fspath(self.path)!r} holds a run with {what}. To go on "
                "with that run, give what it was started with; to start this one, give "
                "another folder or delete that one."
            )

    def stage(self, number, name):
        """The folder of a stage."""
        return self.path / f"{number:02d}_{name}"

    def backup(self, number, name):
        """The folder of what a training stage needs to go on; `finish` removes it."""
        return self.stage(number, name) / "backup"

    def report_of(self, number, name):
        """What `finish` wrote of a stage, or `None` if it is not done."""
        file = self.stage(number, name) / "report.json"
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, number, name, report, model=None):
        """Writes a stage's model, if it made one, and then its report."""
        folder = self.stage(number, name)
        folder.mkdir(exist_ok=True)
        if model is not None:
            save_keras(model, folder / "model.keras")
        write_json(folder / "report.json", report)
        shutil.rmtree(self.backup(number, name), ignore_errors=True)

    def load(self, number, name):
        """The model that a stage left, not compiled."""
        path = self.stage(number, name) / "model.keras"
        return keras.models.load_model(path, compile=False)


def write_json(path, data):
    """Writes plain data so that an old file stays until the new one is whole."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n")


def model_fingerprint(model):
    """A string that is the same for the same layers and weights, whatever their names.

    Args:
        model: Built `keras.Model`.
    """
    found = hashlib.sha256()
    for layer in find_layers(model, keras.layers.Layer):
        found.update(type(layer).__name__.encode())
        if not isinstance(layer, keras.Model):
            found.update(config_text(layer).encode())
    for variable in model.weights:
        array = np.asarray(variable.numpy(), "float32")
        found.update(f"{variable.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _first_difference(there, here):
    for number, (old, new) in enumerate(zip(there, here, strict=False), start=1):
        if old != new:
            return f": its stage {number} is {old!r}, here it is {new!r}"
    return f": it has {len(there)} stage(s), here there are {len(here)}"
