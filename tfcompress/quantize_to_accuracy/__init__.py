"""Quantization within an allowed drop of accuracy: the worst layers stay float.

Example:
    ```python
    quantized, report = tfc.quantize_to_accuracy(
        model, x_train[:500], accuracy, allowed_drop=0.005, return_report=True
    )
    print(report)   # what was returned to float, and the accuracy of each attempt
    ```
"""

import math
import numbers

from absl import logging

from tfcompress.checks import batches, check_model
from tfcompress.passes.quantization_config import resolved
from tfcompress.progress import bar
from tfcompress.quantize_to_accuracy.report import AccuracyReport as AccuracyReport
from tfcompress.quantize_to_accuracy.report import Attempt as Attempt
from tfcompress.quantize_to_accuracy.search import Evaluation, Search

FALLBACKS = ("float", "int16")


class AccuracyNotReachedError(ValueError):
    """No quantized model came within the allowed drop; `report` has the attempts."""

    def __init__(self, message, report):
        super().__init__(message)
        self.report = report


def quantize_to_accuracy(
    model,
    calibration_data,
    evaluate,
    *,
    allowed_drop,
    config="int8",
    fallback="float",
    most_float=0.5,
    on_files=False,
    return_report=False,
    **settings,
):
    """Quantizes after training, and takes back what costs too much accuracy.

    First everything is quantized (`tfc.quantize_post_training`). If that loses more
    than allowed, the layers that lose most by themselves (`tfc.debug_quantization`, the
    lowest ratio of signal to rounding noise) are left float: one, two, four, ..., and
    then as few of them as suffice, found by halving. Where a layer loses more by the
    rounding of its output than by that of its weights, what reads the output is left
    float with it. What remains quantized keeps the weights that were rounded and the
    biases that were corrected.

    Export the result with `tfc.export_tflite(quantized, path, kind="int8",
    allow_float=[".*"])`: layers that are float in the model are so in the file.

    Args:
        model: Built, trained `keras.Model`. It is not changed.
        calibration_data: As of `quantize_post_training`.
        evaluate: Function of a Keras model, or of the path of a `.tflite` file with
            `on_files`, that returns a number; higher is better.
        allowed_drop: How much less than the float model's the number may be, at least
            0, in its own unit.
        config: As of `quantize_aware`.
        fallback: `"float"`, or `"int16"`: before any layer is left float all
            activations get 16 bits (activations of one model have one width here).
        most_float: Largest fraction of the rounded tensors' layers to leave float.
        on_files: Whether `evaluate` gets files: a float32 one for the baseline, then
            integer ones with float inputs and outputs.
        return_report: Whether to return the report as well.
        **settings: More arguments of `quantize_post_training`.

    Returns:
        The quantized `keras.Model`; with `return_report` a pair of it and an
        `AccuracyReport`.

    Raises:
        TypeError: If `model` is no Keras 3 model or `evaluate` no function.
        ValueError: If an argument is out of place, or `evaluate` returns no number.
        AccuracyNotReachedError: If nothing that was tried came within the limit.
    """
    check_model(model)
    _check(evaluate, allowed_drop, fallback, most_float)
    checked = batches(model, calibration_data, argument="calibration_data")
    search = Search(
        model,
        [inputs for inputs, _ in checked],
        Evaluation(evaluate, on_files),
        allowed_drop,
        settings,
    )
    with bar("Quantizing to accuracy", None) as search.advance:
        quantized = search.run(resolved(config), fallback, most_float)
    report = search.report()
    logging.info("%s", report)
    if quantized is None:
        raise AccuracyNotReachedError(
            f"No quantized form of model {model.name!r} is within {allowed_drop:g} of "
            f"{report.baseline:.6g}; the best of {len(report.attempts)} reached "
            f"{max(a.accuracy for a in report.attempts):.6g}. Allow more, raise "
            f"`most_float` (received: {most_float:g}), pass fallback='int16' or "
            "rounding='adaround', or train with tfc.quantize_aware.",
            report,
        )
    return (quantized, report) if return_report else quantized


def _check(evaluate, allowed_drop, fallback, most_float):
    if not callable(evaluate):
        raise TypeError(
            "`evaluate` must be a function of a model (or of a path, with `on_files`) "
            f"that returns a number. Received: {evaluate!r}"
        )
    number = isinstance(allowed_drop, numbers.Real) and math.isfinite(allowed_drop)
    if not number or allowed_drop < 0:
        raise ValueError(
            "`allowed_drop` must be a number from 0, in the unit of `evaluate`. "
            f"Received: allowed_drop={allowed_drop!r}"
        )
    if fallback not in FALLBACKS:
        raise ValueError(
            f"`fallback` must be one of {FALLBACKS}. Received: fallback={fallback!r}"
        )
    if not isinstance(most_float, numbers.Real) or not 0 <= most_float <= 1:
        raise ValueError(
            f"`most_float` must be in [0, 1]. Received: most_float={most_float!r}"
        )
