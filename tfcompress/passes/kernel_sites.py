"""What each rounded kernel reads and gives, with rounding and without.

Example:
    ```python
    exact = float_copy(quantized)
    for site, twin in zip(kernel_sites(quantized), kernel_sites(exact), strict=True):
        wanted = Probe(exact, twin.outputs)(batch)
        found = Probe(quantized, site.outputs)(batch)
    ```
"""

import itertools
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.graph import Graph, find_layers, rewrite, substituted, unchanged
from tfcompress.layers import (
    FakeQuant,
    KeepZeros,
    NormalizedKernel,
    QuantizeWeight,
    TransformWeights,
    find_weight,
)
from tfcompress.passes import quantize_rules as rules
from tfcompress.passes.export_graph import scale_and_shift


@dataclass(frozen=True, eq=False)
class KernelSite:
    """A layer with a rounded kernel in a quantization-aware model.

    Attributes:
        wrapper: The `TransformWeights`.
        normalization: The normalization that alone reads it, or that is part of it;
            `None` if there is none.
        activation: The ReLU that alone reads that, an operation; or `None`.
        inputs: What it reads, a symbolic tensor for each call.
        outputs: What it gives, likewise.
        ends: What leaves it after normalization and ReLU, likewise.
    """

    wrapper: TransformWeights
    normalization: Any
    activation: Any
    inputs: tuple
    outputs: tuple
    ends: tuple

    @property
    def name(self):
        """Name of the layer."""
        return self.wrapper.name

    @property
    def layer(self):
        """The layer with the kernel."""
        inner = self.wrapper.layer
        return inner.layer if isinstance(inner, NormalizedKernel) else inner

    @property
    def kernel(self):
        """The variable that is rounded."""
        return find_weight(self.wrapper.layer, "kernel")

    def function(self):
        """What it computes: a function of inputs and kernel, tensors like its own.

        It returns what `ends` are, in float32, with bias and normalization as they are
        now.
        """
        scale, shift = None, None
        if self.normalization is not None:
            found = scale_and_shift(self.normalization)
            scale, shift = (array.astype("float32") for array in found)

        def compute(inputs, kernel):
            with substituted([(self.kernel, kernel)]):
                y = self.layer(inputs)
            y = tf.cast(y, tf.float32)
            if scale is not None:
                y = y * scale + shift
            if self.activation is not None:
                # Of mixed precision it would answer in half.
                y = tf.cast(self.activation(y), tf.float32)
            return y

        return compute


def kernel_sites(model):
    """The `KernelSite`s of a quantization-aware model, in the order of execution.

    Kernels behind a codebook are left out: rounded by themselves, weights that share a
    value would not share it any more. So are weights that are operands.

    Args:
        model: What `quantize_aware` returned.
    """
    graph, found = Graph(model), {}
    for call in graph.calls:
        if isinstance(call.operation, TransformWeights):
            found.setdefault(id(call.operation), []).append(call)
    sites = (_site(graph, calls) for calls in found.values())
    return [site for site in sites if site is not None]


def _site(graph, calls):
    wrapper = calls[0].operation
    inner = wrapper.layer
    joined = isinstance(inner, NormalizedKernel)
    layer = inner.layer if joined else inner
    if type(layer) not in rules.CONVOLUTIONS or not _rounds_only(wrapper):
        return None
    shape = calls[0].input_tensors[0].shape
    calls = [call for call in calls if call.input_tensors[0].shape == shape]
    normalization, activation = inner.normalization if joined else None, None
    last = calls
    if len(calls) == 1:
        following = graph.only_consumer(last[0].outputs[0])
        if following is not None and _normalizes(following.operation) and not joined:
            normalization, last = following.operation, [following]
            following = graph.only_consumer(last[0].outputs[0])
        if following is not None and _is_relu(following.operation):
            activation, last = following.operation, [following]
    return KernelSite(
        wrapper=wrapper,
        normalization=normalization,
        activation=activation,
        inputs=tuple(call.input_tensors[0] for call in calls),
        outputs=tuple(call.outputs[0] for call in calls),
        ends=tuple(call.outputs[0] for call in last),
    )


def _rounds_only(wrapper):
    chain = wrapper.transforms.get("kernel", [])
    return (
        bool(chain)
        and isinstance(chain[-1], QuantizeWeight)
        and all(isinstance(transform, KeepZeros) for transform in chain[:-1])
    )


def _normalizes(operation):
    return isinstance(operation, (rules.Affine, *rules.NORMALIZATIONS))


def _is_relu(operation):
    return rules.activation(operation) in ("relu", "relu6")


class Probe:
    """Runs a model for inference and returns some of its tensors.

    Args:
        model: Functional `keras.Model`.
        tensors: List of its symbolic tensors.
        reduce: Function of a tensor that is applied where it is computed, so that a
            large one need not be handed out; `None` for none.
    """

    def __init__(self, model, tensors, reduce=None):
        part = keras.Model(model.inputs, list(tensors))
        specs = [tf.TensorSpec(t.shape, t.dtype) for t in model.inputs]

        @tf.function(input_signature=[specs], autograph=False)
        def run(inputs):
            found = keras.tree.flatten(part(inputs, training=False))
            return found if reduce is None else [reduce(tensor) for tensor in found]

        # TensorFlow warns of functions that are made in a loop, one for each layer.
        self._run = run.get_concrete_function()

    def __call__(self, inputs):
        """The tensors as numpy arrays, for a batch given as a list of arrays."""
        return [np.asarray(tensor) for tensor in self._run(inputs)]


def float_copy(model):
    """A copy of a quantization-aware model in which nothing is rounded.

    It has the same `kernel_sites`, with the same weights, and keeps these.

    Args:
        model: What `quantize_aware` returned.
    """
    copied = rewrite(Graph(model), unchanged)
    for quantizer in find_layers(copied, FakeQuant):
        quantizer.rounding.assign(0)
    for wrapper in find_layers(copied, TransformWeights):
        for state in itertools.chain.from_iterable(wrapper.states.values()):
            if "bits" in state:
                state["bits"].assign(0)
    return copied
