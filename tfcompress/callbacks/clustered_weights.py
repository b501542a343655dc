"""What `cluster` put into a model, as a schedule drives it."""

import keras
import numpy as np

from tfcompress.graph import find_layers
from tfcompress.layers import (
    GroupCodebook,
    SharedValues,
    TransformWeights,
    find_weight,
)


class ClusteredWeight:
    """A weight that is replaced by entries of a codebook.

    Args:
        wrapper: `TransformWeights`.
        name: Name of the weight in the wrapper's `transforms`.
        position: Position of the transform in the list there.

    Attributes:
        fraction: What part of the weights that are not zero is replaced; `None` for
            whole blocks, which always are.
    """

    def __init__(self, wrapper, name, position):
        self.transform = wrapper.transforms[name][position]
        self.state = dict(wrapper.states[name][position])
        self.latent = find_weight(wrapper.layer, name)
        self.group = None
        if isinstance(self.transform, GroupCodebook):
            self.group = wrapper.layer
            self.state["centroids"] = wrapper.layer.codebook
        self.joins = "threshold" in self.state
        self.fraction = self._fraction() if self.joins else None

    def join(self, fraction):
        """Has a fraction of the weights replaced, the largest ones."""
        if not self.joins:
            return
        sizes = np.abs(self._weight())
        sizes = sizes[sizes > 0]
        left = sizes.size - round(fraction * sizes.size)
        threshold = np.inf
        if left == 0:
            threshold = 0.0
        elif left < sizes.size:
            threshold = np.partition(sizes, left)[left]
        self.state["threshold"].assign(threshold)
        self.fraction = fraction

    def _fraction(self):
        threshold = float(self.state["threshold"].numpy())
        if threshold == 0:
            return 1.0
        sizes = np.abs(self._weight())
        return float(np.mean(sizes[sizes > 0] >= threshold)) if sizes.any() else 0.0

    def members(self):
        """The weight, with zeros in place of what is not replaced."""
        weight = self._weight()
        if self.joins:
            threshold = float(self.state["threshold"].numpy())
            weight = np.where(np.abs(weight) < threshold, 0, weight)
        return weight

    def _weight(self):
        return np.asarray(self.latent.numpy(), "float32")


def clustered_weights(model):
    """All `ClusteredWeight`s of a model, of a distiller in its student."""
    student = getattr(model, "student", None)
    model = student if isinstance(student, keras.Model) else model
    return [
        ClusteredWeight(wrapper, name, position)
        for wrapper in find_layers(model, TransformWeights)
        for name, chain in wrapper.transforms.items()
        for position, transform in enumerate(chain)
        if isinstance(transform, SharedValues)
    ]


def kmeans_step(weights):
    """Moves every codebook by a step of k-means; those in a group by all its weights.

    Args:
        weights: List of `ClusteredWeight`.
    """
    groups = {}
    for weight in weights:
        groups.setdefault(id(weight.group or weight), []).append(weight)
    for members in groups.values():
        first = members[0]
        values = first.members()
        if first.group is not None:
            values = np.concatenate([m.members().ravel() for m in members])
        state = {name: v.numpy() for name, v in first.state.items()}
        for name, value in first.transform.kmeans(values, state).items():
            first.state[name].assign(value)
