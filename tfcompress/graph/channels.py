"""Which channels of a model can only be removed together.

Every axis of every tensor and weight gets an array of *channel ids*, or `None` if it
stays whole. Each operation's rule (`channel_rules`) ties ids that must share their
fate: an addition ties its inputs channel by channel, a depthwise kernel its output to
its input. Tied ids are one *group*; removing a group means leaving out, everywhere,
each index whose id belongs to it.

Example:
    ```python
    channels = find_channels(Graph(flatten(model)))
    channels.groups(channels.producers[0].ids)   # the group of each output channel
    ```

Reference:
    Fang et al., "DepGraph: Towards Any Structural Pruning", 2023. arXiv:2301.12900
"""

import contextlib
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

# The id of what is never removed; its group is the lowest of all.
KEPT = 0


class NotFollowedError(Exception):
    """A rule cannot say what becomes of the channels; they stay."""


@dataclass(frozen=True, eq=False)
class Producer:
    """A weight that makes channels along one axis.

    Attributes:
        name: Name of the layer, and of the part of it if there are several.
        variable: The `keras.Variable`.
        axis: Its axis along which the channels lie.
        ids: Array of their channel ids.
        output: Tensor that holds the channels on its last axis (or on `output_axis`),
            `None` if there is none.
        output_axis: Axis of the channels in `output`.
        repeats: How often each channel stands along the axis (the gates of an LSTM).
        rounded: Whether their number can be asked to be a multiple of something.
    """

    name: str
    variable: Any
    axis: int
    ids: Any
    output: Any = None
    output_axis: int = -1
    repeats: int = 1
    rounded: bool = True


@dataclass
class Weight:
    """A weight with the channel ids of its axes.

    Attributes:
        variable: The `keras.Variable`.
        axes: Ids of each axis, or `None`.
        kind: `"scale"` or `"statistic"` of a batch normalization, else "".
    """

    variable: Any
    axes: tuple
    kind: str = ""


@dataclass
class Cost:
    """Multiplications that some channels take part in.

    Attributes:
        fixed: Product of what no channel changes; `None` if a shape is not known.
        axes: Ids of each axis that is multiplied in.
    """

    fixed: int | None
    axes: list = field(default_factory=list)


