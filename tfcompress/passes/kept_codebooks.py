"""Codebooks that an earlier clustering left, for the passes behind it.

Example:
    ```python
    kept = KeptCodebooks.of(clustered)
    kept.transform("dense", "kernel", values, axes=(-1,))   # a Codebook, or None
    ```
"""

import numpy as np

from tfcompress.graph import find_layers
from tfcompress.layers import (
    Codebook,
    GroupCodebook,
    KeepZeros,
    LayerGroup,
    SharedValues,
    TransformWeights,
)
from tfcompress.numerics.centroids import few_values

# A plain weight counts as clustered with so many different values at most, each of
# which it has so many times on average.
_MOST_VALUES, _LEAST_REPEATS = 64, 8


class KeptCodebooks:
    """What is known of the codebooks of a model.

    Args:
        chains: Dict from the name of a clustered layer to a dict from the name of its
            weight to the transforms it had.
    """

    def __init__(self, chains):
        self.chains = chains

    @classmethod
    def of(cls, model):
        """Reads them from the wrappers that `tfc.cluster` put on layers."""
        chains = {}
        for wrapper in find_layers(model, TransformWeights):
            for name, chain in wrapper.transforms.items():
                layer = wrapper.layer.name
                if isinstance(wrapper.layer, LayerGroup):
                    layer, _, name = name.partition("/")
                if any(isinstance(t, SharedValues) for t in chain):
                    chains.setdefault(layer, {})[name] = chain
        return cls(chains)

    def weights(self, layer):
        """Names of the weights of a layer that were clustered."""
        return tuple(self.chains.get(layer, ()))

    def keeps_zeros(self, path):
        """Whether zeros were kept in a layer; `None` if it was not clustered."""
        chains = self._chains_on(path)
        if not chains:
            return None
        return any(isinstance(t, KeepZeros) for chain in chains for t in chain)

    def transform(self, path, name, values, axes=()):
        """The transform by which a weight keeps its few values.

        Args:
            path: Path of the layer; of a part of a rewritten layer, that layer is the
                first in it (`"mha/mha_query"`).
            name: Name of the weight.
            values: The weight, a numpy array.
            axes: The axes that are its output channels.

        Returns:
            A `SharedValues`: that of the layer with the name; of a part of a clustered
            layer one of its codebooks that has all values; of a plain weight with few
            values one that starts with these. `None` if it has many.
        """
        if name in self.chains.get(path, ()):
            return _alone(self.chains[path][name][-1])
        for chain in self._chains_on(path):
            for candidate in _candidates(chain[-1], axes):
                if candidate.represents(values):
                    return candidate
        return _of_plain(values)

    def _chains_on(self, path):
        return [
            chain
            for layer in path.split("/")
            for chain in self.chains.get(layer, {}).values()
        ]


def _alone(transform):
    """The transform with a codebook of its own."""
    if isinstance(transform, GroupCodebook):
        return Codebook(**transform.get_config())
    return transform


def _candidates(transform, axes):
    transform = _alone(transform)
    if not isinstance(transform, Codebook):
        return
    for kept in {(), tuple(axes)}:
        yield Codebook(**transform.get_config() | {"axes": kept})


def _of_plain(values):
    found = few_values(np.asarray(values, "float32"), _MOST_VALUES)
    if found is None or found.size < 2 or found.size * _LEAST_REPEATS > values.size:
        return None
    return Codebook(clusters=max(np.count_nonzero(found) + 1, 2))
