"""Clustering: weights that share few values, which training moves.

Example:
    ```python
    shared = tfc.cluster(model, clusters=16)
    shared.compile("adam", "sparse_categorical_crossentropy")
    shared.fit(x, y, epochs=3)
    plain = tfc.strip(shared)   # 16 different values in each kernel
    ```
"""

import keras
import numpy as np
from absl import logging

from tfcompress.checks import check_model
from tfcompress.graph import Graph, built_copy, find_layers, kernels, rewrite
from tfcompress.layers import (
    FakeQuant,
    GroupCodebook,
    KeepZeros,
    LayerGroup,
    TransformWeights,
    find_weight,
    name_of_weight,
)
from tfcompress.numerics import masks
from tfcompress.passes.cluster_settings import ClusterSettings
from tfcompress.passes.distill import Distiller
from tfcompress.passes.lowering.trace import flat_form
from tfcompress.selection import select


def cluster(
    model,
    clusters=16,
    *,
    start="kmeans++",
    gradient="mean",
    per_channel=False,
    group=None,
    block=None,
    biases=False,
    include=None,
    exclude=None,
    rules=(),
    steps=20,
    seed=0,
    preserve=("zeros",),
):
    """Returns a copy of `model` whose kernels have at most `clusters` different values.

    Each weight counts as the nearest value of its codebook, in which zero always is.
    Weights and values are trained together: gradients pass straight through to the
    weights, which may change to another value, and their mean to the value. Compile the
    result and `fit` it as ever; `tfc.strip` takes the codebooks off again, and
    `tfc.quantize_aware` keeps them through 8 bits. Files get smaller where they are
    compressed: `tfc.pack`.

    Args:
        model: Built `keras.Model`. It is not changed. Nested models are inlined; a
            subclassed one needs a `get_config`, and a `call` of Keras layers and
            `keras.ops`.
        clusters: Number of values, zero included, 2 or more.
        start: Where values start: `"kmeans++"`, `"linear"`, `"density"`, `"quantile"`
            or `"random"` (`numerics.codebooks.initial_centroids`). A weight that has no
            more than `clusters` different values starts from these.
        gradient: How values are trained: by the `"mean"` of the gradients of their
            weights, so that they move as fast as these, or by the `"sum"`, which is
            the derivative of the loss; `None` leaves them where they are, for
            `tfc.ClusteringSchedule(kmeans_every=...)` to recompute.
        per_channel: Whether each output channel has a codebook of its own.
        group: Name of a group of weights, across layers, that share one codebook;
            `None` for a codebook each. Set by rules, weights of the same name share.
        block: Product quantization of Dense kernels and Embedding tables: so many
            weights in a row (of a unit, of an embedding) are replaced together by one
            of `clusters` vectors. `None` for single weights.
        biases: Whether biases are clustered too.
        include: Regular expression(s) on the weight's path (`"conv/kernel"`), or
            predicate(s): only these are clustered.
        exclude: The same: these are not.
        rules: `tfc.Rule`s on the same paths, first match wins. They may set `clusters`,
            `start`, `gradient`, `per_channel`, `group`, `block`, `steps` and `seed`.
        steps: Steps of k-means after the start, before training.
        seed: Of what is drawn at the start.
        preserve: `("zeros",)` holds the zeros of pruned kernels (10 % zeros or more) at
            zero from here on; `()` lets them go.

    Returns:
        A functional `keras.Model` with the inputs and outputs of `model`, not compiled.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built, is wrapped by a pass, or its `call` cannot be
            recorded; if an argument is out of range, a pattern matches nothing, or
            settings do not fit a weight.

    Reference:
        Han et al., "Deep Compression", 2015, section 3. arXiv:1510.00149; product
        quantization as in Gong et al., 2014, section 3.2.3. arXiv:1412.6115
    """
    check_model(model)
    if set(preserve) - {"zeros"}:
        raise ValueError(
            f"`preserve` may hold 'zeros' or nothing. Received: preserve={preserve!r}"
        )
    _check_model_is_plain(model)
    settings = ClusterSettings(
        clusters=clusters,
        start=start,
        gradient=gradient,
        per_channel=per_channel,
        group=group,
        block=block,
        steps=steps,
        seed=seed,
    )
    graph = Graph(flat_form(model))
    paths = _paths(graph.model, biases)
    _log_frozen(graph.model)
    chosen = select(paths, include=include, exclude=exclude, rules=rules)
    if not chosen:
        raise ValueError(
            "Nothing is left to cluster after `include` and `exclude`. The paths there "
            f"are: {list(paths)}"
        )
    settings = {
        id(paths[path]): (path, settings.replaced(changes))
        for path, changes in chosen.items()
    }
    return rewrite(graph, _Clusterer(graph, settings, preserve))


def _paths(model, biases):
    found = kernels(model)
    if biases:
        taken = {id(v) for v in found.values()}
        for layer in model._flatten_layers(include_self=False):
            for variable in layer.trainable_variables:
                if variable.name.endswith("bias") and id(variable) not in taken:
                    taken.add(id(variable))
                    path = variable.path
                    while path in found:
                        path += "_"
                    found[path] = variable
    if not found:
        raise ValueError(
            f"Model {model.name!r} has no trainable kernel of two dimensions or more "
            f"to cluster among {[v.path for v in model.weights]}."
        )
    return found


def _log_frozen(model):
    frozen = [
        v.path
        for v in model.non_trainable_variables
        if v.name.endswith(("kernel", "embeddings"))
    ]
    if frozen:
        logging.warning(
            "Clustering leaves alone what is frozen (trainable=False): %s", frozen
        )