class Channels:
    """The channels of a flat functional model, and how they hang together.

    Args:
        graph: `Graph` of a model without nested models.
        rule_of: Function from an operation to its rule, or `None`: a function of these
            channels and a call that returns the ids of the outputs' axes.

    Attributes:
        graph: The graph.
        producers: List of `Producer`.
        weights: Dict from `id(variable)` to `Weight`, of all layers that are known.
        summed: List of ids that are summed over without a weight that reads them.
        settings: Dict from `id(operation)` to a dict from the name of a setting to a
            function from "how many of these ids stay" to the setting's new value.
        costs: List of `Cost`, whose sum is the model's multiply-accumulates for one
            example.
        barriers: Dict from the name of an operation to why its channels stay.
    """

    def __init__(self, graph, rule_of):
        self.graph = graph
        self.producers = []
        self.weights = {}
        self.summed = []
        self.settings = {}
        self.costs = []
        self.barriers = {}
        self._count = KEPT + 1
        self._ties = []
        self._made = {}
        self._kept_because = []
        self._first_outputs = {}
        self._repeats = 1
        self._axes = {id(t): (None,) * len(t.shape) for t in graph.inputs}
        for call in graph.calls:
            self._follow(call, rule_of(call.operation))
        for tensor in graph.outputs:
            self.keep(self.axes_of(tensor), "they are an output of the model")
        self._groups = _components(self._count, self._ties)

    # What the rules call.

    def new(self, key, size):
        """Ids of channels made here; the same at each call of a shared layer."""
        if key not in self._made:
            self._made[key] = np.arange(self._count, self._count + size)
            self._count += size
        return self._made[key]

    def tie(self, first, second, because):
        """Ties two axes index by index; if one stays whole, so does the other."""
        if first is None or second is None:
            self.keep((first, second), because)
        elif len(first) != len(second):
            raise NotFollowedError(f"axes of {len(first)} and {len(second)} channels")
        else:
            self._ties.append((first, second))

    def tie_axes(self, ids, shape, axis, because):
        """Ties the ids of an axis, seen as `shape`, along all but one of its axes.

        Returns:
            Ids along that axis.
        """
        rows = np.moveaxis(np.asarray(ids).reshape(shape), axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        for column in range(1, rows.shape[1]):
            self.tie(rows[:, 0], rows[:, column], because)
        return rows[:, 0]

    def keep(self, axes, because):
        """Says that the channels of these axes stay, and why."""
        for ids in axes:
            if ids is not None:
                self._ties.append((ids, np.full_like(ids, KEPT)))
                self._kept_because.append((frozenset(ids.tolist()), because))

    def weight(self, variable, *axes, kind=""):
        """Records the ids of a weight's axes; ties them if it had others before."""
        if variable is None:
            return
        sizes = [None if ids is None else len(ids) for ids in axes]
        if len(axes) != len(variable.shape) or any(
            n not in (None, size) for n, size in zip(sizes, variable.shape, strict=True)
        ):
            raise NotFollowedError(
                f"weight {variable.name!r} has the unexpected shape {variable.shape}"
            )
        before = self.weights.get(id(variable))
        if before is None:
            self.weights[id(variable)] = Weight(variable, tuple(axes), kind)
            return
        for old, ids in zip(before.axes, axes, strict=True):
            if old is not None or ids is not None:
                self.tie(old, ids, f"weight {variable.path!r} is shared")

    def producer(self, *args, **kwargs):
        """Records a weight that makes channels, once."""
        found = Producer(*args, **kwargs)
        if all(p.variable is not found.variable for p in self.producers):
            self.producers.append(found)

    def setting(self, operation, name, value):
        """Records how a setting of a layer, or attribute of an operation, changes.

        Args:
            operation: The layer or operation.
            name: Name in the layer's config, or of the attribute.
            value: Ids, if the setting is how many of them stay; or a function from a
                function that counts what stays of ids.
        """
        if not callable(value):
            ids = value
            if ids is None:
                return

            def value(count):
                return count(ids)

        self.settings.setdefault(id(operation), {})[name] = value

    def cost(self, shape, axes):
        """Records a product over axes of `shape`, of which some have ids."""
        fixed = self._repeats
        for size, ids in zip(shape, axes, strict=True):
            if ids is None:
                fixed = None if None in (fixed, size) else fixed * int(size)
        self.costs.append(Cost(fixed, [ids for ids in axes if ids is not None]))

    @contextlib.contextmanager
    def repeated(self, times):
        """Within, each cost counts so often; `None` if that is not known."""
        before, self._repeats = self._repeats, times
        try:
            yield
        finally:
            self._repeats = before

    def axes_of(self, tensor):
        """Ids of each axis of a tensor; a constant has none."""
        return self._axes.get(id(tensor), (None,) * len(np.shape(tensor)))

    # What the passes ask.

    def groups(self, ids):
        """The group of each id; 0 is what stays."""
        return self._groups[ids]

    @property
    def group_count(self):
        """One more than the highest group there is."""
        return self._count

    def kept_because(self, ids):
        """Why channels with these ids stay: the reasons on record."""
        groups = set(np.asarray(self.groups(ids)).ravel())
        if groups != {KEPT}:
            return []
        # Ids tied to these by some way; what reached 0 first is not on record.
        mine = set(np.asarray(ids).ravel())
        direct = [why for kept, why in self._kept_because if mine & kept]
        return direct or ["they are tied to channels that stay"]

    def arrays(self):
        """The id arrays of all axes of tensors and weights, each once."""
        found = [ids for axes in self._axes.values() for ids in axes]
        found += [ids for weight in self.weights.values() for ids in weight.axes]
        return list({id(ids): ids for ids in found if ids is not None}.values())

    def macs(self, count):
        """Multiply-accumulates of one example; `None` if a shape is not known.

        Args:
            count: Function from ids to how many of them stay.
        """
        if any(cost.fixed is None for cost in self.costs):
            return None
        return sum(
            cost.fixed * math.prod(count(ids) for ids in cost.axes)
            for cost in self.costs
        )

    def _follow(self, call, rule):
        operation = call.operation
        try:
            if rule is None:
                raise NotFollowedError(
                    f"{type(operation).__name__} is not an operation that is known"
                )
            found = rule(self, SeenCall.of(self, call))
            found = [found] if isinstance(found, tuple) else list(found)
            self._check(operation, call.outputs, found)
        except Exception as err:
            found = self._stop_at(call, err)
        for tensor, axes in zip(call.outputs, found, strict=True):
            self._axes[id(tensor)] = tuple(axes)
        self._tie_calls(operation, found)

    def _stop_at(self, call, err):
        """Keeps all that an operation touches, and says so; ids of its outputs."""
        operation = call.operation
        # A rule that does not fit a call is as good as none; the report names it.
        known = isinstance(err, NotFollowedError)
        why = str(err) if known else f"{type(err).__name__}: {err}"
        self.barriers[operation.name] = why
        because = f"{operation.name!r} reads or makes them: {why}"
        for tensor in call.input_tensors:
            self.keep(self.axes_of(tensor), because)
        for variable in getattr(operation, "variables", ()):
            weight = self.weights.get(id(variable))
            if weight is not None:
                self.keep(weight.axes, because)
        return [(None,) * len(t.shape) for t in call.outputs]

    def _check(self, operation, tensors, found):
        """Raises if a rule forgot a weight, or gives ids that do not fit."""
        for variable in getattr(operation, "variables", ()):
            if id(variable) not in self.weights and "float" in str(variable.dtype):
                raise NotFollowedError(f"weight {variable.path!r} is not known")
        for tensor, axes in zip(tensors, found, strict=True):
            sizes = [None if ids is None else len(ids) for ids in axes]
            fits = len(sizes) == len(tensor.shape) and all(
                n is None or n == size
                for n, size in zip(sizes, tensor.shape, strict=True)
            )
            if not fits:
                raise NotFollowedError(f"channels {sizes} in shape {tensor.shape}")

    def _tie_calls(self, operation, found):
        """Ties the outputs of two calls of one operation whose settings change."""
        if id(operation) not in self.settings:
            return
        first = self._first_outputs.setdefault(id(operation), found)
        because = f"{operation.name!r} is shared"
        for one, other in zip(first, found, strict=True):
            for a, b in zip(one, other, strict=True):
                same = a is not None and b is not None and len(a) == len(b)
                if same:
                    self.tie(a, b, because)
                else:
                    self.keep((a, b), because)


@dataclass
class SeenCall:
    """What the rules see of a call: no masks, and shapes as the layer itself has them.

    Attributes:
        name: Name of the operation.
        inputs: Ids of the axes of each input tensor.
        input_shapes: Their shapes.
        operands: Pairs of shape and ids of all that is computed with, constants and
            numbers included.
        named: Dict from the name of an argument to its symbolic tensor.
        outputs: The output tensors; `None` within a wrapper.
        output_shapes: Their shapes.
        arguments: Keras' record of the arguments.
    """

    name: str
    inputs: list
    input_shapes: list
    operands: list
    named: dict
    outputs: list
    output_shapes: list
    arguments: Any

    @classmethod
    def of(cls, channels, call):
        """Sorts the arguments of a Keras node."""
        inputs, shapes, operands, named = [], [], [], {}
        for name, value in _arguments(call):
            for one in keras.tree.flatten(value):
                if one is None or isinstance(one, (bool, str, slice)):
                    continue
                axes = channels.axes_of(one)
                if name == "mask" or name.endswith("_mask"):
                    channels.keep(axes, f"{call.operation.name!r} reads them as a mask")
                    continue
                operands.append((np.shape(one), axes))
                if isinstance(one, keras.KerasTensor):
                    inputs.append(axes)
                    shapes.append(tuple(one.shape))
                    named.setdefault(name, one)
        return cls(
            name=call.operation.name,
            inputs=inputs,
            input_shapes=shapes,
            operands=operands,
            named=named,
            outputs=list(call.outputs),
            output_shapes=[tuple(t.shape) for t in call.outputs],
            arguments=call.arguments,
        )

    @property
    def output(self):
        """The first output tensor; `None` within a wrapper."""
        return self.outputs[0] if self.outputs else None


def _arguments(call):
    """Pairs of name and value of what a call was given."""
    try:
        signature = inspect.signature(call.operation.call)
        names = [
            p.name
            for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        names = []
    args = call.arguments.args
    names = names[: len(args)] + [""] * (len(args) - len(names))
    yield from zip(names, args, strict=True)
    yield from call.arguments.kwargs.items()


def _components(count, ties):
    """The lowest id that each id is tied to, directly or through others."""
    lowest = np.arange(count)
    if not ties:
        return lowest
    first = np.concatenate([np.ravel(a) for a, _ in ties])
    second = np.concatenate([np.ravel(b) for _, b in ties])
    while True:
        before = lowest.copy()
        low = np.minimum(lowest[first], lowest[second])
        np.minimum.at(lowest, before[first], low)
        np.minimum.at(lowest, before[second], low)
        lowest = lowest[lowest]
        if np.array_equal(before, lowest):
            return lowest
