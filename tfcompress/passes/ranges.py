"""Which tensors share one quantizer, because TFLite gives them one scale.

Example:
    ```python
    groups = RangeGroups(Graph(model))
    groups.group(tensor), groups.sites[id(tensor)]   # which quantizer, which site
    ```
"""

import keras

from tfcompress.passes import quantize_rules as rules


def is_float(tensor):
    """Whether a tensor holds real numbers, which are quantized."""
    return keras.backend.is_float_dtype(tensor.dtype)


class RangeGroups:
    """Groups of tensors that have one scale, by union-find over the edges.

    Args:
        graph: `Graph` of a model of operations that `quantize_rules` knows.
        bits: Width of activations.
        floats: Names of operations that stay float.
        identities: Names of operations that are the identity at inference.

    Attributes:
        sites: Dict from the id of a tensor that is observed to its number within its
            group.
        joined: Dict from `(id of a call, id of a tensor)` to the site at which a join
            rounds an input again, because TFLite prescribes another scale for it.
    """

    def __init__(self, graph, *, bits=8, floats=(), identities=()):
        self.graph = graph
        self.bits = bits
        self.floats = set(floats)
        self.identities = set(identities)
        self._parent = {}
        self._fixed = {}
        self._names = {}
        self._calls = {}
        self.sites = {}
        self.joined = {}
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
        operation = call.operation
        for tensor in call.outputs:
            self._add(tensor, operation.name)
        outputs = [t for t in call.outputs if is_float(t)]
        inputs = [t for t in call.input_tensors if is_float(t)]
        if not outputs or self.stays_float(call):
            return
        if self._shares(operation) and inputs:
            first = inputs[0] if not rules.joins(operation) else outputs[0]
            for tensor in (*inputs, *outputs):
                prescribed = self.fixed_range(tensor) is not None
                if rules.joins(operation) and prescribed:
                    self.joined[id(call), id(tensor)] = None
                elif self.group(tensor) != self.group(first):
                    self._unite(first, tensor)
            return
        fixed = rules.prescribed_range(rules.activation(operation), self.bits)
        if fixed is not None:
            self._fixed.update((id(t), fixed) for t in outputs)

    def _shares(self, operation):
        return operation.name in self.identities or rules.shares_scale(operation)

    def _unite(self, first, second):
        """Makes one group of two, which `first` names."""
        self._parent[self.group(second)] = self.group(first)

    def stays_float(self, call):
        """Whether the operation was asked to stay float."""
        return call.operation.name in self.floats

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

    def rounded(self, call):
        """Whether the outputs are rounded to a grid that they share with the input."""
        operation = call.operation
        if operation.name in self.identities or self.stays_float(call):
            return False
        if rules.joins(operation):
            # A constant among the inputs is not on the grid yet.
            return has_constants(call)
        return rules.keeps_scale(operation)

    def _number_sites(self):
        counts = {}

        def number(tensor):
            group = self.group(tensor)
            counts[group] = counts.get(group, 0) + 1
            return counts[group] - 1

        for tensor in self._observed():
            self.sites[id(tensor)] = number(tensor)
        for call in self.graph.calls:
            for tensor in call.input_tensors:
                if (id(call), id(tensor)) in self.joined:
                    self.joined[id(call), id(tensor)] = number(call.outputs[0])
        self._counts = counts

    def site_count(self, tensor):
        """Number of sites of the group of `tensor`, at least 1."""
        return max(self._counts.get(self.group(tensor), 0), 1)

    def _observed(self):
        """Tensors whose values are computed here and end on a grid of their own."""
        for tensor in self.graph.inputs:
            if is_float(tensor) and self._read_as_integers(tensor):
                yield tensor
        for call in self.graph.calls:
            for tensor in filter(is_float, call.outputs):
                if self._ends_here(call, tensor):
                    yield tensor

    def _read_as_integers(self, tensor):
        return any(not self.stays_float(c) for c in self.graph.consumers(tensor))

    def _ends_here(self, call, tensor):
        if self.stays_float(call):
            return self._read_as_integers(tensor)
        if self._shares(call.operation) and any(map(is_float, call.input_tensors)):
            return rules.joins(call.operation) and has_constants(call)
        return not is_weight(call.operation) and not fused(
            self.graph, call, self.floats
        )


def has_constants(call):
    """Whether an operand of the call is a number or array rather than a tensor."""
    flat = keras.tree.flatten((call.arguments.args, call.arguments.kwargs))
    numbers = [v for v in flat if not isinstance(v, (keras.KerasTensor, str, bool))]
    if isinstance(call.operation, keras.layers.Layer):
        return False
    return any(v is not None for v in numbers)


def is_weight(operation):
    """Whether it only hands a weight to the graph, rounded by a transform."""
    return isinstance(operation, rules.Parameter)


def fused(graph, call, floats=()):
    """Whether the output of a call stays inside a fused TFLite operation.

    That is so between a kernel, its batch normalization and its ReLU, and between an
    addition and its ReLU, where nothing else reads the tensor.
    """
    following = graph.only_consumer(call.outputs[0])
    if following is None or {call.operation.name, following.operation.name} & set(
        floats
    ):
        return False
    before, after = call.operation, following.operation
    is_relu = rules.activation(after) in ("relu", "relu6")
    if ends_linear(before):
        return folds(graph, following) or (
            is_relu and not isinstance(before, rules.TRANSPOSED)
        )
    if folds(graph, call):
        root = graph.producer(call.input_tensors[0]).operation
        return is_relu and not isinstance(root, rules.TRANSPOSED)
    return is_relu and (
        rules.is_addition(before)
        or isinstance(before, (rules.Affine, *rules.NORMALIZATIONS))
    )


def folds(graph, call):
    """Whether a batch normalization or `Affine` folds into the kernel before."""
    if not isinstance(call.operation, (rules.Affine, *rules.NORMALIZATIONS)):
        return False
    tensor = call.input_tensors[0]
    producer = graph.producer(tensor)
    return (
        producer is not None
        and ends_linear(producer.operation)
        and graph.only_consumer(tensor) is call
        and over_last_axis(call)
    )


def over_last_axis(call):
    """Whether a normalization keeps the last axis."""
    rank = len(call.input_tensors[0].shape)
    return getattr(call.operation, "axis", -1) in (-1, rank - 1)


def ends_linear(operation):
    """Whether it is a kernel layer without an activation of its own."""
    return (
        isinstance(operation, rules.CONVOLUTIONS)
        and getattr(operation.activation, "__name__", "") == "linear"
    )
