"""Which kernels a `Pruning` acts on, and how sparse each becomes."""

import contextlib

import keras
from absl import logging

from tfcompress import selection
from tfcompress.callbacks.masked_weight import MaskedWeight
from tfcompress.graph import Graph, find_layers, functional, kernels
from tfcompress.numerics import masks, patterns, scores
from tfcompress.numerics.layer_sparsity import erdos_renyi_kernel

# Below it a kernel saves nothing worth the damage.
_SMALL = 100
# For weights whose masks are never chosen.
_MAGNITUDE, _ONE_BY_ONE = scores.find("magnitude"), patterns.parse(None)
# Layers whose kernels end in an axis of inputs and one of outputs.
_MATRICES = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


def choose(callback):
    """The kernels of the callback's model that are pruned, with final sparsities.

    Args:
        callback: A `Pruning` with its model set.

    Returns:
        List of `MaskedWeight`.

    Raises:
        ValueError: If nothing can be pruned, or nothing would be left of a kernel.
    """
    model = callback.model
    found = kernels(model)
    if not found:
        raise ValueError(
            f"Model {model.name!r} has no prunable weight: no trainable kernel of two "
            f"dimensions or more among {[v.path for v in model.weights]}."
        )
    chosen = selection.select(
        found, include=callback.include, exclude=callback.exclude, rules=callback.rules
    )
    if not chosen:
        raise ValueError(
            "Nothing is left to prune after `include` and `exclude`. The paths there "
            f"are: {list(found)}"
        )
    if callback.pattern is not None:
        chosen = _with_inputs_and_outputs(chosen, found, callback)
    if callback.skip_small_and_last and callback.final is not None:
        chosen = _without_small_and_last(chosen, found, callback)
    strategy = getattr(model, "distribute_strategy", None)
    with strategy.scope() if strategy else contextlib.nullcontext():
        pruned = [
            MaskedWeight(
                found[path],
                path,
                callback.criterion,
                callback.units,
                settings.get("sparsity"),
                grows=callback.regrow is not None,
            )
            for path, settings in chosen.items()
        ]
    _share_out(pruned, callback)
    _check_not_emptied(pruned, callback)
    return pruned


def zeros_elsewhere(callback, own, *, at_least):
    """Kernels that were pruned before, and that the callback does not act on.

    Args:
        callback: A `Pruning` with its model set.
        own: Set of the ids of the variables that it acts on.
        at_least: Fraction of exact zeros from which a kernel counts as pruned.

    Returns:
        List of `MaskedWeight` with the masks found.
    """
    strategy = getattr(callback.model, "distribute_strategy", None)
    with strategy.scope() if strategy else contextlib.nullcontext():
        found = [
            MaskedWeight(variable, path, _MAGNITUDE, _ONE_BY_ONE)
            for path, variable in kernels(callback.model).items()
            if id(variable) not in own
            and masks.kept_zeros(variable.numpy(), at_least) is not None
        ]
    for one in found:
        one.find_mask(at_least)
    return found


def check_room(callback, finals):
    """Raises if more zeros are wanted than the callback's pattern has room for."""
    highest = callback.units.highest_sparsity
    wanted = [final for final in (callback.final, *finals) if final is not None]
    if max(wanted, default=0) > highest + 1e-9:
        raise ValueError(
            f"Pattern {callback.pattern!r} has {highest:g} zeros at most. Received: "
            f"sparsity={max(wanted):g}. Pass sparsity={highest:g} or less (and scope="
            "'layer')."
        )


def _with_inputs_and_outputs(chosen, found, callback):
    """Leaves out kernels whose last two axes are not inputs and outputs."""
    fitting = {id(layer.kernel) for layer in find_layers(callback.model, _MATRICES)}
    left = [path for path in chosen if id(found[path]) not in fitting]
    if len(left) == len(chosen):
        raise ValueError(
            f"Pattern {callback.pattern!r} is for kernels of Dense, Conv1D, Conv2D and "
            f"Conv3D layers, and none is chosen. Received: {left}"
        )
    if left:
        logging.warning(
            "Pattern %r is for kernels of Dense, Conv1D, Conv2D and Conv3D layers; "
            "left alone: %s",
            callback.pattern,
            left,
        )
    return {path: settings for path, settings in chosen.items() if path not in left}


def _without_small_and_last(chosen, found, callback):
    """Leaves out what loses most by pruning and gains least, unless it was named."""
    if callback.include is not None:
        return chosen
    last = _last(callback.model, found)
    left = [
        path
        for path, settings in chosen.items()
        if not settings and (path in last or _size(found[path]) < _SMALL)
    ]
    why = (
        f"kernels of fewer than {_SMALL} weights and of the last layer: {left}. To "
        "prune them, name them in `include` or `rules`, or pass "
        "skip_small_and_last=False."
    )
    if len(left) == len(chosen):
        raise ValueError(f"Nothing is left to prune but {why}")
    if left:
        logging.warning("Pruning leaves alone %s", why)
    return {path: settings for path, settings in chosen.items() if path not in left}


def _size(variable):
    return variable.value.shape.num_elements()


def _last(model, found):
    """Paths of the kernels behind which only layers without kernels come."""
    if functional(model) is None:
        # No graph to follow: what was defined last.
        layer = list(found)[-1].rpartition("/")[0]
        return {path for path in found if path.rpartition("/")[0] == layer}
    graph = Graph(model)
    stack, seen, last = list(graph.outputs), set(), set()
    while stack:
        call = graph.producer(stack.pop())
        if call is None or id(call) in seen:
            continue
        seen.add(id(call))
        own = {id(v) for v in getattr(call.operation, "weights", ())}
        inside = {path: v for path, v in found.items() if id(v) in own}
        if inside and isinstance(call.operation, keras.Model):
            last |= _last(call.operation, inside)
        elif inside:
            last |= set(inside)
        else:
            stack.extend(call.input_tensors)
    return last


def _share_out(pruned, callback):
    """Sets sparsities of their own where the scope gives each kernel one."""
    free = [p for p in pruned if p.final is None]
    if callback.scope == "erk" and callback.final is not None and free:
        shapes = [tuple(p.variable.shape) for p in free]
        finals = erdos_renyi_kernel(shapes, callback.final)
        check_room(callback, finals)
        for one, final in zip(free, finals, strict=True):
            one.final = final


def _check_not_emptied(pruned, callback):
    """Raises if a sparsity is rounded to nothing left of a kernel."""
    for one in pruned:
        final = one.final
        if final is None and callback.scope == "layer":
            final = callback.final
        if final is not None and one.is_emptied_by(final):
            raise ValueError(
                f"sparsity={final:g} would leave nothing of {one.path!r}, of shape "
                f"{tuple(one.variable.shape)} (pattern={callback.pattern!r}). Leave it "
                f"out with exclude={one.path!r}, or give it less: rules=[tfc.Rule("
                f"{one.path!r}, sparsity=...)]."
            )
