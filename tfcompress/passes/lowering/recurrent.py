"""Recurrent layers, unrolled: TFLite has no integer form of their loop.

Each step becomes a handful of operations that share one kernel; the projection of the
inputs is one Dense layer over all steps at once.
"""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph import built_copy, has_mask
from tfcompress.layers import ConstantTensor
from tfcompress.passes.lowering import parts

# Beyond this many steps the graph takes minutes to build.
LONGEST = 512


def recurrent(layer):
    """Form of LSTM, GRU and SimpleRNN."""
    make = _CELLS[type(layer)]
    unsupported = layer.recurrent_dropout or layer.stateful
    if unsupported or (make is _gru and not layer.reset_after):
        return None
    project, step = make(layer)
    dropout = (
        layers.SpatialDropout1D(layer.dropout, name=f"{layer.name}_dropout")
        if layer.dropout
        else None
    )

    def form(sequences, initial_state=None, mask=None, **kwargs):
        masked = has_mask(sequences) or mask is not None
        length = sequences.shape[1]
        if masked or length is None or length > LONGEST:
            return None
        x = sequences if dropout is None else dropout(sequences)
        return _unroll(layer, project(x), step, initial_state)

    return form


def _unroll(layer, projected, step, initial_state):
    length = projected.shape[1]
    states = None
    if initial_state is not None:
        states = list(keras.tree.flatten(initial_state))
    order = range(length)[::-1] if layer.go_backwards else range(length)
    outputs = []
    for time in order:
        states = step(projected[:, time], states)
        outputs.append(states[0])
    result = states[0]
    if layer.return_sequences:
        # Keras gives the outputs in the order in which they were computed.
        result = ops.stack(outputs, axis=1)
    return (result, *states) if layer.return_state else result


def _weights(layer):
    cell = layer.cell
    bias = parts.numpy(cell.bias) if cell.use_bias else None
    return parts.numpy(cell.kernel), parts.numpy(cell.recurrent_kernel), bias


def _lstm(layer):
    kernel, recurrent_kernel, bias = _weights(layer)
    project, recur = _projections(layer, kernel, recurrent_kernel, bias, None)
    gate, activation = layer.recurrent_activation, layer.activation

    def step(x, states):
        z = x if states is None else x + recur(states[0])
        i, f, c, o = ops.split(z, 4, axis=-1)
        new = gate(i) * activation(c)
        carry = new if states is None else gate(f) * states[1] + new
        return [gate(o) * activation(carry), carry]

    return project, step


def _gru(layer):
    kernel, recurrent_kernel, bias = _weights(layer)
    biases = (None, None) if bias is None else bias
    project, recur = _projections(layer, kernel, recurrent_kernel, *biases)
    gate, activation = layer.recurrent_activation, layer.activation
    units = layer.units
    no_state = ConstantTensor(
        np.zeros((1, units), "float32"), name=f"{layer.name}_start"
    )

    def step(x, states):
        if states is None and bias is None:
            # The state is 0, and so is what comes of it.
            z = gate(x[:, :units])
            return [activation(x[:, 2 * units :]) * _complement(z)]
        inner = recur(no_state(x) if states is None else states[0])
        gates = gate(x[:, : 2 * units] + inner[:, : 2 * units])
        z, r = ops.split(gates, 2, axis=-1)
        candidate = activation(x[:, 2 * units :] + r * inner[:, 2 * units :])
        mixed = candidate * _complement(z)
        return [mixed if states is None else z * states[0] + mixed]

    return project, step


def _complement(z):
    return z * -1.0 + 1.0


def _simple(layer):
    kernel, recurrent_kernel, bias = _weights(layer)
    project, recur = _projections(layer, kernel, recurrent_kernel, bias, None)
    activation = layer.activation

    def step(x, states):
        return [activation(x if states is None else x + recur(states[0]))]

    return project, step


def _projections(layer, kernel, recurrent_kernel, bias, recurrent_bias):
    project = parts.dense(
        layer,
        f"{layer.name}_kernel",
        kernel,
        bias,
        kernel_regularizer=parts.regularizer(layer, "kernel"),
    )
    recur = parts.dense(
        layer,
        f"{layer.name}_recurrent",
        recurrent_kernel,
        recurrent_bias,
        kernel_regularizer=parts.regularizer(layer, "recurrent"),
    )
    return project, recur


_CELLS = {layers.LSTM: _lstm, layers.GRU: _gru, layers.SimpleRNN: _simple}


def bidirectional(layer):
    """Form of Bidirectional: both directions, merged."""
    if layer.stateful or layer.return_state:
        return None
    forward, backward = (
        _copied(part, layer) for part in (layer.forward_layer, layer.backward_layer)
    )

    def form(sequences, **kwargs):
        if has_mask(sequences) or kwargs:
            return None
        first, second = forward(sequences), backward(sequences)
        if layer.return_sequences:
            steps = [second[:, t] for t in range(second.shape[1])][::-1]
            second = ops.stack(steps, axis=1)
        return _merged(layer.merge_mode, first, second)

    return form


def _copied(part, layer):
    return built_copy(part, name=f"{layer.name}_{part.name}")


def _merged(mode, first, second):
    if mode == "concat":
        return ops.concatenate([first, second], axis=-1)
    if mode == "sum":
        return first + second
    if mode == "ave":
        return (first + second) * 0.5
    if mode == "mul":
        return first * second
    return [first, second]


LAYERS = dict.fromkeys(_CELLS, recurrent) | {layers.Bidirectional: bidirectional}
