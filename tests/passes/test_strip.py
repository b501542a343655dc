"""`tfc.strip`: plain Keras models out of whatever the passes made."""

import numpy as np
from networks import compiled, conv_net, image_data

import tfcompress as tfc


def test_the_stripped_model_has_keras_layers_only_and_effective_weights():
    x, y = image_data(64)
    qat = compiled(tfc.quantize_aware(conv_net(), calibration_data=x))
    qat.fit(x, y, epochs=2, verbose=0)
    plain = tfc.strip(qat)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    np.testing.assert_array_equal(
        plain.get_layer("conv").kernel.numpy(),
        qat.get_layer("conv").effective_weights()["kernel"],
    )
    # What is left of the difference is the rounding of activations.
    difference = np.abs(plain.predict(x, verbose=0) - qat.predict(x, verbose=0))
    assert 0 < difference.mean() < 0.05


def test_a_distiller_around_a_quantized_student_is_stripped_of_both():
    x, _ = image_data(16)
    model = conv_net()
    distiller = tfc.distill(tfc.quantize_aware(model, calibration_data=x), model)
    plain = tfc.strip(distiller)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)


def test_a_plain_model_comes_back_itself():
    model = conv_net()
    assert tfc.strip(model) is model


def test_the_stripped_model_trains_on_and_can_be_quantized_again():
    x, y = image_data(64)
    plain = tfc.strip(tfc.quantize_aware(conv_net(), calibration_data=x))
    compiled(plain).fit(x, y, verbose=0)
    tfc.quantize_aware(plain)
