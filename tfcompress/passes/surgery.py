"""What all surgery on a trained model has in common: its door and its report.

Example:
    ```python
    smaller, report = tfc.fold(model, return_report=True)
    print(report)   # which layer became what, parameters before and after
    ```
"""

from dataclasses import dataclass

import keras
from absl import logging

from tfcompress.checks import check_model
from tfcompress.graph import Graph, find_layers
from tfcompress.layers import ConstantFakeQuant, FakeQuant, TransformWeights
from tfcompress.passes.distill import Distiller
from tfcompress.passes.lowering.trace import flat_form


@dataclass(frozen=True)
class Change:
    """What surgery did to one layer, or why it left it alone.

    Attributes:
        layer: Name of the layer in the flattened model.
        what: What became of it, in words.
        parameters_before: Parameters of the layers that took part, before.
        parameters_after: The same, after.
        error: Relative error, where the change is not exact: of the kernel in the
            Frobenius norm (`factorize`, `separate_convs`); the score of a residual
            block (`prune_layers`). `None` if the change is exact or has no figure.
    """

    layer: str
    what: str
    parameters_before: int
    parameters_after: int
    error: float | None = None


@dataclass(frozen=True)
class SurgeryReport:
    """What one verb changed in a model; prints as a table.

    Attributes:
        verb: Name of the function.
        changes: Tuple of `Change`.
        parameters_before: Parameters of the whole model, before.
        parameters_after: The same, after.
    """

    verb: str
    changes: tuple
    parameters_before: int
    parameters_after: int

    def __str__(self):
        rows = [
            (
                c.layer,
                c.what,
                f"{c.parameters_before:,}",
                f"{c.parameters_after:,}",
                "-" if c.error is None else f"{c.error:.4g}",
            )
            for c in self.changes
        ]
        total = (f"{self.parameters_before:,}", f"{self.parameters_after:,}", "")
        header = ("layer", "what", "before", "after", "error")
        return "\n".join(_table(self.verb, [header, *rows, ("model", "", *total)]))


def _table(title, rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield title
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
        right = [
            text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)
        ]
        yield "  " + "  ".join([*left, *right]).rstrip()


def opened(model, *, verb, open_layers=True):
    """The graph of a plain model, nested models inlined.

    Args:
        model: What the user passed.
        verb: Name of the function, for messages.
        open_layers: As of `flat_form`.

    Returns:
        `Graph` of `model`, or of a flat copy. Of a subclassed model, and of a user's
        own layer that consists of layers, it is what its `call` does, recorded.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built, is wrapped by a pass, or its `call` cannot be
            recorded.
    """
    check_model(model)
    wrapped = find_layers(model, (FakeQuant, ConstantFakeQuant, TransformWeights))
    if isinstance(model, Distiller) or wrapped:
        raise ValueError(
            f"`tfc.{verb}` works on plain Keras layers; model {model.name!r} is "
            "wrapped by quantization, clustering or distillation. Call it before "
            "that, or on "
            f"`tfc.strip(model)`. Received: model of type {type(model).__name__}"
        )
    return Graph(flat_form(model, open_layers=open_layers))


def closed(verb, graph, model, changes, return_report):
    """Logs what changed and returns the model, with the report if it is wanted.

    Args:
        verb: Name of the function.
        graph: `Graph` from before.
        model: The new model.
        changes: Iterable of `Change`.
        return_report: Whether to return `(model, report)`.
    """
    report = SurgeryReport(
        verb, tuple(changes), graph.model.count_params(), model.count_params()
    )
    logging.info("%s", report)
    return (model, report) if return_report else model


def number_of_calls(graph):
    """Dict from the id of each operation to how often it is called."""
    counts = {}
    for call in graph.calls:
        counts[id(call.operation)] = counts.get(id(call.operation), 0) + 1
    return counts


def has_plain_kernel(layer):
    """Whether a kernel layer computes with the float kernel that it holds."""
    return (
        getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
        and any(v.name in ("kernel", "pointwise_kernel") for v in layer.weights)
    )


def first_tensor(args, kwargs):
    """The first symbolic tensor among the arguments of a call."""
    flat = keras.tree.flatten((args, kwargs))
    return next(t for t in flat if isinstance(t, keras.KerasTensor))


def forced_training(call):
    """Whether a call was written with `training=True`, which holds at inference too."""
    args, kwargs = call.arguments.args, call.arguments.kwargs
    return any(value is True for value in (*args[1:], kwargs.get("training")))
