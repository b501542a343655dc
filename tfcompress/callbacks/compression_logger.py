"""Writes what compression does to the weights to TensorBoard.

Example:
    ```python
    callbacks = [tfc.Pruning(0.8), tfc.CompressionLogger("logs")]
    model.fit(x, y, epochs=10, callbacks=callbacks)
    ```

    Then, in a shell: `tensorboard --logdir logs`.
"""

import os

import keras
import numpy as np
import tensorflow as tf

from tfcompress.callbacks.quantized_parts import QuantizedParts
from tfcompress.checks import check_model
from tfcompress.graph import find_layers, kernels
from tfcompress.layers import TransformWeights, find_weight
from tfcompress.selection import select


class CompressionLogger(keras.callbacks.Callback):
    """Logs, for every kernel, zeros, threshold and change of the mask each epoch.

    The scalars are `sparsity` (of all kernels), and below the path of each kernel

    - `sparsity/...`: its fraction of exact zeros;
    - `threshold/...`: its smallest weight that is not zero, in size;
    - `mask_changes/...`: the fraction of its weights that became zero or ceased to be
      since the epoch before (not written for the first);

    and, of a quantization-aware model, `range_low/...` and `range_high/...` of each
    activation quantizer that has seen data. The step is the epoch.

    Args:
        log_dir: Folder for the event file; `tf.keras.callbacks.TensorBoard` may use the
            same.
        include: Regular expression(s) on the kernel's path, or predicate(s): only these
            kernels are logged.
        exclude: The same: these are not.

    Raises:
        ValueError: At the start of `fit` if a pattern matches nothing.
    """

    def __init__(self, log_dir, *, include=None, exclude=None):
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.include = include
        self.exclude = exclude
        self._zeros = {}
        self._writer = None

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            "log_dir": self.log_dir,
            "include": self.include,
            "exclude": self.exclude,
        }

    # Keras calls these.

    def on_train_begin(self, logs=None):
        check_model(self.model)
        found = kernels(self.model)
        self._kernels = {
            path: found[path]
            for path in select(found, include=self.include, exclude=self.exclude)
        }
        self._zeros = {}
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch, logs=None):
        with self._writer.as_default(step=epoch):
            self._write_kernels()
            self._write_ranges()
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()

    # How it works.

    def _write_kernels(self):
        effective = _effective(self.model)
        zeros = size = 0
        for path, variable in self._kernels.items():
            weight = np.asarray(effective.get(id(variable), variable.value), "float32")
            zero = weight == 0
            zeros, size = zeros + np.count_nonzero(zero), size + zero.size
            _write(f"sparsity/{path}", zero.mean())
            if not zero.all():
                _write(f"threshold/{path}", np.abs(weight[~zero]).min())
            if path in self._zeros:
                changed = np.mean(zero != self._zeros[path])
                _write(f"mask_changes/{path}", changed)
            self._zeros[path] = zero
        if size:
            _write("sparsity", zeros / size)

    def _write_ranges(self):
        for quantizer in QuantizedParts.of(self.model).quantizers:
            found = quantizer.range()
            if found is not None and quantizer.fixed_range is None:
                _write(f"range_low/{quantizer.name}", found[0])
                _write(f"range_high/{quantizer.name}", found[1])


def _write(tag, value):
    # As `tf.summary.scalar` does, which needs the TensorBoard package to be installed.
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
    tf.summary.write(tag, tf.constant(value, tf.float32), metadata=metadata)


def _effective(model):
    """What wrapped layers compute with, by the identity of the latent weight."""
    return {
        id(find_weight(wrapper.layer, name)): value
        for wrapper in find_layers(model, TransformWeights)
        for name, value in wrapper.effective_weights().items()
    }
