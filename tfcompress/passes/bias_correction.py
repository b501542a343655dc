"""Bias correction: takes back what rounding adds to the mean of each channel.

Example:
    ```python
    correction = BiasCorrection(quantized, float_copy(quantized), batches)
    for site in kernel_sites(quantized):
        correction.correct(site)
    ```

Reference:
    Nagel et al., 2019, section 4.2 and appendix D (empirical). arXiv:1906.04721
"""

import numpy as np
import tensorflow as tf

from tfcompress.layers import NormalizedKernel
from tfcompress.passes.kernel_sites import Probe, kernel_sites


class BiasCorrection:
    """Shifts the outputs of layers so that each channel has its float mean.

    The means are of a layer before its activation, once in float and once with all that
    comes before it rounded and corrected. The shift goes into the layer's bias, or into
    the normalization behind it.

    Args:
        model: What `quantize_aware` returned, calibrated.
        exact: Its `float_copy`.
        batches: List of batches, each a list of arrays.
    """

    def __init__(self, model, exact, batches):
        self.model = model
        self.batches = batches
        sites = kernel_sites(exact)
        tensors = [tensor for site in sites for tensor in site.outputs]
        means = iter(_means(exact, tensors, batches))
        self.means = {
            site.name: np.mean([next(means) for _ in site.outputs], axis=0)
            for site in sites
        }

    def correct(self, site):
        """Corrects the bias of a `KernelSite`, those before it being corrected.

        Returns:
            The shift, float64 array `(channels,)`; `None` if the layer has neither bias
            nor normalization and is left as it is.
        """
        add = _place(site)
        if add is None:
            return None
        found = np.mean(_means(self.model, site.outputs, self.batches), axis=0)
        shift = self.means[site.name] - found
        add(shift)
        return shift


def _place(site):
    """A function that adds to the outputs of a site; `None` if there is no place."""
    normalization = site.normalization
    if isinstance(site.wrapper.layer, NormalizedKernel):
        # Its output is that of the normalization.
        return _adds_to(normalization.beta) if normalization.center else None
    if site.layer.use_bias:
        return _adds_to(site.layer.bias)
    mean = getattr(normalization, "moving_mean", None)
    return None if mean is None else _adds_to(mean, sign=-1)


def _adds_to(variable, sign=1):
    return lambda shift: variable.assign(variable.numpy() + sign * shift)


def _means(model, tensors, batches):
    """Mean of each channel of each tensor over examples and positions, float64."""
    if not tensors:
        return []
    probe = Probe(model, tensors, _channel_means)
    sizes = [len(batch[0]) for batch in batches]
    found = [[mean.astype("float64") for mean in probe(batch)] for batch in batches]
    return [
        np.average(means, axis=0, weights=sizes) for means in zip(*found, strict=True)
    ]


def _channel_means(tensor):
    return tf.reduce_mean(
        tf.cast(tensor, tf.float32), axis=range(tensor.shape.rank - 1)
    )
