"""A weight that is held on its mask by a constraint while a `fit` lasts."""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.numerics import masks


class MaskedWeight:
    """A kernel with its mask.

    Args:
        variable: The `keras.Variable`.
        final: Sparsity of its own at the end of the schedule; `None` follows the
            schedule.
    """

    def __init__(self, variable, final):
        self.variable = variable
        self.final = final
        self.mask = tf.Variable(
            tf.ones(variable.shape, tf.bool), trainable=False, name="mask"
        )
        self.size = int(np.prod(variable.shape))
        self.zeros = 0

    def attach(self):
        """Puts the mask behind the user's constraint, if there is one."""
        self.variable.constraint = Project(self.variable.constraint, self.mask)

    def detach(self):
        """Puts the user's constraint back."""
        release(self.variable)

    def find_mask(self, at_least):
        """Takes the zeros in the weights for the mask that an earlier pruning left."""
        found = masks.kept_zeros(self.variable.numpy(), at_least)
        if found is not None:
            self._set(found)

    def raise_sparsity(self, share, scheduled):
        """Prunes to the share of its own final sparsity that the schedule is at."""
        sparsity = scheduled if self.final is None else share * self.final
        if round(sparsity * self.size) > self.zeros:
            # What the mask dropped must not come back even if an average over time
            # has made it non-zero meanwhile.
            weight = np.where(np.asarray(self.mask), self.variable.numpy(), 0)
            self._set(masks.magnitude_mask(weight, sparsity))
        self.apply_mask()

    def apply_mask(self):
        """Sets what is masked to zero."""
        weight = self.variable.numpy()
        self.variable.assign(np.where(np.asarray(self.mask), weight, 0))

    def _set(self, mask):
        self.mask.assign(mask)
        self.zeros = self.size - int(np.count_nonzero(mask))


class Project(keras.constraints.Constraint):
    """The user's constraint, if any, and then the mask."""

    def __init__(self, inner, mask):
        self.inner = inner
        self.mask = mask

    def __call__(self, w):
        w = keras.ops.convert_to_tensor(w if self.inner is None else self.inner(w))
        return tf.where(self.mask, w, tf.zeros_like(w))


def release(variable):
    """Takes a mask off, also one that a `fit` left behind when it raised."""
    if isinstance(variable.constraint, Project):
        variable.constraint = variable.constraint.inner
