"""The one wrapper that lets a layer compute with transformed weights.

The wrapped layer is used as it is, whatever it is: while it runs, Keras substitutes the
effective weights for the latent ones (`graph.substituted`). The optimizer and the
regularizers see the latent weights.

Example:
    ```python
    quantized = TransformWeights(dense, {"kernel": [FakeQuantizeWeight(bits=8)]})
    y = quantized(x)
    quantized.effective_weights()["kernel"]   # numpy array on the integer grid
    ```
"""

import keras
import numpy as np

from tfcompress.graph import substituted


@keras.saving.register_keras_serializable(package="tfcompress")
class TransformWeights(keras.layers.Wrapper):
    """Runs a layer with transformed weights.

    Args:
        layer: The layer, built (transforms may look at the weights it has).
        transforms: Dict from the name of a weight (`"kernel"`) to a list of
            `Transform`, applied from left to right.

    Raises:
        ValueError: If the layer is not built or has no weight of such a name.
    """

    def __init__(self, layer, transforms, **kwargs):
        kwargs.setdefault("name", layer.name)
        super().__init__(layer, **kwargs)
        if not layer.built:
            raise ValueError(
                f"Layer {layer.name!r} is not built, so it has no weights to transform "
                "yet. Call it once, or `layer.build(input_shape)`, first."
            )
        self.transforms = {name: list(found) for name, found in transforms.items()}
        for name in self.transforms:
            self._variable(name)
        self._states = {
            name: [self._add_state(name, i, t) for i, t in enumerate(chain)]
            for name, chain in self.transforms.items()
        }
        self.built = True

    def _add_state(self, name, position, transform):
        initial = transform.initial_state(self._variable(name).numpy())
        return {
            key: self.add_weight(
                name=f"{name}_{position}_{key}",
                shape=value.shape,
                initializer=_exactly(value),
                dtype=value.dtype.name,
                trainable=False,
            )
            for key, value in initial.items()
        }

    def _variable(self, name):
        found = [v for v in self.layer.weights if v.name == name]
        if len(found) != 1:
            names = sorted(v.name for v in self.layer.weights)
            raise ValueError(
                f"Layer {self.layer.name!r} must have one weight named {name!r} to "
                f"transform. Received: weights {names}"
            )
        return found[0]

    def _effective(self):
        """Pairs of latent variable and effective tensor."""
        pairs = []
        for name, chain in self.transforms.items():
            variable = self._variable(name)
            tensor = variable.value
            for transform, state in zip(chain, self._states[name], strict=True):
                tensor = transform(tensor, {k: v.value for k, v in state.items()})
            pairs.append((variable, tensor))
        return pairs

    def effective_weights(self):
        """Returns a dict from weight name to effective weight, numpy arrays."""
        return {v.name: np.asarray(tensor) for v, tensor in self._effective()}

    def call(self, inputs, *args, **kwargs):
        pairs = self._effective()
        with substituted(pairs) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        # The scope catches what the layer updates (batch statistics, random seeds).
        for variable in self.layer.non_trainable_variables:
            updated = scope.get_current_value(variable)
            if updated is not None:
                variable.assign(updated)
        return outputs

    def compute_output_spec(self, inputs, *args, **kwargs):
        return self.layer.compute_output_spec(inputs, *args, **kwargs)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def get_config(self):
        return {
            **super().get_config(),
            "transforms": {
                name: [keras.saving.serialize_keras_object(t) for t in chain]
                for name, chain in self.transforms.items()
            },
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(
            config.pop("layer"), custom_objects
        )
        transforms = {
            name: [
                keras.saving.deserialize_keras_object(t, custom_objects) for t in chain
            ]
            for name, chain in config.pop("transforms").items()
        }
        return cls(layer, transforms, **config)


def _exactly(value):
    def initializer(shape, dtype=None):
        return keras.ops.convert_to_tensor(value, dtype=dtype)

    return initializer
