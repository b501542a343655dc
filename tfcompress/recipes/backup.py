"""What a `fit` needs to go on after a kill, whenever that comes.

Example:
    ```python
    backup = EpochBackup("out/04_fit/backup")
    model.fit(x, y, epochs=20, initial_epoch=backup.epoch, callbacks=[backup])
    ```
"""

import os
import pathlib
import re
import shutil

import keras

_NAME = re.compile(r"epoch_(\d+)\.weights\.h5")


class EpochBackup(keras.callbacks.Callback):
    """Keeps weights and optimizer state of the last whole epoch, on disk in one step.

    `keras.callbacks.BackupAndRestore` writes weights and epoch in place and one after
    the other: a kill between leaves an empty file, or weights of another epoch. Here
    the name of the one file tells the epoch. It must stand before callbacks that mask
    weights.

    Args:
        folder: Where the file is; made when it is needed.
        delete: Whether it is removed when training ends. A run that is started again
            then begins anew.

    Attributes:
        epoch: Number of epochs that are done, 0 for none: `initial_epoch` of `fit`.
    """

    def __init__(self, folder, *, delete=False):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.delete = delete

    @property
    def epoch(self):
        return max(self._files(), default=0)

    def _files(self):
        """Dict from the number of epochs to the file."""
        if not self.folder.is_dir():
            return {}
        found = {path: _NAME.fullmatch(path.name) for path in self.folder.iterdir()}
        return {int(match[1]): path for path, match in found.items() if match}

    def on_train_begin(self, logs=None):
        if not self.epoch:
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            # Its state is loaded only if it is there.
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(self._files()[self.epoch])

    def on_epoch_end(self, epoch, logs=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._files()
        temporary = self.folder / "next.weights.h5"
        self.model.save_weights(temporary, overwrite=True)
        os.replace(temporary, self.folder / f"epoch_{epoch + 1:05}.weights.h5")
        for number, path in before.items():
            if number != epoch + 1:
                path.unlink()

    def on_train_end(self, logs=None):
        if self.delete:
            shutil.rmtree(self.folder, ignore_errors=True)
