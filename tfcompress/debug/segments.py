"""Each segment of a model between quantizers, computed with and without rounding.

Example:
    ```python
    for row in Probe(qat).rows([[x]]):
        print(row.name, row.own.sqnr_db)
    ```
"""

import functools
import itertools
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfcompress.debug.differences import LayerError, add, difference, sums
from tfcompress.graph import Graph, built_copy, flatten, rewrite
from tfcompress.layers import FakeQuant, TransformWeights
from tfcompress.passes.export_graph import check_ranges, exported_range
from tfcompress.passes.strip import effective_layer
from tfcompress.progress import tracked

_SMALLEST_STEP = float(np.finfo(np.float32).tiny)


@dataclass
class Site:
    """A call of a quantizer, with tensors of the probe.

    Attributes:
        exact: The tensor in a model without any rounding.
        latent: Its segment on rounded tensors, without rounding.
        before: The same with rounded weights.
        after: The same with rounded weights, itself rounded.
    """

    name: str
    operations: tuple
    kernels: tuple
    quantizer: FakeQuant
    exact: keras.KerasTensor
    latent: keras.KerasTensor
    before: keras.KerasTensor
    after: keras.KerasTensor

    @property
    def step(self):
        """Step of the grid on which the model rounds."""
        low, high = self.quantizer.range()
        return max(high - low, _SMALLEST_STEP) / (2**self.quantizer.bits - 1)

    @functools.cached_property
    def grid(self):
        """`(scale, zero point, type)` as the file has them."""
        low, high = exported_range(self.quantizer)
        bits = self.quantizer.bits
        scale = (high - low) / (2**bits - 1)
        zero_point = round(-low / scale) - 2 ** (bits - 1)
        return scale, zero_point, "INT8" if bits <= 8 else "INT16"


class Probe:
    """A copy of the model in which each segment is computed with and without rounding.

    Attributes:
        sites: List of `Site` in the order of the model.
    """

    def __init__(self, model):
        check_ranges(model)
        graph = Graph(flatten(model))
        shadows = _Shadows(graph)
        self.model = rewrite(graph, shadows)
        self.sites = shadows.sites

    def rows(self, inputs):
        """A `LayerError` for each site, from a list of batches."""
        pairs = [
            pair
            for s in self.sites
            for pair in (
                (s.latent, s.after),
                (s.latent, s.before),
                (s.before, s.after),
                (s.exact, s.after),
            )
        ]
        compare = self._function(pairs)
        total = functools.reduce(
            add,
            (np.asarray(compare(b), np.float64) for b in tracked(inputs, "Comparing")),
        )
        return [
            _row(site, found)
            for site, found in zip(
                self.sites, total.reshape(len(self.sites), 4, 3), strict=True
            )
        ]

    def _function(self, pairs):
        # Tensors are summed up where they are computed: together they may be large.
        model = keras.Model(self.model.inputs, [t for pair in pairs for t in pair])

        @tf.function(reduce_retracing=True, autograph=False)
        def compare(inputs):
            found = keras.tree.flatten(model(inputs, training=False))
            return tf.stack(
                [sums(x, q) for x, q in zip(found[::2], found[1::2], strict=True)]
            )

        return compare

    def rounded(self):
        """A function from a batch to what the sites give, as a list of arrays."""
        model = keras.Model(self.model.inputs, [s.after for s in self.sites])

        @tf.function(reduce_retracing=True, autograph=False)
        def infer(inputs):
            found = keras.tree.flatten(model(inputs, training=False))
            return [tf.cast(v, tf.float32) for v in found]

        return lambda inputs: [np.asarray(v) for v in infer(inputs)]


class _Shadows:
    """Visitor that computes what rounding changes a second and a third time.

    `exact` has no rounding at all; `latent` starts anew from each rounded tensor. Both
    are dicts from the id of a tensor to the tensor that stands for it, where that is
    another one.
    """

    def __init__(self, graph):
        self.graph = graph
        self.sites = []
        self.exact, self.latent = {}, {}
        self.pairs = {}
        self.names = {}

    def __call__(self, call, clone, args, kwargs):
        plain, rounded = self._pair(call.operation, clone)
        outputs = keras.tree.flatten(rounded(*args, **kwargs))
        if isinstance(call.operation, FakeQuant):
            before, after = keras.tree.flatten((args, kwargs))[0], outputs[0]
            exact = self.exact.get(id(before), before)
            latent = self.latent.get(id(before), before)
            self.sites.append(self._site(call, exact, latent, before, after))
            self.exact[id(after)] = exact
            return outputs
        for shadows in (self.exact, self.latent):
            shadow_args = _replaced((args, kwargs), shadows)
            if plain is not rounded or _differ((args, kwargs), shadow_args):
                found = keras.tree.flatten(plain(*shadow_args[0], **shadow_args[1]))
                shadows.update((id(t), s) for t, s in zip(outputs, found, strict=True))
        return outputs

    def _pair(self, operation, clone):
        """What computes an operation with weights not rounded, and rounded.

        Of wrapped weights these are layers that hold them, not wrappers that compute
        them: quicker to build and to run.
        """
        if not isinstance(operation, TransformWeights):
            return clone(operation), clone(operation)
        if id(operation) not in self.pairs:
            unrounded = built_copy(operation)
            for state in itertools.chain.from_iterable(unrounded.states.values()):
                if "bits" in state:
                    state["bits"].assign(0)
            self.pairs[id(operation)] = (
                effective_layer(unrounded, name=f"{operation.name}_unrounded"),
                effective_layer(operation),
            )
        return self.pairs[id(operation)]

    def _site(self, call, *tensors):
        segment = self._segment(call)
        kernels = [o for o in segment if isinstance(o, TransformWeights)]
        return Site(
            self._name(call),
            tuple(dict.fromkeys(o.name for o in segment)),
            tuple(dict.fromkeys(o.name for o in kernels)),
            call.operation,
            *tensors,
        )

    def _segment(self, call):
        """The operations between earlier quantizers and this one."""
        seen, left = set(), list(call.input_tensors)
        while left:
            producer = self.graph.producer(left.pop())
            if producer is None or isinstance(producer.operation, FakeQuant):
                continue
            if id(producer) not in seen:
                seen.add(id(producer))
                left.extend(producer.input_tensors)
        return [c.operation for c in self.graph.calls if id(c) in seen]

    def _name(self, call):
        """What is rounded, and for what group if it has been rounded before."""
        tensor = call.input_tensors[0]
        producer = self.graph.producer(tensor)
        name = tensor.name if producer is None else producer.operation.name
        if producer is not None and isinstance(producer.operation, FakeQuant):
            group = call.operation.name.removesuffix("_quant")
            name = f"{name.removesuffix('_quant')}_to_{group}"
        count = self.names[name] = self.names.get(name, 0) + 1
        return name if count == 1 else f"{name}_call{count}"


def _replaced(structure, shadows):
    return keras.tree.map_structure(lambda t: shadows.get(id(t), t), structure)


def _differ(first, second):
    pairs = zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True)
    return any(a is not b for a, b in pairs)


def _row(site, totals):
    own, weights, output, model = (difference(s, site.step) for s in totals)
    return LayerError(
        name=site.name,
        operations=site.operations,
        kernels=site.kernels,
        scale=site.step,
        own=own,
        weights=weights if site.kernels else None,
        output=output,
        model=model,
    )
