"""Weight transforms: pure functions of a weight and a little state.

A transform keeps shape and dtype, keeps zeros at zero, is idempotent while its state
does not change, and lets the gradient reach the latent weight. `TransformWeights`
applies lists of them.

Example:
    ```python
    transforms = {"kernel": [KeepZeros(), FakeQuantizeWeight(bits=8)]}
    ```
"""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.numerics import affine, masks


class Transform:
    """Base of all transforms.

    A subclass defines `__call__(weight, state)` and, if it has state, `initial_state`.
    """

    def initial_state(self, weight):
        """State that is stored with the model.

        Args:
            weight: Latent weight, numpy array.

        Returns:
            Dict from name to numpy array.
        """
        return {}

    def __call__(self, weight, state):
        """Returns the effective weight.

        Args:
            weight: Latent weight, float tensor.
            state: Dict from name to tensor.
        """
        raise NotImplementedError

    def get_config(self):
        """Returns the constructor's arguments."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        """Rebuilds the transform from `get_config()`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfcompress")
class KeepZeros(Transform):
    """Holds the weights at zero that were zero when the transform was attached."""

    def initial_state(self, weight):
        mask = masks.kept_zeros(weight)
        return {"mask": np.ones(weight.shape, bool) if mask is None else mask}

    def __call__(self, weight, state):
        return tf.where(state["mask"], weight, tf.zeros_like(weight))


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantizeWeight(Transform):
    """Rounds to a symmetric integer grid (`numerics.affine.fake_quantize_weight`).

    Args:
        bits: Width of the integers, 2 to 16.
        axes: Axes with scales of their own; `()` for one scale.
    """

    def __init__(self, bits=8, axes=(-1,)):
        self.bits = bits
        self.axes = tuple(axes)

    def __call__(self, weight, state):
        return affine.fake_quantize_weight(weight, bits=self.bits, axes=self.axes)
