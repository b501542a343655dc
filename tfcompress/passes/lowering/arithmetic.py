"""Arithmetic of `keras.ops` that TFLite has no integer kernel for."""

import keras
import numpy as np
from keras import ops


def _is_tensor(value):
    return isinstance(value, keras.KerasTensor)


def _alone(x, value, number):
    """Whether `value` is a number that leaves `x` as it is, its type included."""
    is_number = isinstance(value, (int, float, np.float32))
    real = _is_tensor(x) and keras.backend.is_float_dtype(x.dtype)
    return is_number and real and value == number


def product(operation):
    """A product with 1 is what it multiplies.

    The converter drops it, and then has two roundings in a row, of which some
    operations behind them bear but one.
    """
    return lambda x1, x2: _either(x1, x2, 1)


def total(operation):
    """A sum with 0, dropped by the converter too, is what it is added to."""
    return lambda x1, x2: _either(x1, x2, 0)


def _either(x1, x2, number):
    if _alone(x1, x2, number):
        return x1
    return x2 if _alone(x2, x1, number) else None


def difference(operation):
    """The same of `x - 0`."""
    return lambda x1, x2: x1 if _alone(x1, x2, 0) else None


def negative(operation):
    """`-x` as a product."""
    return lambda x: ops.multiply(x, -1.0)


def square(operation):
    """`x * x`."""
    return lambda x: ops.multiply(x, x)


def divide(operation):
    """A quotient: by a constant a product, by a tensor `x * 1 / y`."""

    def form(x1, x2):
        if _alone(x1, x2, 1):
            return x1
        if not _is_tensor(x2):
            return ops.multiply(x1, 1.0 / np.asarray(x2, "float32"))
        return ops.multiply(x1, reciprocal_of(x2))

    return form


def reciprocal_of(x):
    """`1 / x` of either sign: `x * rsqrt(x * x)` is its sign, and again its inverse."""
    inverse = ops.rsqrt(ops.multiply(x, x))
    return ops.multiply(ops.multiply(x, inverse), inverse)


def reciprocal(operation):
    """`1 / x`."""
    return reciprocal_of


def power(operation):
    """Powers that are constants: whole ones as products, halves as roots."""

    def form(x1, x2):
        if _is_tensor(x2) or np.ndim(x2):
            return None
        exponent = float(x2)
        if exponent in _ROOTS:
            return _ROOTS[exponent](x1)
        if exponent < 1 or exponent != int(exponent) or exponent > 16:
            return None
        result = x1
        for _ in range(int(exponent) - 1):
            result = ops.multiply(result, x1)
        return result

    return form


_ROOTS = {
    0.5: ops.sqrt,
    -0.5: ops.rsqrt,
    -1.0: reciprocal_of,
    -2.0: lambda x: ops.rsqrt(ops.multiply(x, x)) * ops.rsqrt(ops.multiply(x, x)),
}


def variance(operation):
    """Mean of the squared distance from the mean."""

    def form(x):
        distance = x - ops.mean(x, axis=operation.axis, keepdims=True)
        return ops.mean(
            distance * distance, axis=operation.axis, keepdims=operation.keepdims
        )

    return form


def moments(operation):
    """Mean and variance."""

    def form(x):
        axes, keep = operation.axes, operation.keepdims
        mean = ops.mean(x, axis=axes, keepdims=True)
        distance = x - mean
        variance = ops.mean(distance * distance, axis=axes, keepdims=keep)
        return (mean if keep else ops.squeeze(mean, axis=tuple(axes))), variance

    return form


def standard_deviation(operation):
    """Root of the variance."""
    return lambda x: ops.sqrt(variance(operation)(x))


def normalize(operation):
    """Division by the L2 norm."""
    if operation.order != 2:
        return None

    def form(x):
        total = ops.sum(x * x, axis=operation.axis, keepdims=True)
        return x * ops.rsqrt(ops.maximum(total, operation.epsilon**2))

    return form


def expm1(operation):
    """`exp(x) - 1`."""
    return lambda x: ops.exp(x) - 1.0


def log1p(operation):
    """`log(1 + x)`."""
    return lambda x: ops.log(x + 1.0)


def flip(operation):
    """Reversal, as TFLite reverses integers along one axis only by indices."""

    def form(x):
        if not isinstance(operation.axis, int):
            return None
        backward = np.arange(x.shape[operation.axis])[::-1]
        return ops.take(x, backward.astype("int32"), axis=operation.axis)

    return form


def split(operation):
    """Slices: the converter leaves a split with an unused part in float."""

    def form(x):
        axis, sections = operation.axis, operation.indices_or_sections
        size = x.shape[axis]
        if size is None:
            return None
        if isinstance(sections, int):
            width = size // sections
            bounds = [width * i for i in range(1, sections)]
        else:
            bounds = [int(b) for b in sections]
        edges = [0, *bounds, size]
        before = (slice(None),) * (axis % len(x.shape))
        return [
            x[(*before, slice(start, stop))]
            for start, stop in zip(edges, edges[1:], strict=False)
        ]

    return form


OPERATIONS = {
    "Split": split,
    "Negative": negative,
    "Square": square,
    "Add": total,
    "Multiply": product,
    "Subtract": difference,
    "Divide": divide,
    "TrueDivide": divide,
    "Reciprocal": reciprocal,
    "Power": power,
    "Var": variance,
    "Std": standard_deviation,
    "Moments": moments,
    "Normalize": normalize,
    "Expm1": expm1,
    "Log1p": log1p,
    "Flip": flip,
}
