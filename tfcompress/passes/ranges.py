"""Which tensors share one quantizer, because TFLite gives them one scale.

Example:
    ```python
    groups = RangeGroups(Graph(model))
    groups.group(tensor), groups.sites[id(tensor)]   # which quantizer, which site
    ```
"""

import keras

from tfcompress.passes import quantize_rules as rules


class RangeGroups:
    """Groups of tensors that have one scale, by union-find over the edges.

    Args:
        graph: `Graph` of a model in which activations other than ReLU are layers.

    Attributes:
        sites: Dict from the id of a tensor that is observed to its number within its
            group.
        conflicts: Pairs of a join and an input of it that cannot share its scale,
            because TFLite prescribes another.
    """

    def __init__(self, graph):
        self.graph = graph
        self._parent = {}
        self._fixed = {}
        self._names = {}
        self._calls = {}
        self.sites = {}
        self.conflicts = []
        for tensor in graph.inputs:
            self._add(tensor, tensor.name)
        for call in graph.calls:
            self._visit(call)
        self._number_sites()

    def _add(self, tensor, name):
        self._parent[id(tensor)] = id(tensor)
        # Each call of a shared layer has a tensor, and a range, of its own.
        count = self._calls[name] = self._calls.get(name, 0) + 1
        self._names[id(tensor)] = name if count == 1 else f"{name}_call{count}"

    def _visit(self, call):
        operation, output = call.operation, call.outputs[0]
        self._add(output, operation.name)
        if isinstance(operation, (*rules.PASS_THROUGH, *rules.SAME_SCALE)):
            self._unite(call.input_tensors[0], output)
        elif isinstance(operation, rules.JOINS):
            for tensor in call.input_tensors:
                if self.fixed_range(tensor) is None:
                    self._unite(output, tensor)
                else:
                    self.conflicts.append((call, tensor))
        else:
            fixed = rules.ACTIVATIONS.get(rules.activation(operation))
            if fixed is not None:
                self._fixed[id(output)] = fixed

    def _unite(self, first, second):
        """Makes one group of two, which `first` names."""
        self._parent[self.group(second)] = self.group(first)

    def group(self, tensor):
        """Identifies the group of a tensor."""
        key = id(tensor)
        while self._parent[key] != key:
            self._parent[key] = self._parent[self._parent[key]]
            key = self._parent[key]
        return key

    def fixed_range(self, tensor):
        """The `(low, high)` that TFLite prescribes for the group, or `None`."""
        return self._fixed.get(self.group(tensor))

    def name(self, tensor):
        """Name of the group: the operation that begins it, and which call of it."""
        return self._names[self.group(tensor)]

    def _number_sites(self):
        counts = {}
        for tensor in self._observed():
            group = self.group(tensor)
            self.sites[id(tensor)] = counts.get(group, 0)
            counts[group] = counts.get(group, 0) + 1
        self._counts = counts

    def site_count(self, tensor):
        """Number of sites of the group of `tensor`, at least 1."""
        return max(self._counts.get(self.group(tensor), 0), 1)

    def _observed(self):
        """Tensors whose values are computed here and end on a grid of their own."""
        yield from self.graph.inputs
        follows = (*rules.PASS_THROUGH, *rules.SAME_SCALE, *rules.JOINS)
        for call in self.graph.calls:
            if not isinstance(call.operation, follows) and not fused(self.graph, call):
                yield call.outputs[0]


def fused(graph, call):
    """Whether the output of a call stays inside a fused TFLite operation.

    That is so between a kernel, its batch normalization and its ReLU, and between an
    addition and its ReLU, where nothing else reads the tensor.
    """
    following = graph.only_consumer(call.outputs[0])
    if following is None:
        return False
    before, after = call.operation, following.operation
    normalizes = isinstance(after, keras.layers.BatchNormalization)
    is_relu = rules.activation(after) in ("relu", "relu6")
    if ends_linear(before):
        return normalizes or is_relu
    return is_relu and (
        rules.is_addition(before) or isinstance(before, keras.layers.BatchNormalization)
    )


def ends_linear(operation):
    """Whether it is a kernel layer without an activation of its own."""
    return (
        isinstance(operation, rules.CONVOLUTIONS)
        and getattr(operation.activation, "__name__", "") == "linear"
    )
