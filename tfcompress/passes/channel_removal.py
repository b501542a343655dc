"""Builds the model without the channels that go.

Example:
    ```python
    smaller = remove_channels(channels, removed)     # a plain Keras model
    ```
"""

import keras
import numpy as np

from tfcompress.graph import clone, freeze_alike, rewrite, slots_of


def remove_channels(channels, removed):
    """A copy of the model in which groups of channels are left out.

    Args:
        channels: `Channels` of the model.
        removed: Bool array, one entry for each group.

    Returns:
        A new `keras.Model`, not compiled, and a dict from `id` of each variable of the
        layers that got smaller to its successor and the indices that stay along each
        axis (`None`: all).
    """
    visitor = _Visitor(channels, removed)
    model = rewrite(channels.graph, visitor)
    return model, visitor.move_weights()


class _Visitor:
    """Calls smaller layers in place of those that lose channels."""

    def __init__(self, channels, removed):
        self.channels = channels
        self.removed = removed
        self.smaller = {}

    def __call__(self, call, clone_same, args, kwargs):
        operation = call.operation
        if id(operation) not in self.smaller:
            if not self._changes(operation):
                return clone_same(operation)(*args, **kwargs)
            self.smaller[id(operation)] = (operation, self._resized(operation))
        return self.smaller[id(operation)][1](*args, **kwargs)

    def move_weights(self):
        """Gives the smaller layers the weights that stay."""
        moved = {}
        for old, new in self.smaller.values():
            if not isinstance(old, keras.layers.Layer):
                continue
            freeze_alike(old, new)
            for before, after in zip(old.variables, new.variables, strict=True):
                indices = self._indices(before)
                after.assign(sliced(before.numpy(), indices))
                moved[id(before)] = (after, indices)
        return moved

    def _count(self, ids):
        return len(self._stay(ids))

    def _stay(self, ids):
        return np.flatnonzero(~self.removed[self.channels.groups(ids)])

    def _indices(self, variable):
        weight = self.channels.weights.get(id(variable))
        if weight is None:
            return (None,) * len(variable.shape)
        return tuple(None if ids is None else self._stay(ids) for ids in weight.axes)

    def _changes(self, operation):
        """Whether an operation has a weight or a setting that channels go from."""
        if not isinstance(operation, keras.layers.Layer):
            return bool(self._settings(operation))
        shapes = [
            (len(kept), size)
            for variable in operation.variables
            for kept, size in zip(self._indices(variable), variable.shape, strict=True)
            if kept is not None
        ]
        if any(kept != size for kept, size in shapes):
            return True
        # A layer without weights (Reshape) has its settings alone.
        return not shapes and bool(self._settings(operation))

    def _settings(self, operation):
        found = self.channels.settings.get(id(operation), {})
        return {name: value(self._count) for name, value in found.items()}

    def _resized(self, operation):
        settings = self._settings(operation)
        if not isinstance(operation, keras.layers.Layer):
            # From its config, for that is what a saved model holds.
            return type(operation).from_config(operation.get_config() | settings)
        return clone(operation, **settings, **self._inner(operation))

    def _inner(self, layer):
        """Entries of a wrapper's config with the settings of the layers it holds."""
        parts = {
            "layer": getattr(layer, "forward_layer", getattr(layer, "layer", None)),
            "backward_layer": getattr(layer, "backward_layer", None),
        }
        if not any(isinstance(part, keras.layers.Layer) for part in parts.values()):
            return {}
        config = layer.get_config()
        found = {}
        for name, part in parts.items():
            if isinstance(part, keras.layers.Layer):
                entry = dict(config[name])
                entry["config"] = entry["config"] | self._settings(part)
                # The shape it was built for is not the new one's.
                entry.pop("build_config", None)
                found[name] = entry
        return found


def sliced(values, indices):
    """Takes `indices` along each axis; `None` takes all."""
    for axis, kept in enumerate(indices):
        if kept is not None:
            values = np.take(values, kept, axis)
    return values


def carry_optimizer(old, new, moved):
    """Compiles the smaller model as the old one, with what stays of the slots.

    Args:
        old: Flat model that was trained.
        new: The model without channels.
        moved: What `remove_channels` says of the weights.

    Raises:
        ValueError: If the old model has no optimizer with a state, or it cannot be
            told what belongs to what.
    """
    if getattr(old, "optimizer", None) is None or not old.optimizer.built:
        raise ValueError(
            f"keep_optimizer: model {old.name!r} has no optimizer with a state of its "
            "own. Compile the result instead."
        )
    try:
        new.compile_from_config(old.get_compile_config())
    except Exception as err:
        raise ValueError(
            f"keep_optimizer: model {old.name!r} cannot be compiled again from its "
            f"config: {err}. Register its loss and metrics with "
            "keras.saving.register_keras_serializable, or compile the result yourself."
        ) from err
    if getattr(new, "optimizer", None) is None:
        # Keras only warns of a class with a `compile` of its own.
        raise ValueError(
            f"keep_optimizer: {type(new).__name__} has a `compile` of its own. Compile "
            "the result yourself."
        )
    new.optimizer.build(new.trainable_variables)
    successors = {
        id(before): moved.get(id(before), (after, None))
        for before, after in zip(
            old.trainable_variables, new.trainable_variables, strict=True
        )
    }
    slots = {key: variable for key, _, variable in _keyed(new)}
    for key, owner, before in _keyed(old):
        values = before.numpy()
        if owner is not None:
            successor, indices = successors[id(owner)]
            key = id(successor), key[1]
            if indices is not None and values.shape == tuple(owner.shape):
                values = sliced(values, indices)
        target = slots.get(key)
        if target is None or tuple(target.shape) != values.shape:
            raise ValueError(
                f"keep_optimizer: cannot tell what becomes of {before.path!r}, a state "
                f"of {type(old.optimizer).__name__}. Compile the result instead."
            )
        target.assign(values)


def _keyed(model):
    """Triples of a key, the weight (or `None`) and the optimizer's variable."""
    keys = set()
    for slot in slots_of(model.optimizer, model.trainable_variables):
        key = slot.what if slot.weight is None else (id(slot.weight), slot.what)
        if key in keys:
            raise ValueError(
                f"keep_optimizer: two states of the optimizer are called "
                f"{slot.variable.path!r}. Compile the result instead."
            )
        keys.add(key)
        yield key, slot.weight, slot.variable
