"""Takes TFMOT's wrappers off the layers of a description, and reads what they hold.

TFMOT itself is not needed, and not imported: importing it would switch `tf.keras` to
Keras 2 for the whole process.

Example:
    ```python
    layer, quantization = unwrapped(description.layers[3])
    ```
"""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tfcompress.legacy.layers import UnsupportedLegacyLayer
from tfcompress.legacy.read import WRAPPERS, LegacyLayer, is_model

_OWN_OF_QUANTIZATION = (
    "optimizer_step",
    "cluster_centroids_tf",
    "pulling_indices_tf",
    "ori_weights_vars_tf",
)
_OWN_OF_PRUNING = ("mask", "threshold", "pruning_step")
# Of "cluster_lstm/cluster_centroids_kernel/0:0": what it is, of which weight, and of
# which cell of a recurrent layer.
_CLUSTERING = re.compile(
    r"(cluster_centroids_|pulling_indices_|original_weight_|)([^/:]+)(?:/(\d+))?(?::\d+)?$"
)


@dataclass(frozen=True)
class Quantization:
    """How TFMOT rounds one layer, or one input.

    Attributes:
        steps: Dict from the name of a weight to the step of its symmetric grid: a
            float array, one value or one a channel.
        bits: Width of the weights' integers.
        before: `(low, high)` of what enters the layer's activation, or `None`.
        after: `(low, high)` of the output, or `None`.
    """

    steps: dict = field(default_factory=dict)
    bits: int = 8
    before: tuple | None = None
    after: tuple | None = None

    @classmethod
    def of_input(cls, entry):
        """That of a `QuantizeLayer`, which rounds what enters the model."""
        ranges = _ranges(entry)
        return cls(after=next(iter(ranges.values()), None))


def unwrapped(entry):
    """A layer without TFMOT's wrapper.

    Args:
        entry: `LegacyLayer`, wrapped or not.

    Returns:
        A `LegacyLayer` with the weights it computes with (of a quantized one the
        latent weights), and its `Quantization`, `None` if it is not quantized.

    Raises:
        UnsupportedLegacyLayer: If it is quantized in a way that our models have not.
    """
    kind = entry.class_name
    if kind.startswith("PruneLowMagnitude"):
        return _pruned(entry), None
    if kind.startswith("ClusterWeights"):
        return _clustered(entry), None
    if kind == "QuantizeAnnotate":
        return _inner(entry, entry.weights), None
    if kind in ("QuantizeWrapper", "QuantizeWrapperV2"):
        return _quantized(entry)
    return entry, None


def _inner(entry, weights):
    layer = entry.config["layer"]
    return LegacyLayer(
        name=layer["config"]["name"],
        class_name=layer["class_name"].split(">")[-1],
        config=layer["config"],
        weights=weights,
    )


def inner_name(entry):
    """The name of the layer in a wrapper of TFMOT's, or of the layer itself."""
    wrapped = entry.class_name.startswith(WRAPPERS)
    return entry.config["layer"]["config"]["name"] if wrapped else entry.name


def parted(entry):
    """The weights of a nested model by the layers that they are of, by their names.

    Args:
        entry: `LegacyLayer` of a nested model with wrappers in it.

    Returns:
        Dict from the name of a layer in it to its list of `(name, array)`.

    Raises:
        UnsupportedLegacyLayer: If a name does not tell a weight's layer.
    """
    inside = {e["config"]["name"]: _scopes(e) for e in entry.config["layers"]}
    found = {name: [] for name in inside}
    for weight, array in entry.weights:
        fits = {
            name: max((len(s) for s in scopes if f"/{s}/" in f"/{weight}"), default=0)
            for name, scopes in inside.items()
        }
        best = [name for name, length in fits.items() if length == max(fits.values())]
        if len(best) != 1:
            raise UnsupportedLegacyLayer(
                f"weight {weight!r} of the nested model {entry.name!r} could be of "
                f"layers {best[:5]}. Load the model in tf_keras and pass it to "
                "tfc.from_tfmot"
            )
        found[best[0]].append((weight, array))
    return found


def _scopes(entry):
    """Names that lead those of the weights of a layer, or of a nested model."""
    config = entry["config"]
    if is_model(entry["class_name"]):
        return set().union(*map(_scopes, config["layers"]))
    inner = config.get("layer")
    name = [inner["config"]["name"]] if isinstance(inner, dict) else []
    return {config["name"], *name}


def short(name):
    """`"kernel"` of `"block/conv/kernel:0"`."""
    return name.split(":")[0].split("/")[-1]


