"""A weight that is held on its mask by a constraint while a `fit` lasts."""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.numerics import masks, scores


class MaskedWeight:
    """A kernel with its mask.

    Args:
        variable: The `keras.Variable`.
        path: Its path, which scores may depend on.
        score: Function from weight, path and gradient to scores (`numerics.scores`).
        pattern: One of `numerics.patterns`.
        final: Sparsity of its own at the end of the schedule; `None` follows the
            schedule.

    Attributes:
        gradient: Array that the score may read, set before masks are updated.
    """

    def __init__(self, variable, path, score, pattern, final=None):
        self.variable = variable
        self.path = path
        self.score = score
        self.pattern = pattern
        self.final = final
        self.gradient = None
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

    def raise_sparsity(self, sparsity):
        """Drops the lowest weights until there are so many zeros."""
        dropped = round(sparsity * self.size)
        # Not compared with the zeros there are: some may stand where a pattern has none
        # to give, and others have to go all the same.
        if dropped:
            units = self.units()
            self.keep_units(masks.keep_highest(units, dropped, self.unit_sizes()))
        self.apply_mask()

    def units(self):
        """Scores of the pattern's units, a vector; lowest where nothing is left."""
        weight = self.variable.numpy().astype("float32")
        found = self.score(weight, self.path, self.gradient)
        found = scores.checked(found, weight, self.path)
        # What the mask dropped must not come back even if an average over time has
        # made it non-zero meanwhile.
        return self.pattern.units(found, np.asarray(self.mask))

    def unit_sizes(self):
        """Weights of each unit: a vector, or 1."""
        return self.pattern.sizes(self.variable.shape)

    def keep_units(self, keep):
        """Drops all other units; what was dropped before stays so."""
        mask = self.pattern.spread(keep, tuple(self.variable.shape))
        self._set(mask & np.asarray(self.mask))

    def apply_mask(self):
        """Sets what is masked to zero."""
        weight = self.variable.numpy()
        self.variable.assign(np.where(np.asarray(self.mask), weight, 0))

    def _set(self, mask):
        self.mask.assign(mask)
        self.zeros = self.size - int(np.count_nonzero(mask))


def raise_together(pruned, sparsity):
    """Drops the lowest weights of several kernels until they have so many zeros.

    Args:
        pruned: List of `MaskedWeight`.
        sparsity: Fraction of zeros in all of them; each keeps a unit.
    """
    dropped = round(sparsity * sum(p.size for p in pruned))
    if dropped:
        units = [p.units() for p in pruned]
        for scores_of_one in units:
            scores_of_one[np.argmax(scores_of_one)] = np.inf
        sizes = [p.unit_sizes() for p in pruned]
        sizes = np.concatenate(sizes) if np.ndim(sizes[0]) else 1
        keep = masks.keep_highest(np.concatenate(units), dropped, sizes)
        ends = np.cumsum([len(u) for u in units])[:-1]
        for one, kept in zip(pruned, np.split(keep, ends), strict=True):
            one.keep_units(kept)
    for one in pruned:
        one.apply_mask()


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
