"""`tfc.CompressionLogger`: what stands in the event file."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from callbacks.test_pruning import fit
from networks import compiled, conv_net, image_data, zeros

import tfcompress as tfc


def scalars(folder):
    """Dict from tag to a dict from step to value."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, {})[event.step] = number
    return found


def test_it_writes_zeros_thresholds_and_changes_of_each_kernel(tmp_path):
    model = compiled(conv_net())
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(
            model.get_layer("hidden").kernel.numpy()
        )
    )
    fit(model, tfc.Pruning(0.8), keep, tfc.CompressionLogger(tmp_path))
    found = scalars(tmp_path)
    assert set(found["sparsity"]) == {0, 1, 2, 3}
    total = np.concatenate(
        [k.numpy().ravel() for k in tfc.graph.kernels(model).values()]
    )
    assert found["sparsity"][3] == pytest.approx(np.mean(total == 0))
    for path, expected in zip(tfc.graph.kernels(model), zeros(model), strict=True):
        assert found[f"sparsity/{path}"][3] == pytest.approx(expected)
    for epoch, weight in enumerate(weights):
        alive = np.abs(weight[weight != 0])
        assert found["threshold/hidden/kernel"][epoch] == pytest.approx(alive.min())
    changes = found["mask_changes/hidden/kernel"]
    assert set(changes) == {1, 2, 3}
    for epoch in changes:
        moved = np.mean((weights[epoch] == 0) != (weights[epoch - 1] == 0))
        assert changes[epoch] == pytest.approx(moved)
    # The mask rises over two epochs and then stays.
    assert changes[1] > 0 and changes[3] == 0


@pytest.mark.slow
def test_of_a_quantized_model_it_writes_ranges_and_the_zeros_that_count(tmp_path):
    x, _ = image_data()
    model = compiled(conv_net())
    fit(model, tfc.Pruning(0.8, scope="layer"))
    qat = compiled(tfc.quantize_aware(model, calibration_data=x[:32]))
    fit(qat, tfc.CompressionLogger(tmp_path), epochs=2)
    found = scalars(tmp_path)
    # The latent weights are not zero any more; those that are computed with are.
    (tag,) = [tag for tag in found if tag.startswith("sparsity/hidden")]
    assert found[tag][1] == pytest.approx(0.8, abs=0.01)
    for quantizer in tfc.graph.find_layers(qat, tfc.layers.FakeQuant):
        if quantizer.fixed_range is None:
            low, high = quantizer.range()
            assert found[f"range_low/{quantizer.name}"][1] == pytest.approx(low)
            assert found[f"range_high/{quantizer.name}"][1] == pytest.approx(high)


def test_only_some_kernels(tmp_path):
    fit(
        compiled(conv_net()),
        tfc.CompressionLogger(tmp_path, include="hidden"),
        epochs=1,
    )
    tags = {tag for tag in scalars(tmp_path) if "/" in tag}
    assert tags == {"sparsity/hidden/kernel", "threshold/hidden/kernel"}


def test_a_pattern_that_matches_nothing_lists_the_paths(tmp_path):
    logger = tfc.CompressionLogger(tmp_path, exclude="hiden")
    with pytest.raises(ValueError, match="(?s)matches nothing.*hidden/kernel"):
        fit(compiled(conv_net()), logger)


def test_the_config_makes_another(tmp_path):
    logger = tfc.CompressionLogger(tmp_path, include=["a"])
    again = tfc.CompressionLogger(**logger.get_config())
    assert again.get_config() == logger.get_config()
