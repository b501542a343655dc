"""How far the outputs of a file are from those of the model.

Example:
    ```python
    rows = list(agreements("LiteRT xnnpack", path, expected, found, 60.0))
    ```
"""

from dataclasses import dataclass

import numpy as np

from tfcompress.debug.differences import Difference, decibels, difference, sums
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.signatures import signature_names
from tfcompress.deploy.tflite_file import parsed

# Least signal to noise, in dB, of an output: a float32 sums in another order, a float16
# has 11 bits; what integers lose depends on the model, and less than this is broken.
_LEAST_DB = {"float32": 60.0, "float16": 40.0, "16 bits": 25.0, "8 bits": 12.0}


@dataclass(frozen=True)
class OutputAgreement:
    """An output of the model and of the file in one runtime.

    Attributes:
        signature: Name of the signature; empty if the file has none.
        output: Name of the output.
        runtime: `"LiteRT xnnpack"`, `"tf.lite"`, `"TFLite Micro"`, ...
        difference: `Difference` over all examples; steps are not a number where the
            output is float.
        same_class: Fraction of rows with the largest value in the same place; `None`
            where the last axis has length one.
        ok: Whether the signal to noise is enough.
    """

    signature: str
    output: str
    runtime: str
    difference: Difference
    same_class: float | None
    ok: bool


def least_db(file):
    """Least signal to noise for a file, by what rounds most in it."""
    used = {t.dtype for graph in file.graphs for t in graph.used_tensors()}
    quantized = {t.dtype for t in file.constants() if t.scale is not None}
    computed = {t.dtype for t in file.used_tensors() if t.scale is not None}
    if "INT16" in used & computed:
        return _LEAST_DB["16 bits"]
    if quantized & {"INT8", "UINT8", "INT4"} or "INT8" in computed:
        return _LEAST_DB["8 bits"]
    return _LEAST_DB["float16" if "FLOAT16" in used else "float32"]


def agreements(runtime, path, expected, found, min_sqnr_db):
    """Yields an `OutputAgreement` for each output.

    Args:
        runtime: Name of the runtime.
        path: Path of the file.
        expected: Outputs of the model, list of arrays.
        found: Outputs of the file.
        min_sqnr_db: Least signal to noise.
    """
    with open(path, "rb") as file:
        model = parsed(file.read())
    signatures = [s.signatureKey.decode() for s in model.signatureDefs or ()]
    outputs = TFLiteRunner(path).outputs
    by_index = dict(
        zip(model.subgraphs[0].outputs, signature_names(model)[1], strict=True)
    )
    for details, wanted, values in zip(outputs, expected, found, strict=True):
        scale = details["quantization"][0] or np.nan
        totals = np.asarray(sums(wanted, values), np.float64)
        apart = difference(totals, scale)
        yield OutputAgreement(
            signatures[0] if len(signatures) == 1 else "",
            by_index[details["index"]],
            runtime,
            apart,
            _same_class(wanted, values),
            bool(apart.sqnr_db >= min_sqnr_db),
        )


def _same_class(wanted, found):
    if wanted.ndim < 2 or wanted.shape[-1] == 1:
        return None
    return float(np.mean(wanted.argmax(-1) == found.argmax(-1)))


def cells(output):
    """An `OutputAgreement` as a row of a table."""
    found = output.difference
    steps = "-" if np.isnan(found.max_error_lsb) else f"{found.max_error_lsb:.1f}"
    same = "-" if output.same_class is None else f"{output.same_class:.1%}"
    verdict = "" if output.ok else "too far off"
    name = output.output
    return (
        output.runtime, name, decibels(found), f"{found.max_error:.3g}", steps, same,
        verdict,
    )  # fmt: skip
