"""Reading calls, edges and consumers."""

import keras
import models
import numpy as np
import pytest
from keras import layers

from tfcompress.graph import Graph, activation_name
from tfcompress.graph.view import functional


def _call(graph, name):
    return next(c for c in graph.calls if c.operation.name == name)


def _branches():
    inputs = keras.Input((4,), name="x")
    a = layers.Dense(4, name="a")(inputs)
    b = layers.Dense(4, name="b")(a)
    c = layers.Dense(4, name="c")(a)
    model = keras.Model(inputs, [layers.Add(name="sum")([b, c]), c])
    return model, Graph(model)


def test_calls_come_after_what_they_read():
    for build in models.ALL.values():
        model = build()
        graph = Graph(model)
        known = {id(t) for t in graph.inputs}
        for call in graph.calls:
            assert {id(t) for t in call.input_tensors} <= known
            known |= {id(t) for t in call.outputs}
        assert {id(t) for t in graph.outputs} <= known


def test_inputs_are_no_calls():
    _, graph = _branches()
    assert {c.operation.name for c in graph.calls} == {"a", "b", "c", "sum"}
    assert [t.name for t in graph.inputs] == ["x"]


def test_a_shared_layer_has_several_calls():
    names = [c.operation.name for c in Graph(models.shared()).calls]
    assert names.count("twice") == 2


def test_producer_and_consumers():
    model, graph = _branches()
    a = _call(graph, "a")
    assert graph.producer(a.outputs[0]) is a
    assert graph.producer(model.inputs[0]) is None
    readers = {c.operation.name for c in graph.consumers(a.outputs[0])}
    assert readers == {"b", "c"}
    assert graph.consumers(_call(graph, "sum").outputs[0]) == []


def test_only_consumer_is_none_for_branches_and_model_outputs():
    _, graph = _branches()
    assert graph.only_consumer(_call(graph, "b").outputs[0]) is _call(graph, "sum")
    assert graph.only_consumer(_call(graph, "a").outputs[0]) is None
    # `c` is read by `sum` alone, but it is an output of the model, too.
    assert graph.only_consumer(_call(graph, "c").outputs[0]) is None
    assert graph.only_consumer(_call(graph, "sum").outputs[0]) is None


def test_a_call_that_reads_a_tensor_twice_is_no_only_consumer_by_mistake():
    inputs = keras.Input((2,), name="x")
    y = layers.Dense(2, name="d")(inputs)
    graph = Graph(keras.Model(inputs, layers.Add(name="sum")([y, y])))
    found = graph.consumers(_call(graph, "d").outputs[0])
    assert {c.operation.name for c in found} == {"sum"}


def test_is_output():
    model, graph = _branches()
    assert all(graph.is_output(t) for t in model.outputs)
    assert not graph.is_output(_call(graph, "a").outputs[0])


def test_calls_outside_the_model_are_not_seen():
    model, _ = _branches()
    keras.Model(model.inputs, layers.Dense(1, name="other")(model.outputs[0]))
    graph = Graph(model)
    assert "other" not in {c.operation.name for c in graph.calls}
    assert graph.consumers(model.outputs[0]) == []


@pytest.mark.parametrize("name", models.ALL)
def test_functional_and_sequential_models_have_a_function(name):
    assert functional(models.ALL[name]()) is not None


def test_subclassed_and_unbuilt_models_have_no_function():
    assert functional(models.Subclassed()) is None
    assert functional(keras.Sequential([layers.Dense(2)])) is None


@pytest.mark.parametrize(
    "layer, name",
    [
        (layers.Dense(2), "linear"),
        (layers.Dense(2, activation="softmax"), "softmax"),
        (layers.Conv2D(2, 1, activation=keras.activations.relu), "relu"),
        (layers.Flatten(), "linear"),
        (layers.Activation("tanh"), "tanh"),
    ],
)
def test_activation_name(layer, name):
    assert activation_name(layer) == name


def test_an_activation_without_a_name_is_custom():
    assert activation_name(layers.Dense(2, activation=layers.ReLU())) == "custom"


def test_reading_a_model_does_not_change_it():
    model = models.nested()
    config = model.get_config()
    x = models.examples(model)
    before = models.outputs(model, x)
    Graph(model)
    assert model.get_config() == config
    np.testing.assert_array_equal(models.outputs(model, x), before)
