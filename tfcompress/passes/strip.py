"""Takes off what the passes put on, and leaves a plain Keras model.

Example:
    ```python
    plain = tfc.strip(qat)   # same layers as before, with the effective weights
    ```
"""

import keras

from tfcompress.checks import check_model
from tfcompress.graph import Graph, built_copy, find_layers, flatten, rewrite
from tfcompress.layers import (
    ConstantFakeQuant,
    FakeQuant,
    FusedBatchNormalization,
    LayerGroup,
    NormalizedKernel,
    TransformWeights,
    find_weight,
)
from tfcompress.passes.distill import Distiller
from tfcompress.passes.distill_mutually import MutualDistiller


def strip(model):
    """Returns a plain Keras model that computes with the effective weights.

    Of a distiller it is the student; wrappers give way to their layers, whose weights
    become the effective ones (values of their codebook, rounded to their grid, zeros at
    zero); the rounding of activations goes.

    Args:
        model: What a pass of this library returned, trained or not.

    Returns:
        A new `keras.Model` of Keras' own layers, not compiled. A model that has nothing
        to strip is returned as it is.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it has several students.
    """
    check_model(model)
    if isinstance(model, Distiller):
        return strip(model.student)
    if isinstance(model, MutualDistiller):
        raise ValueError(
            f"{model.name!r} has {len(model.students)} students. Strip one of them: "
            "tfc.strip(model.students[0])."
        )
    ours = (FakeQuant, ConstantFakeQuant, TransformWeights)
    if not find_layers(model, ours):
        return model
    return rewrite(Graph(flatten(model)), _Strip())


class _Strip:
    """Visitor that calls plain layers in place of ours."""

    def __init__(self):
        self.plain = {}

    def __call__(self, call, clone, args, kwargs):
        operation = call.operation
        if isinstance(operation, (FakeQuant, ConstantFakeQuant)):
            return args[0]
        if isinstance(operation, TransformWeights):
            if id(operation) not in self.plain:
                self.plain[id(operation)] = effective_layer(operation)
            plain = self.plain[id(operation)]
            if isinstance(plain, LayerGroup):
                plain = plain.members[kwargs.pop("member")]
            if isinstance(plain, NormalizedKernel):
                return self._normalized(plain)(*args, **kwargs)
            return plain(*args, **kwargs)
        if isinstance(operation, FusedBatchNormalization):
            return self._normalization(operation)(*args, **kwargs)
        return clone(operation)(*args, **kwargs)

    def _normalized(self, pair):
        normalization = self._normalization(pair.normalization)
        return lambda x, **kwargs: normalization(pair.layer(x), **kwargs)

    def _normalization(self, fused):
        if id(fused) not in self.plain:
            self.plain[id(fused)] = built_copy(
                fused, into=keras.layers.BatchNormalization
            )
        return self.plain[id(fused)]


def effective_layer(wrapper, **changes):
    """A copy of the wrapped layer that holds the effective weights.

    Args:
        wrapper: `TransformWeights`.
        **changes: Entries of the layer's config to replace.
    """
    layer = built_copy(wrapper.layer, **changes)
    for name, value in wrapper.effective_weights().items():
        find_weight(layer, name).assign(value)
    return layer
