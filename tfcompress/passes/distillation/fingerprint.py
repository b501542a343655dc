"""Knowing teachers again, by what they compute with.

Example:
    ```python
    fingerprint([teacher]) == fingerprint([keras.models.load_model("teacher.keras")])
    ```
"""

import hashlib

import keras

from tfcompress.graph import config_text


def fingerprint(teachers):
    """A text that is the same for the same teachers, in other processes too.

    Args:
        teachers: List of `keras.Model`, or of layers that stand for one; such a layer
            may have `fingerprint_content()`, bytes that are read for it.

    Returns:
        Hexadecimal digits of a hash over layers, their settings and all weights.
    """
    state = hashlib.blake2b(digest_size=16)
    for teacher in teachers:
        if hasattr(teacher, "fingerprint_content"):
            state.update(teacher.fingerprint_content())
        elif isinstance(teacher, keras.Model):
            for layer in teacher._flatten_layers():
                state.update(type(layer).__name__.encode())
                # Of a model: its layers, and names that say nothing.
                if not isinstance(layer, keras.Model):
                    state.update(config_text(layer).encode())
        for variable in teacher.weights:
            state.update(f"{variable.dtype}{tuple(variable.shape)}".encode())
            state.update(variable.numpy().tobytes())
    return state.hexdigest()
