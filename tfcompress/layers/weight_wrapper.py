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

import inspect

import keras
import numpy as np

from tfcompress.graph import substituted
from tfcompress.layers.transforms import QuantizeWeight


@keras.saving.register_keras_serializable(package="tfcompress")
class TransformWeights(keras.layers.Wrapper):
    """Runs a layer with transformed weights.

    Args:
        layer: The layer, built (transforms may look at the weights it has).
        transforms: Dict from the name of a weight to a list of `Transform`, applied
            from left to right. Where several weights have the name, the end of the path
            tells them apart: `"query/kernel"`.

    Attributes:
        states: Dict from the same names to a list, one entry for each transform: a dict
            from the name of its state to the `keras.Variable`.

    Raises:
        ValueError: If the layer is not built, or not exactly one of its weights has
            a name that is transformed or read by a transform.
    """

    def __init__(self, layer, transforms, **kwargs):
        kwargs.setdefault("name", layer.name)
        # Of another one it would cast what the layer is called with.
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        # Keras binds what a layer is called with to its signature. `*args, **kwargs`
        # would be two arguments, in which tensors and settings must not be mixed.
        self._call_signature = inspect.signature(layer.call)
        if not layer.built:
            raise ValueError(
                f"Layer {layer.name!r} is not built, so it has no weights to transform "
                "yet. Call it once, or `layer.build(input_shape)`, first."
            )
        self.transforms = {name: list(found) for name, found in transforms.items()}
        for name, chain in self.transforms.items():
            for needed in (name, *(read for t in chain for read in t.reads)):
                find_weight(layer, needed)
        self.states = {
            name: [self._add_state(name, i, t) for i, t in enumerate(chain)]
            for name, chain in self.transforms.items()
        }
        self.built = True

    def _add_state(self, name, position, transform):
        initial = transform.initial_state(find_weight(self.layer, name).numpy())
        return {
            key: self.add_weight(
                name=f"{name}_{position}_{key}".replace("/", "_"),
                shape=value.shape,
                initializer=_exactly(value),
                dtype=value.dtype.name,
                trainable=key in transform.trainable_state,
                autocast=False,
            )
            for key, value in initial.items()
        }

    @property
    def rounds(self):
        """Whether a weight is rounded to an integer grid."""
        chains = self.transforms.values()
        return any(isinstance(t, QuantizeWeight) for chain in chains for t in chain)

    def _effective(self):
        """Pairs of latent variable and effective tensor, in the order of the names."""
        pairs = []
        for name, chain in self.transforms.items():
            variable = find_weight(self.layer, name)
            tensor = variable.value
            for transform, state in zip(chain, self.states[name], strict=True):
                read = {key: find_weight(self.layer, key) for key in transform.reads}
                values = {
                    key: keras.ops.convert_to_tensor(v.value)
                    for key, v in {**state, **read}.items()
                }
                tensor = transform(tensor, values)
            pairs.append((variable, tensor))
        return pairs

    def effective_weights(self):
        """Returns a dict from the names in `transforms` to effective weights.

        They are numpy arrays; `find_weight` tells which weight of a layer is meant.
        """
        tensors = [tensor for _, tensor in self._effective()]
        return dict(zip(self.transforms, map(np.asarray, tensors), strict=True))

    def call(self, *args, **kwargs):
        pairs = self._effective()
        with substituted(pairs) as scope:
            outputs = self.layer(*args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        # The scope catches what the layer updates (batch statistics, random seeds).
        for variable in self.layer.non_trainable_variables:
            updated = scope.get_current_value(variable)
            if updated is not None:
                variable.assign(updated)
        return outputs

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

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


def find_weight(layer, name):
    """The one weight of a layer that has a name.

    Args:
        layer: Built Keras layer.
        name: Name (`"kernel"`), or where several weights have the name the end of the
            path (`"query/kernel"`) or the number among them (`"kernel:1"`).

    Returns:
        The `keras.Variable`.

    Raises:
        ValueError: If no weight has the name, or several have.
    """
    plain, _, number = name.rpartition(":")
    if number.isdigit():
        found = [v for v in layer.weights if v.name == plain][int(number) :][:1]
    else:
        found = [v for v in layer.weights if f"/{v.path}".endswith(f"/{name}")]
    if len(found) != 1:
        # Alone, names say which there are; where they repeat, paths tell them apart.
        names = sorted(v.path if found else v.name for v in layer.weights)
        raise ValueError(
            f"Layer {layer.name!r} must have one weight named {name!r}. Received: "
            f"weights {names}. Where several have the name, use the end of the path."
        )
    return found[0]


def name_of_weight(layer, position, *, like):
    """The name by which `find_weight` finds a weight, in copies of the layer too.

    Args:
        layer: Built Keras layer.
        position: Position of the weight in `layer.weights`.
        like: A copy of `layer`. Keras numbers layers that were given no name, so that
            their paths may be others there.

    Returns:
        Its name; the end of its path if several have that; their number if paths
        differ in the copy.
    """
    variable = layer.weights[position]
    parts = variable.path.split("/")
    for length in range(1, len(parts) + 1):
        name = "/".join(parts[-length:])
        found = [
            [i for i, v in enumerate(one.weights) if f"/{v.path}".endswith(f"/{name}")]
            for one in (layer, like)
        ]
        if found == [[position]] * 2:
            return name
    same = [i for i, v in enumerate(layer.weights) if v.name == variable.name]
    return f"{variable.name}:{same.index(position)}"


def _exactly(value):
    def initializer(shape, dtype=None):
        return keras.ops.convert_to_tensor(value, dtype=dtype)

    return initializer
