"""`tfc.sensitivity` against pruning by hand, and the rules that follow."""

import importlib

import keras
import numpy as np
import pytest
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.measure import right_of
from tfcompress.sensitivity import KernelSensitivity, Sensitivity


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=5, verbose=0)
    return model


def _sizes(found):
    return np.array([k.parameters for k in found.kernels])


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_values_are_those_of_a_model_pruned_by_hand(trained, metric):
    x, y = image_data(150, seed=1)
    before = trained.get_weights()
    found = tfc.sensitivity(trained, (x, y), sparsities=(0.9, 0.5), metric=metric)
    index = ["loss", "accuracy"].index(metric)
    # 1e-5: the loss is a float32 mean in another order.
    assert found.baseline == pytest.approx(
        trained.evaluate(x, y, verbose=0)[index], abs=1e-5
    )
    assert found.sparsities == (0.5, 0.9)
    assert [k.path for k in found.kernels] == list(tfc.graph.kernels(trained))
    assert _sizes(found).tolist() == [216, 72, 1024, 24]
    for kernel, variable in zip(
        found.kernels, tfc.graph.kernels(trained).values(), strict=True
    ):
        weight = variable.numpy()
        order = np.argsort(np.abs(weight).ravel())
        for sparsity, value in zip(found.sparsities, kernel.values, strict=True):
            pruned = weight.copy().ravel()
            pruned[order[: round(sparsity * weight.size)]] = 0
            variable.assign(pruned.reshape(weight.shape))
            expected = trained.evaluate(x, y, verbose=0)[index]
            assert value == pytest.approx(expected, abs=1e-5)
        variable.assign(weight)
    for old, new in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_are_back_when_measuring_fails(monkeypatch):
    model = compiled(conv_net())
    before = model.get_weights()
    calls = []

    def fails_once_pruned(outputs, labels):
        calls.append(any((w == 0).mean() > 0.4 for w in model.get_weights()[:1]))
        if calls[-1]:
            raise KeyboardInterrupt
        return right_of(outputs, labels)

    module = importlib.import_module("tfcompress.sensitivity")  # Not the function.
    monkeypatch.setattr(module, "right_of", fails_once_pruned)
    with pytest.raises(KeyboardInterrupt):
        tfc.sensitivity(model, image_data(32))
    assert calls == [False, True]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_data_are_read_once_in_batches_of_any_size(trained, metric):
    x, y = image_data(70, seed=2)

    def once():
        for begin, end in ((0, 32), (32, 39), (39, 70)):
            yield x[begin:end], y[begin:end]

    found, expected = (
        tfc.sensitivity(trained, data, sparsities=(0.5, 0.9), metric=metric)
        for data in (once(), (x, y))
    )
    for one, other in zip(found.kernels, expected.kernels, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-5)


def test_a_loss_leaves_metrics_and_training_as_they_were(trained):
    x, y = image_data(64)
    before = [v.numpy() for v in trained.metrics_variables]
    tfc.sensitivity(trained, (x, y), sparsities=(0.5,), metric="loss")
    for old, variable in zip(before, trained.metrics_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def _of(metric, baseline, sparsities, *rows):
    kernels = [KernelSensitivity(f"k{i}/kernel", *row) for i, row in enumerate(rows)]
    return Sensitivity("m", metric, baseline, sparsities, tuple(kernels))


def _suggested(found, total):
    return [rule.settings["sparsity"] for rule in found.rules(total)]


def test_every_kernel_costs_the_same():
    # Costs rise by 0.1 over 0.5 and by 0.2: at a cost of 0.1 sparsities are 0.5 and
    # 0.25 of 1,000 weights each, 0.375 together.
    found = _of("loss", 1.0, (0.5,), (1000, (1.1,)), (1000, (1.2,)))
    assert _suggested(found, 0.375) == [0.5, 0.25]
    # At half the cost.
    assert _suggested(found, 0.1875) == [0.25, 0.125]
    # Accuracy falls where loss rises.
    found = _of("accuracy", 1.0, (0.5,), (1000, (0.9,)), (1000, (0.8,)))
    assert _suggested(found, 0.375) == [0.5, 0.25]


def test_kernels_that_cost_nothing_go_first_and_together():
    found = _of(
        "loss", 1.0, (0.5, 0.8), (100, (1.0, 1.0)), (100, (1.0, 1.5)), (9, (2, 3))
    )
    first, second, third = _suggested(found, 0.3)
    assert third == 0
    assert first / second == pytest.approx(0.8 / 0.5, abs=0.03)
    # A metric that gets better by chance is no gain to come back from.
    found = _of("loss", 1.0, (0.5, 0.8), (100, (1.5, 0.5)), (100, (1.2, 1.3)))
    first, second = _suggested(found, 0.5)
    assert second > first


@pytest.mark.parametrize("total", [0.0, 0.123, 0.5, 0.8, 0.9])
def test_the_total_is_met_to_the_weight(total):
    rng = np.random.default_rng(0)
    rows = [
        (size, tuple(1 + np.cumsum(rng.random(3)) ** 2)) for size in (7, 64, 999, 12345)
    ]
    found = _of("loss", 1.0, (0.5, 0.8, 0.95), *rows)
    zeros = np.array(_suggested(found, total)) * _sizes(found)
    np.testing.assert_allclose(zeros, np.round(zeros), atol=1e-9)
    assert round(zeros.sum()) == round(total * _sizes(found).sum())
    assert (zeros < _sizes(found)).all()


def test_rules_go_into_pruning(trained):
    x, y = image_data()
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    found = tfc.sensitivity(compiled(model), (x, y), metric="loss")
    rules = found.rules(0.8)
    history = model.fit(
        x, y, epochs=4, verbose=0, callbacks=[tfc.Pruning(rules=rules)]
    ).history
    assert history["sparsity"][-1] == round(0.8 * 1336) / 1336
    assert history["accuracy"][-1] > 0.8


def test_a_subclassed_model_and_a_part_of_it():
    x, y = image_data(64)
    model = Subclassed()
    model(x[:1])
    found = tfc.sensitivity(model, (x, y), include="conv", sparsities=(0.5,))
    assert [k.path for k in found.kernels] == ["conv/kernel"]


def test_it_prints_and_plots(trained):
    found = tfc.sensitivity(trained, image_data(64), sparsities=(0.5, 0.95))
    lines = str(found).splitlines()
    assert "50%" in lines[1] and "95%" in lines[1]
    assert any(line.startswith("hidden/kernel") and "1,024" in line for line in lines)
    assert found.plot().startswith(b"\x89PNG")


def test_what_cannot_be_measured(trained):
    data = image_data(32)
    with pytest.raises(ValueError, match=r"`metric` must be one of"):
        tfc.sensitivity(trained, data, metric="size")
    with pytest.raises(ValueError, match="compile it first"):
        tfc.sensitivity(conv_net(), data, metric="loss")
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        tfc.sensitivity(trained, data, sparsities=(80,))
    with pytest.raises(ValueError, match="must hold labels"):
        tfc.sensitivity(trained, data[0], metric="loss")
    with pytest.raises(ValueError, match="matches nothing"):
        tfc.sensitivity(trained, data, include="nowhere")
    with pytest.raises(TypeError, match="Keras 3 model"):
        tfc.sensitivity("model", data)
    found = _of("loss", 1.0, (0.5,), (1000, (1.1,)))
    with pytest.raises(ValueError, match="up to 0.5.*Try more.*0.75"):
        found.rules(0.6)