class _Clusterer:
    """The visitor that wraps layers whose weights were chosen."""

    def __init__(self, graph, settings, preserve):
        self.settings = settings
        self.preserve = preserve
        self.wrapped = {}
        operations = {id(c.operation): c.operation for c in graph.calls}.values()
        self.parts = {
            id(operation): parts
            for operation in operations
            if (parts := self._parts(operation))
        }
        self._check_found_once(operations)
        self.taken = {operation.name for operation in operations}
        self.taken.update(t.name for t in graph.inputs)
        self._make_groups(operations)

    def __call__(self, call, clone, args, kwargs):
        operation = call.operation
        if id(operation) not in self.parts:
            return clone(operation)(*args, **kwargs)
        if id(operation) not in self.wrapped:
            layer, chains = self._chains(operation)
            self.wrapped[id(operation)] = TransformWeights(layer, chains), {}
        wrapper, member = self.wrapped[id(operation)]
        if member:
            _check_call_of_member(operation, args, kwargs)
        return wrapper(*args, **kwargs, **member)

    def _parts(self, operation):
        """Positions of chosen weights, with their path and settings."""
        weights = getattr(operation, "weights", ())
        return [
            (i, *self.settings[id(v)])
            for i, v in enumerate(weights)
            if id(v) in self.settings
        ]

    def _check_found_once(self, operations):
        """Layers that share a variable would each change it by another codebook."""
        seen = {}
        for operation in operations:
            for position, path, _ in self.parts.get(id(operation), ()):
                other = seen.setdefault(id(operation.weights[position]), operation)
                if other is not operation:
                    raise ValueError(
                        f"Layers {other.name!r} and {operation.name!r} have the "
                        f"variable {path!r} in common. Leave it out, "
                        f"exclude={path!r}, or call one layer twice."
                    )

    def _chains(self, operation, prefix=""):
        """A copy of a layer, and dict from names of its weights to transforms."""
        layer = built_copy(operation)
        chains = {}
        for position, path, settings in self.parts[id(operation)]:
            variable = operation.weights[position]
            transform = settings.transform(operation, variable, path)
            name = name_of_weight(operation, position, like=layer)
            zeros = masks.kept_zeros(variable.numpy()) is not None
            keep = [KeepZeros()] if zeros and "zeros" in self.preserve else []
            chains[name] = [*keep, transform]
        return layer, chains

    def _make_groups(self, operations):
        groups = {}
        for operation in operations:
            parts = self.parts.get(id(operation), ())
            names = {settings.group for _, _, settings in parts} - {None}
            if len(names) > 1:
                raise ValueError(
                    f"Weights of layer {operation.name!r} are in several groups: "
                    f"{sorted(names)}. A layer can be in one."
                )
            for name in names:
                groups.setdefault(name, []).append(operation)
        for name, members in groups.items():
            self._make_group(name, members)

    def _make_group(self, name, operations):
        """One wrapper for all layers of a group, started from all their weights."""
        layers, found, transforms, weights = [], [], [], []
        for operation in operations:
            layer, own = self._chains(operation)
            layers.append(layer)
            for key, chain in own.items():
                variable = find_weight(layer, key)
                found.append((variable, chain))
                if isinstance(chain[-1], GroupCodebook):
                    transforms.append(chain[-1])
                    weights.append(variable.numpy().ravel())
        first = transforms[0]
        if any(t.get_config() != first.get_config() for t in transforms):
            raise ValueError(
                f"Weights of group {name!r} have different settings: "
                f"{[t.get_config() for t in transforms]}. A codebook has one."
            )
        learns = first.gradient is not None
        unused = self._unused_name(name)
        group = LayerGroup(layers, first.clusters, learns=learns, name=unused)
        group.codebook.assign(first.initial_centroids(np.concatenate(weights)))
        place = {id(v): position for position, v in enumerate(group.weights)}
        chains = {
            name_of_weight(group, place[id(variable)], like=group): chain
            for variable, chain in found
        }
        wrapper = TransformWeights(group, chains)
        for member, operation in enumerate(operations):
            self.wrapped[id(operation)] = wrapper, {"member": member}

    def _unused_name(self, group):
        """A name for the layer of a group, which no other layer has."""
        name = group = group.replace("/", "_")  # Keras allows none in a name.
        number = 1
        while name in self.taken:
            name = f"{group}_group" + (f"_{number}" if number > 1 else "")
            number += 1
        self.taken.add(name)
        return name


def _check_call_of_member(layer, args, kwargs):
    """Keras lets nobody mix tensors and settings in the `**kwargs` of a group."""
    tensors = [
        name
        for name, value in kwargs.items()
        if any(isinstance(t, keras.KerasTensor) for t in keras.tree.flatten(value))
    ]
    # Keras takes `training` out by itself.
    apart = {*tensors, "training"}
    settings = [k for k, v in kwargs.items() if v is not None and k not in apart]
    if not (args or "inputs" in kwargs) or (tensors and settings):
        raise ValueError(
            f"Layer {layer.name!r} cannot be in a group: it is called with tensors "
            f"{tensors} by keyword. Leave it out of the group, with a rule of its own. "
            f"Received: keywords {sorted(kwargs)}"
        )


def _check_model_is_plain(model):
    if isinstance(model, Distiller):
        raise ValueError(
            f"Model {model.name!r} is a distiller. Cluster its student, then distill "
            "that: tfc.distill(tfc.cluster(distiller.student), teacher)."
        )
    if find_layers(model, FakeQuant):
        raise ValueError(
            f"Model {model.name!r} is quantization-aware. Cluster first: "
            "tfc.quantize_aware(tfc.cluster(tfc.strip(model)))."
        )
    if find_layers(model, TransformWeights):
        raise ValueError(
            f"Model {model.name!r} is clustered already. Train it further as it is, or "
            "start again from `tfc.strip(model)`."
        )