def _pruned(entry):
    own, masks = [], []
    for name, array in entry.weights:
        # Of several masks in a layer the second is "mask_1" in a file.
        base = short(name).rstrip("0123456789").rstrip("_")
        if base == "mask":
            masks.append(array)
        elif base not in _OWN_OF_PRUNING:
            own.append((name, array))
    for mask in masks:
        # Masks come in the order of the weights, and have their shapes.
        for position, (name, array) in enumerate(own):
            if array.shape == mask.shape and not isinstance(array, _Masked):
                own[position] = (name, (array * mask).view(_Masked))
                break
    return _inner(entry, [(name, np.asarray(array)) for name, array in own])


class _Masked(np.ndarray):
    """An array that has met its mask."""


def _clustered(entry):
    """Each weight at its nearest centroid, which is what TFMOT computes with."""
    centroids, own, count = {}, [], Counter()
    for name, array in entry.weights:
        kind, of, cell = _CLUSTERING.search(name).groups()
        if kind == "cluster_centroids_":
            centroids[of, int(cell or 0)] = array
        elif kind != "pulling_indices_":
            # Of a recurrent layer with several cells each has its kernel.
            own.append(((of, count[of]), name.replace("original_weight_", ""), array))
            count[of] += 1
    keep_zeros = entry.config.get("preserve_sparsity", False)
    found = []
    for key, name, array in own:
        if key in centroids:
            array = _nearest(array, centroids[key], keep_zeros)
        found.append((re.sub(r"/\d+$", "", name.split(":")[0]), array))
    missing = {of for of, _ in set(centroids) - {key for key, _, _ in own}}
    if missing:
        raise UnsupportedLegacyLayer(
            f"layer {entry.name!r} has clusters for {sorted(missing)}, which it has no "
            "weights of that name for. Take its wrapper off with "
            "tfmot.clustering.keras.strip_clustering(model) first"
        )
    return _inner(entry, found)


def _nearest(weight, centroids, keep_zeros):
    """Rounds to centroids `(clusters,)`, or `(channels, clusters)` of the last axis."""
    rows = centroids.reshape(-1, centroids.shape[-1]).copy()
    if keep_zeros:
        rows[np.arange(len(rows)), np.abs(rows).argmin(axis=-1)] = 0
    channels = weight.reshape(-1, len(rows)) if len(rows) > 1 else weight.reshape(-1, 1)
    columns = [
        row[np.abs(channels[:, i, None] - row).argmin(axis=-1)]
        for i, row in enumerate(rows)
    ]
    return np.stack(columns, axis=-1).reshape(weight.shape).astype(weight.dtype)


def _quantized(entry):
    ranges = _ranges(entry)
    own = [
        (name, array)
        for name, array in entry.weights
        if short(name) not in _OWN_OF_QUANTIZATION
        and not short(name).endswith(("_min", "_max"))
    ]
    settings = entry.config.get("quantize_config", {})
    bits = settings.get("config", {}).get("num_bits_weight", 8)
    if settings.get("config", {}).get("num_bits_activation", 8) != 8:
        raise UnsupportedLegacyLayer(
            f"layer {entry.name!r} has activations of "
            f"{settings['config']['num_bits_activation']} bits, and a .tflite file has "
            "8 or 16. Quantize the float model with tfc.quantize_aware instead"
        )
    before = ranges.pop("pre_activation", None)
    after = ranges.pop("post_activation", None)
    after = ranges.pop("output", after)
    names = {short(name) for name, _ in own}
    steps = {
        name: _step(entry, name, ranges[name], bits) for name in ranges if name in names
    }
    odd = sorted(set(ranges) - set(steps))
    if odd:
        raise UnsupportedLegacyLayer(
            f"layer {entry.name!r} has a quantizer of its own for {odd}, which only "
            "its quantize_config knows the meaning of. Quantize the float model with "
            "tfc.quantize_aware instead"
        )
    return _inner(entry, own), Quantization(steps, bits, before, after)


def _ranges(entry):
    """Dict from what is rounded (`"kernel"`, `"output"`) to its lowest and highest."""
    arrays = {short(name): array for name, array in entry.weights}
    return {
        name.removesuffix("_min"): (low, arrays[name.removesuffix("_min") + "_max"])
        for name, low in arrays.items()
        if name.endswith("_min") and name.removesuffix("_min") + "_max" in arrays
    }


def _step(entry, name, limits, bits):
    low, high = limits
    if not np.allclose(low, -high, rtol=1e-5, atol=0):
        raise UnsupportedLegacyLayer(
            f"weight {name!r} of layer {entry.name!r} has the range {low} to {high}; "
            "TFLite has symmetric weights only. Quantize the float model with "
            "tfc.quantize_aware instead"
        )
    return np.asarray(high, np.float32) / (2 ** (bits - 1) - 1)
