"""Post-training quantization: an integer model of a trained one, without training.

Example:
    ```python
    quantized = tfc.quantize_post_training(model, x_train[:512], rounding="adaround")
    tfc.export_tflite(quantized, "model.tflite", kind="int8")
    ```
"""

from absl import logging

from tfcompress.checks import batches, check_count, check_model
from tfcompress.graph import find_layers
from tfcompress.layers import LearnedStep, TransformWeights, find_weight
from tfcompress.numerics.learned_step import least_error_step
from tfcompress.passes.adaround import AdaRound
from tfcompress.passes.bias_correction import BiasCorrection
from tfcompress.passes.calibration import calibrate
from tfcompress.passes.kernel_sites import float_copy, kernel_sites
from tfcompress.passes.quantization_config import resolved
from tfcompress.passes.quantize import quantize_aware
from tfcompress.progress import bar

ROUNDINGS = ("nearest", "adaround")


def quantize_post_training(
    model,
    calibration_data,
    config="int8",
    *,
    rounding="nearest",
    correct_bias=True,
    steps=1000,
    seed=0,
    **settings,
):
    """Quantizes a trained model without training it.

    Use it where there are no labels, or no time to train; `tfc.quantize_aware` and a
    few epochs give more. What it returns is what that function returns: it predicts as
    the integer file will, exports, strips, saves, and may be trained on.

    - Ranges of activations come from the data, by `config.ranges`: `"minmax"`,
      `"percentile"`, `"mse"`, `"kl"` or `"moving_average"`.
    - Steps of weights come from the largest weight, or with
      `tfc.QuantizationConfig(weights="learned_step")` are those of least squared error.
    - `rounding="adaround"` learns, layer after layer, which weights to round up and
      which down so that the layer's output changes least; it pays at 4 bits and takes
      minutes for large models.
    - `correct_bias` gives each channel of a layer the mean it has in float.

    `tfc.equalize(model)` beforehand helps where weights have one scale a layer.

    Args:
        model: Built, trained `keras.Model`. It is not changed.
        calibration_data: Examples without labels, or with labels that are not used, as
            `quantize_aware` takes them. They are kept in memory. 200 to 1,000 are
            usual; AdaRound keeps 256 MiB at most of the inputs and outputs of a layer.
        config: As of `quantize_aware`: `"int8"`, `"int8_per_tensor"`, `"int16x8"`,
            `"int4_weights"` or a `tfc.QuantizationConfig`.
        rounding: `"nearest"` or `"adaround"`. The latter is for symmetric grids; layers
            that a rule gives another one, whose weights share values (`tfc.cluster`) or
            that are no convolution or dense layer round to the nearest.
        correct_bias: Whether to correct biases. Layers with neither a bias nor batch
            normalization behind them stay as they are.
        steps: Optimizer steps of AdaRound for each layer.
        seed: Seed of the order in which AdaRound reads the examples.
        **settings: `rules`, `allow_float` and `preserve`, as `quantize_aware` takes
            them.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        TypeError: If `model` is no Keras 3 model, or the data cannot be read.
        ValueError: As `quantize_aware`, or if an argument is out of place.

    Reference:
        Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization",
        2020. arXiv:2004.10568; bias correction as in Nagel et al., 2019, section 4.2.
        arXiv:1906.04721
    """
    check_model(model)
    config = resolved(config)
    _check(rounding, steps, config)
    checked = batches(model, calibration_data, argument="calibration_data")
    seen = [inputs for inputs, _ in checked]
    quantized = quantize_aware(model, config, **settings)
    _set_least_error_steps(quantized)
    _calibrate(quantized, seen, config)
    if rounding == "adaround" or correct_bias:
        exact, choice, correction = float_copy(quantized), None, None
        if rounding == "adaround":
            choice = AdaRound(quantized, exact, seen, steps=steps, seed=seed)
        if correct_bias:
            correction = BiasCorrection(quantized, exact, seen)
        _improve(quantized, exact, choice, correction)
        # Activations are nearer to those of the float model now.
        _calibrate(quantized, seen, config)
    return quantized


def _check(rounding, steps, config):
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"`rounding` must be one of {ROUNDINGS}. Received: rounding={rounding!r}"
        )
    check_count("steps", steps)
    few = config.weights in ("ternary", "binary")
    if rounding == "adaround" and (few or not config.symmetric_weights):
        raise ValueError(
            "rounding='adaround' is for symmetric grids of weights. Received: "
            f"weights={config.weights!r}, symmetric_weights={config.symmetric_weights}."
            " Pass weights='max' or 'learned_step', or rounding='nearest'."
        )


def _calibrate(quantized, seen, config):
    calibrate(quantized, iter(seen), method=config.ranges, percentile=config.percentile)


def _set_least_error_steps(quantized):
    """Nothing will train the steps that start where training likes them to."""
    for wrapper in find_layers(quantized, TransformWeights):
        for name, chain in wrapper.transforms.items():
            for transform, state in zip(chain, wrapper.states[name], strict=True):
                if isinstance(transform, LearnedStep):
                    weight = find_weight(wrapper.layer, name).numpy()
                    step = least_error_step(
                        weight, bits=transform.bits, axes=transform.axes
                    )
                    state["step"].assign(step)


def _improve(quantized, exact, choice, correction):
    """Rounds and corrects layer after layer, each on what those before it give."""
    pairs = list(zip(kernel_sites(quantized), kernel_sites(exact), strict=True))
    title = "Correcting biases" if choice is None else "Adapting the rounding"
    each = 1 if choice is None else 10
    with bar(title, each * len(pairs)) as advance:
        for site, twin in pairs:
            if choice is None:
                advance()
            else:
                _log_rounding(site, choice.choose(site, twin, advance))
            if correction is not None and correction.correct(site) is None:
                logging.info("%s has no bias to correct.", site.name)


def _log_rounding(site, found):
    if found is None:
        logging.info("%s is rounded to the nearest.", site.name)
        return
    logging.info(
        "%s: %d of %d weights not to the nearest; relative error of the output %.3g, "
        "was %.3g.",
        found.layer,
        found.changed,
        found.weights,
        found.adapted,
        found.nearest,
    )
