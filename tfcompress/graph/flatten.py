"""Inlines nested models, so that every pass sees one flat list of calls."""

import keras

from tfcompress.graph.names import unused_name
from tfcompress.graph.remade import remade
from tfcompress.graph.rewrite import clone, copy_weights
from tfcompress.graph.view import Graph, functional


def flatten(model, *, keep_subclassed=False):
    """Returns `model` as one functional model without models inside.

    Args:
        model: Built functional `keras.Model` or `Sequential`.
        keep_subclassed: Whether a nested model without a graph stays as the layer that
            it is; else it raises.

    Returns:
        `model` itself if it holds no nested model, else a copy with copied weights in
        which the layers of a nested model stand in its place, named
        `<model>_<layer>`. A nested model that is called several times stays shared.
        A nested model that is called with `training=False` keeps that.

    Raises:
        ValueError: If the model, or one inside it, is subclassed and so has no graph.
    """
    _check_functional(model, model)
    graph = Graph(model)
    nested = [call.operation for call in graph.calls if _is_model(call.operation)]
    if keep_subclassed:
        nested = [operation for operation in nested if functional(operation)]
    if not nested:
        return model
    inputs = keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
        graph.inputs_struct,
    )
    inliner = _Inliner(model, {t.name for t in graph.inputs}, keep_subclassed)
    outputs = inliner.run(graph, keras.tree.flatten(inputs), prefix="", training=None)
    inliner.copy_weights()
    return remade(model, inputs, outputs)


class _Inliner:
    """Calls copies of all operations, those of nested models included."""

    def __init__(self, model, names, keep_subclassed):
        self.model = model
        self.keep_subclassed = keep_subclassed
        self.names = set(names)
        self.copies = {}

    def run(self, graph, inputs, prefix, training):
        new = {
            id(old): tensor for old, tensor in zip(graph.inputs, inputs, strict=True)
        }
        for call in graph.calls:
            args, kwargs = call.arguments.fill_in(new)
            if self._inlines(call.operation):
                outputs = self._inline(call.operation, args, kwargs, prefix, training)
            else:
                copied = self._copy(call.operation, prefix)
                if training is not None and _takes_training(call.operation):
                    kwargs = {**kwargs, "training": training}
                outputs = copied(*args, **kwargs)
            outputs = keras.tree.flatten(outputs)
            new.update(
                (id(old), tensor)
                for old, tensor in zip(call.outputs, outputs, strict=True)
            )
        return keras.tree.map_structure(lambda t: new[id(t)], graph.outputs_struct)

    def _inlines(self, operation):
        kept = self.keep_subclassed and functional(operation) is None
        return _is_model(operation) and not kept

    def _inline(self, nested, args, kwargs, prefix, training):
        _check_functional(nested, self.model)
        forced = kwargs.pop("training", None)
        inputs = keras.tree.flatten(
            (args, {k: v for k, v in kwargs.items() if k != "mask"})
        )
        return self.run(
            Graph(nested),
            [t for t in inputs if t is not None],
            prefix=f"{prefix}{nested.name}_",
            training=training if forced is None else forced,
        )

    def _copy(self, operation, prefix):
        if id(operation) not in self.copies:
            name = unused_name(f"{prefix}{operation.name}", self.names)
            self.names.add(name)
            self.copies[id(operation)] = (operation, clone(operation, name=name))
        return self.copies[id(operation)][1]

    def copy_weights(self):
        for operation, copied in self.copies.values():
            copy_weights(operation, copied)


def _is_model(operation):
    return isinstance(operation, keras.Model)


def _takes_training(operation):
    return getattr(operation, "_call_has_training_arg", False)


def _check_functional(model, outer):
    if functional(model) is None:
        inside = "" if model is outer else f" inside {outer.name!r}"
        raise ValueError(
            f"Model {model.name!r}{inside} (of type {type(model).__name__}) is "
            "subclassed, so it has no graph of layers to rewrite. Build it with the "
            "functional API: inputs = keras.Input(...); keras.Model(inputs, outputs)."
        )
