"""Factorization: layers with big kernels as chains of layers with small ones.

Example:
    ```python
    smaller, report = tfc.factorize(model, parameters=0.5, return_report=True)
    smaller.compile("adam", "sparse_categorical_crossentropy")
    smaller.fit(x, y)   # a few epochs win back the accuracy
    ```
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph import rewrite
from tfcompress.numerics import factorization, ranks
from tfcompress.passes import surgery
from tfcompress.passes.factor_layers import POINTWISE, factor_layers
from tfcompress.passes.factor_methods import METHODS
from tfcompress.passes.factor_settings import check_rule, defaults
from tfcompress.passes.lowering import parts as lowered
from tfcompress.passes.surgery import Change
from tfcompress.selection import select


def factorize(
    model,
    *,
    energy=None,
    parameters=None,
    rank=None,
    method="auto",
    rules=(),
    include=None,
    exclude=None,
    return_report=False,
):
    """Returns a model whose Dense layers and convolutions are chains of smaller ones.

    How a kernel is taken apart:

    - `"svd"`: Dense into two; a convolution into one with fewer outputs and a 1x1.
    - `"tucker"`: 1x1, a k x k over fewer channels, 1x1 (Tucker-2).
    - `"spatial"`: k x 1, then 1 x k.
    - `"cp"`: 1x1, depthwise k x k, 1x1.

    Bias and activation are at the end of the chain, strides, padding and dilation at
    the kernel that has the extent. What a factorization would not make smaller is left
    alone; the report says which.

    Args:
        model: Built `keras.Model`. It is not changed; nested
            models are inlined.
        energy: Fraction of each kernel's sum of squares to keep, in (0, 1]. The
            relative error is at most the root of what is missing. 0.95 if neither this
            nor `parameters` nor `rank` is given. CP tries nine ranks.
        parameters: Share of the model's parameters to reach, in (0, 1). Ranks are
            given out where a parameter keeps the most of its kernel's energy.
        rank: Number of terms; a float in (0, 1) is the share of the largest rank; a
            pair is for Tucker. `"vbmf"` finds it by variational Bayes; a layer whose
            kernel is nothing but noise to it stays as it is.
        method: One of the above for convolutions larger than 1x1; the others, and
            Dense, are matrices and always `"svd"`. `"auto"` is `"tucker"`.
        rules: `tfc.Rule`s on layer names, first match wins, with `energy=`, `rank=` or
            `method=`. A layer with a rank or energy of its own does not take part in
            `parameters`.
        include: Pattern or patterns of layer names; others are left alone.
        exclude: Pattern or patterns of layer names to leave alone.
        return_report: Whether to return the report as well.

    Returns:
        A new `keras.Model`; with `return_report` a pair of it and a `SurgeryReport`
        with the relative Frobenius error of each kernel.

    Raises:
        TypeError: If `model` is no Keras 3 model, or a setting is of a wrong type.
        ValueError: If the model cannot be rewritten or has no layer to factorize, a
            setting is out of range, does not fit a layer, or contradicts another, or a
            pattern matches nothing.

    Reference:
        Denton et al., 2014, arXiv:1404.0736 (SVD); Kim et al., 2015, arXiv:1511.06530
        (Tucker-2, with ranks by VBMF); Jaderberg et al., 2014, arXiv:1405.3866
        (spatial); Lebedev et al., 2014, arXiv:1412.6553 (CP). The functions of
        `numerics.factorization` name the equations.
    """
    graph = surgery.opened(model, verb="factorize")
    common = defaults(energy, parameters, rank, method)
    candidates = _candidates(graph, common, rules, include, exclude)
    _choose_ranks(graph, candidates, parameters)
    taken = {call.operation.name for call in graph.calls}
    changes, chains = [], {}
    for candidate in candidates:
        chain, change = candidate.applied(taken)
        changes.append(change)
        if chain:
            chains[candidate.layer.name] = chain
    factorized = rewrite(graph, chained(chains))
    return surgery.closed("factorize", graph, factorized, changes, return_report)


def chained(chains):
    """The visitor that runs chains in the place of layers.

    Args:
        chains: Dict from the name of a layer to a list of layers.
    """

    def visit(call, clone, args, kwargs):
        chain = chains.get(call.operation.name)
        if chain is None:
            return clone(call.operation)(*args, **kwargs)
        x = surgery.first_tensor(args, kwargs)
        for layer in chain:
            x = layer(x)
        return x

    return visit


@dataclass(eq=False)
class _Candidate:
    """A layer, its method, and the rank it gets; `None` leaves it as it is."""

    layer: layers.Layer
    settings: dict
    kernel: Any
    method: str
    rank: Any = None
    reason: str = "not smaller"

    def applied(self, taken):
        """The layers in its place (`None` if it stays), and the `Change`."""
        before = self.layer.count_params()
        if self.rank is None:
            stays = Change(
                self.layer.name, f"left alone: {self.reason}", before, before
            )
            return None, stays
        parts, together = METHODS[self.method].parts(self.layer, self.kernel, self.rank)
        chain = factor_layers(self.layer, parts, taken=taken)
        rank = self.rank
        text = " x ".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)
        return chain, Change(
            self.layer.name,
            f"{self.method}, rank {text}",
            before,
            sum(layer.count_params() for layer in chain),
            factorization.relative_error(self.kernel, together),
        )

    def settle(self, rank, reason):
        """Takes a rank if that makes it smaller."""
        cost = METHODS[self.method].parameters(self.kernel.shape, rank)
        if cost < self.kernel.size:
            self.rank = rank
        else:
            self.reason = reason


def _candidates(graph, common, rules, include, exclude):
    found = {
        call.operation.name: call.operation
        for call in graph.calls
        if type(call.operation) in POINTWISE
        and surgery.has_plain_kernel(call.operation)
        and getattr(call.operation, "groups", 1) == 1
    }
    if not found:
        kinds = sorted({type(call.operation).__name__ for call in graph.calls})
        raise ValueError(
            "`tfc.factorize` needs Dense layers, or Conv1D, Conv2D or Conv3D of one "
            f"group. Received: model {graph.model.name!r} of {', '.join(kinds)}"
        )
    chosen = select(found, include=include, exclude=exclude, rules=rules)
    return [_candidate(found[n], common, own) for n, own in chosen.items()]


def _candidate(layer, common, own):
    check_rule(layer, own)
    settings = {**common, **own}
    if "rank" in own or "energy" in own:
        settings = {"method": settings["method"], **own}
    method = _method(layer, settings["method"], by_rule="method" in own)
    return _Candidate(layer, settings, lowered.numpy(layer.kernel), method)


def _method(layer, name, *, by_rule):
    is_matrix = isinstance(layer, layers.Dense) or max(layer.kernel_size) == 1
    if name == "auto":
        return "svd" if is_matrix else "tucker"
    if is_matrix and not by_rule:
        return "svd"
    reason = METHODS[name].refuses(layer)
    if reason is not None:
        raise ValueError(
            f"Method {name!r} does not fit layer {layer.name!r} "
            f"({type(layer).__name__}): {reason}. Give it another by "
            f'tfc.Rule("{layer.name}", method="svd"), or exclude it.'
        )
    return name


def _choose_ranks(graph, candidates, parameters):
    budgeted = []
    for candidate in candidates:
        if not candidate.kernel.any():
            candidate.reason = "all zeros"
        elif "rank" in candidate.settings:
            rank = _rank(candidate)
            if rank is None:
                candidate.reason = "no rank stands out from noise"
            else:
                candidate.settle(rank, "not smaller at this rank")
        elif "energy" in candidate.settings:
            curve = METHODS[candidate.method].curve(candidate.kernel)
            _keep_energy(candidate, curve, candidate.settings["energy"])
        else:
            budgeted.append(candidate)
    if parameters is not None:
        _share_budget(graph, candidates, budgeted, parameters)


def _keep_energy(candidate, curve, energy):
    best = ranks.cheapest(curve.parameters, curve.energies, energy)
    if curve.energies[best] < energy - 1e-9:
        candidate.reason = f"no smaller form keeps an energy of {energy}"
    else:
        candidate.settle(curve.ranks[best], f"not smaller at an energy of {energy}")


def _rank(candidate):
    """The rank asked for, at most the largest there is; `None` if VBMF finds none."""
    wanted, kernel = candidate.settings["rank"], candidate.kernel
    method = METHODS[candidate.method]
    full = method.full(kernel)
    if wanted == "vbmf":
        wanted = method.vbmf(kernel)
        if not np.all(wanted):
            return None
    if isinstance(full, tuple):
        wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
        return tuple(map(_bounded, wanted, full))
    if isinstance(wanted, (tuple, list)):
        raise ValueError(
            f"A pair of ranks is for Tucker. Received: rank={wanted!r} for layer "
            f"{candidate.layer.name!r}, which is factorized by {candidate.method!r}"
        )
    # A sum of outer products may well have more terms than channels.
    return _bounded(wanted, full, capped=candidate.method != "cp")


def _bounded(wanted, full, *, capped=True):
    rank = round(wanted * full) if isinstance(wanted, float) else wanted
    return max(min(rank, full) if capped else rank, 1)


def _share_budget(graph, candidates, budgeted, share):
    total = graph.model.count_params()
    fixed = total
    for candidate in candidates:
        fixed -= candidate.kernel.size
        if candidate.rank is not None:
            method = METHODS[candidate.method]
            fixed += method.parameters(candidate.kernel.shape, candidate.rank)
        elif candidate not in budgeted:
            fixed += candidate.kernel.size
    curves = [METHODS[c.method].curve(c.kernel) for c in budgeted]
    points = [_points(*pair) for pair in zip(budgeted, curves, strict=True)]
    chosen = ranks.allocate(points, int(share * total) - fixed)
    if chosen is None:
        least = (fixed + sum(int(p.min()) for p, _ in points)) / total
        raise ValueError(
            f"`parameters` cannot be reached: at rank 1 everywhere the model has "
            f"{least:.3f} of its parameters. Received: parameters={share}. "
            "Choose more, or factorize more layers."
        )
    for candidate, curve, index in zip(budgeted, curves, chosen, strict=True):
        if index < len(curve.ranks):
            candidate.settle(curve.ranks[index], "not smaller")
        else:
            candidate.reason = "its share of the budget keeps it whole"


def _points(candidate, curve):
    """The curve, what is not smaller made useless, and the layer as it is."""
    size = candidate.kernel.size
    smaller = curve.parameters < size
    parameters = np.where(smaller, curve.parameters, size)
    energies = np.where(smaller, curve.energies, 0.0)
    return np.append(parameters, size), np.append(energies, 1.0)
