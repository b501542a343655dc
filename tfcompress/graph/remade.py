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
from tfcompress.graph.view import functional


def remade(model, inputs, outputs, name=None):
    """A functional model that trains as `model` does.

    Args:
        model: `keras.Model`.
        inputs: Symbolic inputs of the new model, in any structure.
        outputs: Symbolic outputs of the new model.
        name: Its name; `None` takes that of `model`.

    Returns:
        A model of the class of `model`, whose `train_step` it so keeps, if that is
        functional and its constructor takes what that of `keras.Model` takes; else a
        plain functional `keras.Model`.
    """
    allow_depth()
    cls = type(model) if _takes_a_graph(model) else keras.Model
    return cls(inputs=inputs, outputs=outputs, name=name or model.name)


def _takes_a_graph(model):
    if functional(model) is not model:
        return False  # Subclassed with a `call` of its own, or Sequential.
    _, *parameters = inspect.signature(type(model).__init__).parameters.values()
    names = {p.name for p in parameters}
    kinds = {p.kind for p in parameters if p.name not in _GRAPH}
    open_end = inspect.Parameter.VAR_KEYWORD in kinds
    fits = kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return fits and (open_end or set(_GRAPH) <= names)


_GRAPH = ("inputs", "outputs", "name")
