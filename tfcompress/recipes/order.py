"""Which stages may follow which, so that each keeps what was made before.

Example:
    ```python
    check_order(stages)   # raises, and says an order that works
    ```
"""

from tfcompress.graph import find_layers, kernels
from tfcompress.layers import FakeQuant, TransformWeights
from tfcompress.numerics import masks
from tfcompress.recipes.stages import CALLBACKS, HELD, TRAINING

_WRAPPED = "works on plain layers, and those are wrapped by then"
_DENSE = "replaces kernels by products of new ones, in which the zeros are lost"
_PLAIN = {"clusters": _WRAPPED, "quantization": _WRAPPED}
# Stage -> what may not be there when it acts -> why.
_CANNOT_FOLLOW = {
    "prune_channels": _PLAIN,
    "factorize": {**_PLAIN, "zeros": _DENSE},
    "separate_convs": {**_PLAIN, "zeros": _DENSE},
    "prune_layers": _PLAIN,
    "replace_activations": _PLAIN,
    "fold": _PLAIN,
    "ChannelPruning": {
        **_PLAIN,
        "zeros": "shrinks weights by a constraint of its own, and nothing would hold "
        "the zeros meanwhile (`prune_channels` keeps them)",
    },
    "cluster": _PLAIN,
    "quantize_aware": {"quantization": "can quantize a model once only"},
}
# Stage -> what it leaves in the model.
_MAKES = {
    "Pruning": "zeros",
    "cluster": "clusters",
    "quantize_aware": "quantization",
}
_WORDS = {"zeros": "zeros", "clusters": "codebooks", "quantization": "quantizers"}


def made_in(model):
    """What earlier work a model holds: a set of the values of `_MAKES`."""
    found = set()
    if find_layers(model, FakeQuant):
        found.add("quantization")
    elif find_layers(model, TransformWeights):
        found.add("clusters")
    if has_zeros(model):
        found.add("zeros")
    return found


def has_zeros(model):
    """Whether a kernel of the model was pruned."""
    return any(
        masks.kept_zeros(variable.numpy()) is not None
        for variable in kernels(model).values()
    )


def check_order(stages, made=()):
    """Raises if a stage would lose what an earlier one made, or cannot act there.

    Args:
        stages: Sequence of `Stage`.
        made: What the model holds before the first: from `made_in`.

    Raises:
        ValueError: Names the stages and, where moving them is enough, an order that
            works.
    """
    found = _first_conflict(stages, made)
    if found is None:
        return
    number, text, _ = found
    better = _reordered(stages, made)
    hint = "" if better is None else f" An order that works: {_names(better)}."
    raise ValueError(f"Stage {number + 1}, `{stages[number].name}`: {text}{hint}")


def _names(stages):
    return ", ".join(stage.name for stage in stages)


def _first_conflict(stages, made):
    """`(index, what is wrong, index to move it before or None)`, or `None`."""
    # What is in the model, and which stage put it there; -1 is from before.
    there = dict.fromkeys(made, -1)
    held = {}
    for index, stage in enumerate(stages):
        name = stage.name
        if name in HELD:
            if name in held:
                return index, f"`{name}` twice for one `fit`. Leave one out.", None
            held[name] = index
        elif name in TRAINING:
            for one, position in held.items():
                found = _conflict(one, position, there)
                if found:
                    return found
            found = _together(held)
            if found:
                return found
            for one, position in held.items():
                if one in _MAKES:
                    there.setdefault(_MAKES[one], position)
            held = {}
        else:
            found = _conflict(name, index, there)
            if found:
                return found
            if name in _MAKES:
                there.setdefault(_MAKES[name], index)
    return _together(held)


def _conflict(name, index, there):
    for thing, why in _CANNOT_FOLLOW.get(name, {}).items():
        if thing not in there:
            continue
        maker = there[thing]
        if maker < 0:
            return (
                index,
                f"the model that the recipe starts from has {_WORDS[thing]}, and this "
                f"stage {why}.",
                None,
            )
        text = f"comes after stage {maker + 1}, and this stage {why}."
        return (
            index,
            text,
            None if thing == _MAKES.get(name) else maker,
        )
    return None


def _together(held):
    """Callbacks that cannot be in one `fit`."""
    if {"Pruning", "ChannelPruning"} <= set(held):
        return (
            max(held["Pruning"], held["ChannelPruning"]),
            "`Pruning` and `ChannelPruning` cannot share a `fit`. Put a `fit` of its "
            "own behind each, ChannelPruning first.",
            None,
        )
    return None


def _reordered(stages, made):
    """The stages with those in conflict moved forward, or `None` if that is no help."""
    stages = list(stages)
    for _ in range(len(stages) ** 2):
        found = _first_conflict(stages, made)
        if found is None:
            return stages
        index, _, before = found
        if before is None:
            return None
        first, last = _moving(stages, index)
        start = _start_of_training(stages, before)
        moving = stages[first:last]
        stages[first:last] = []
        stages[start:start] = moving
    return None


def _moving(stages, index):
    """The stages that move: a callback takes along what trains with it."""
    if stages[index].name not in CALLBACKS:
        return index, index + 1
    last = index
    while last < len(stages) and stages[last].name not in TRAINING:
        last += 1
    return _start_of_training(stages, index), last + 1


def _start_of_training(stages, index):
    """Where the run of stages begins that are held for the same `fit`."""
    while index and stages[index - 1].name in HELD:
        index -= 1
    return index
