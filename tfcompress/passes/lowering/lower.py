"""Applies forms to a model until none applies."""

import dataclasses

import keras
from absl import logging

from tfcompress.graph import Graph, calls_between, flatten, rewrite, unused_name
from tfcompress.passes import quantize_rules as rules
from tfcompress.passes.lowering import (
    activations,
    arithmetic,
    attention,
    convolution,
    normalization,
    recurrent,
)
from tfcompress.passes.lowering.channels_last import channels_last
from tfcompress.passes.lowering.trace import (
    NotTraceableError,
    same_in_training,
    traced,
)

_LAYERS = (
    activations.LAYERS
    | attention.LAYERS
    | convolution.LAYERS
    | normalization.LAYERS
    | recurrent.LAYERS
)
_OPERATIONS = (
    activations.OPERATIONS
    | arithmetic.OPERATIONS
    | attention.OPERATIONS
    | normalization.OPERATIONS
)


def lower(model, *, keep=()):
    """Rewrites a model into operations that have an integer form.

    Args:
        model: Functional or Sequential `keras.Model`; nested models are inlined.
        keep: Names of operations to leave as they are.

    Returns:
        A `Lowered`.
    """
    result = Lowered(model)
    while True:
        flat = flatten(result.model, keep_subclassed=True)
        graph = Graph(channels_last(flat))
        result.model = graph.model
        lowering = _Lowering(graph, set(keep), result)
        if not any(lowering.form(call.operation) for call in graph.calls):
            break
        rewritten = rewrite(graph, lowering)
        if not lowering.applied:
            break
        result.model = rewritten
    _warn_of_training(result)
    return result


@dataclasses.dataclass
class Lowered:
    """A model after `lower`.

    Attributes:
        model: Functional `keras.Model`.
        origins: Dict from the name of each operation that a form made to the path of
            layers it is part of (`"block/mha"`).
        failures: Dict from the name of a layer that could not be taken apart to the
            reason.
        identities: Names of layers that do nothing at inference.
        otherwise_in_training: Names of layers that do something else while training,
            which was not recorded.
    """

    model: keras.Model
    origins: dict = dataclasses.field(default_factory=dict)
    failures: dict = dataclasses.field(default_factory=dict)
    identities: set = dataclasses.field(default_factory=set)
    otherwise_in_training: set = dataclasses.field(default_factory=set)


def _warn_of_training(lowered):
    names = sorted(lowered.otherwise_in_training)
    if names:
        logging.warning(
            "What %d layer(s) of model %r do while training only (dropping or adding "
            "noise by operations of their own, losses, random values) is left out: %s",
            len(names),
            lowered.model.name,
            ", ".join(names),
        )


class _Lowering:
    """The visitor that calls forms in place of operations."""

    def __init__(self, graph, keep, result):
        self.names = {call.operation.name for call in graph.calls}
        self.keep = keep | set(result.failures) | result.identities
        self.origins = result.origins
        self.failures = result.failures
        self.identities = result.identities
        self.otherwise_in_training = result.otherwise_in_training
        self.forms = {}
        self.named = set()
        self.applied = 0

    def form(self, operation):
        """What computes an operation from simpler ones, made once; or `None`."""
        if id(operation) not in self.forms:
            self.forms[id(operation)] = self._make_form(operation)
        return self.forms[id(operation)]

    def __call__(self, call, clone, args, kwargs):
        outputs = self._apply(call, args, kwargs)
        if outputs is None:
            return clone(call.operation)(*args, **kwargs)
        self.applied += 1
        self._name_parts(call.operation, outputs, (args, kwargs))
        return outputs

    def _apply(self, call, args, kwargs):
        operation = call.operation
        form = self.form(operation)
        if form is None:
            return None
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
        if _factory(operation) is not None:
            kwargs.pop("training", None)
        try:
            outputs = form(*args, **kwargs)
        except NotTraceableError as err:
            self.failures[operation.name] = str(err)
            return None
        if args and outputs is args[0]:
            self.identities.add(operation.name)
            return None
        if _factory(operation) is None and not same_in_training(call):
            self.otherwise_in_training.add(operation.name)
        return outputs

    def _make_form(self, operation):
        if operation.name in self.keep:
            return None
        factory = _factory(operation)
        if factory is not None:
            return factory(operation)
        if not isinstance(operation, keras.layers.Layer) or rules.known(operation):
            return None
        try:
            return traced(operation)
        except (NotTraceableError, ValueError) as err:
            self.failures[operation.name] = str(err)
            return None

    def _name_parts(self, operation, outputs, inputs):
        """Names what a form made after the operation, each name once."""
        origin = self.origins.get(operation.name)
        path = operation.name if origin is None else f"{origin}/{operation.name}"
        # The operation goes, and leaves its name to a part of it.
        self.names.discard(operation.name)
        for part in [call.operation for call in calls_between(inputs, outputs)]:
            if id(part) in self.named:
                continue
            self.named.add(id(part))
            self._rename(part, operation.name)
            if part.name != operation.name:
                self.origins[part.name] = path

    def _rename(self, part, prefix):
        if not isinstance(part, keras.layers.Layer):
            part.name = f"{prefix}_{type(part).__name__.lower()}"
        elif not part.name.startswith(prefix):
            part.name = f"{prefix}_{part.name}"
        part.name = unused_name(part.name, self.names)
        self.names.add(part.name)


def _factory(operation):
    if convolution.splits(operation):
        return convolution.split_activation
    if isinstance(operation, keras.layers.Layer):
        return _LAYERS.get(type(operation))
    return _OPERATIONS.get(type(operation).__name__)
