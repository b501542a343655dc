"""Builds a functional model of the class that a user gave the old one.

Example:
    ```python
    class Contrastive(keras.Model):
        def train_step(self, data): ...

    model = Contrastive(inputs, outputs)
    remade(model, new_inputs, new_outputs)  # a Contrastive
    ```
"""

import inspect

import keras

from tfcompress.graph.depth import allow_depth
from tfcompress.graph.view import functional, is_of
from tfcompress.graph.weights import children


def remade(model, inputs, outputs, name=None):
    """A functional model that trains as `model` does.

    Args:
        model: `keras.Model`.
        inputs: Symbolic inputs of the new model, in any structure.
        outputs: Symbolic outputs of the new model.
        name: Its name; `None` takes that of `model`.

    Returns:
        A model of the class of `model`, whose `train_step` it so keeps, with the plain
        attributes that were set on it. A plain functional `keras.Model` if that class
        is not functional, takes other arguments than `keras.Model` does, or has weights
        beside those of the graph.
    """
    allow_depth()
    name = name or model.name
    made = _of_its_class(model, inputs, outputs, name)
    return keras.Model(inputs, outputs, name=name) if made is None else made


def _of_its_class(model, inputs, outputs, name):
    if functional(model) is not model:
        return None  # Subclassed with a `call` of its own, or Sequential.
    cls = type(model)
    if is_of("keras", cls) or not _takes_a_graph(cls) or _has_more(model):
        return None
    made = cls(inputs=inputs, outputs=outputs, name=name)
    computed = [(made.inputs, inputs), (made.outputs, outputs)]
    if any(not _same_tensors(*pair) for pair in computed):
        return None  # It makes a graph of its own.
    for key, value in _public(model).items():
        if key not in vars(made) and not _of_a_fit(key, value):
            setattr(made, key, value)
    return made


def _public(model):
    return {key: v for key, v in vars(model).items() if not key.startswith("_")}


def _of_a_fit(key, value):
    """Whether `compile` or `fit` set an attribute."""
    made_there = (
        keras.callbacks.History,
        keras.metrics.Metric,
        keras.optimizers.Optimizer,
    )
    return key == "stop_training" or isinstance(value, made_there)


def _takes_a_graph(cls):
    """Whether Keras, too, can build one of its class from inputs and outputs."""
    spec = inspect.getfullargspec(cls.__init__)
    if spec.kwonlyargs:
        return False
    if spec.args[1:] == ["inputs", "outputs", "name"]:
        return True
    return not spec.args[1:] and (spec.varargs, spec.varkw) == ("args", "kwargs")


def _has_more(model):
    """Whether it has weights, or layers by name, that new ones would not be given."""
    if model._trainable_variables or model._non_trainable_variables:
        return True
    in_graph = {id(operation) for operation in model.operations}
    if any(la.weights and id(la) not in in_graph for la in children(model)):
        return True
    held = keras.tree.flatten(list(_public(model).values()))
    return any(isinstance(value, keras.layers.Layer) for value in held)


def _same_tensors(found, given):
    given = keras.tree.flatten(given)
    return [id(tensor) for tensor in found] == [id(tensor) for tensor in given]
