"""Drops the residual blocks that matter least: a model of fewer layers.

Example:
    ```python
    shallow, report = tfc.prune_layers(model, 0.3, data=x[:256], return_report=True)
    print(report)   # which blocks went, and the score of each
    ```
"""

import keras
import numpy as np

from tfcompress.graph import rewrite
from tfcompress.passes import surgery
from tfcompress.passes.block_scores import DataScores
from tfcompress.passes.residual_blocks import gain_of_weights, residual_blocks
from tfcompress.passes.surgery import Change
from tfcompress.selection import select

_SCORES = ("output", "loss", "similarity", "weights")


def prune_layers(
    model,
    amount,
    data=None,
    *,
    score=None,
    loss=None,
    include=None,
    exclude=None,
    return_report=False,
):
    """Returns a model without the residual blocks that matter least.

    A residual block adds to a tensor what it computes from it alone; without the block
    the tensor goes on as it is. Blocks that change the shape have no such skip and
    stay. Blocks go one by one; after each the scores of the rest are computed again.

    Args:
        model: Built `keras.Model`. It is not changed; nested
            models are inlined.
        amount: How many blocks go: a whole number from 1, or a share of the blocks
            there are, in (0, 1), rounded.
        data: Examples (arrays, a batched `tf.data.Dataset` or an iterable of batches)
            by which to judge, with labels for `score="loss"`.
        score: What dropping a block costs, the least first:
            `"output"`: the relative change of the model's outputs (Euclidean norm);
            `"loss"`: the rise of the mean loss;
            `"similarity"`: one minus the cosine between the block's input and output;
            `"weights"`: the size of the branch beside its input, estimated from its
            weights alone, which is rough.
            `None` is `"output"` with data and `"weights"` without.
        loss: A Keras loss or its name for `score="loss"`; `None` is that of the
            compiled model.
        include: Pattern or patterns of names of additions; others stay.
        exclude: Pattern or patterns of names of additions that stay.
        return_report: Whether to return the report as well.

    Returns:
        A new `keras.Model`; with `return_report` a pair of it and a `SurgeryReport`,
        whose `error` is the score: of a block that went, when it did; of the others at
        the last round.

    Raises:
        TypeError: If `model` is no Keras 3 model, or `amount` no number.
        ValueError: If the model cannot be rewritten or has no residual block (what it
            adds up instead is listed), `amount` or `score` is out of range, data or
            loss are missing, or a pattern matches nothing.

    Reference:
        Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow
        Networks", 2016, section 4.1. arXiv:1605.06431; similarity is the block
        influence of Men et al., "ShortGPT", 2024, eq. 1. arXiv:2403.03853
    """
    graph = surgery.opened(model, verb="prune_layers")
    blocks = _blocks(graph)
    chosen = select([b.name for b in blocks], include=include, exclude=exclude)
    blocks = [block for block in blocks if block.name in chosen]
    count = _count(amount, len(blocks))
    scores = _scorer(graph, model, blocks, data, score, loss)
    dropped, changes = [], []
    while len(dropped) < count:
        left = [block for block in blocks if not _is_gone(block, dropped)]
        if not left:
            break
        found = scores(dropped, left)
        worst = int(np.argmin(found))
        changes.append(_change(graph, left[worst], found[worst], gone=True))
        dropped.append(left[worst])
        kept = [b for b in zip(left, found, strict=True) if b[0] is not left[worst]]
    changes += [
        _change(graph, block, value, gone=False)
        for block, value in kept
        if not _is_gone(block, dropped)
    ]
    pruned = rewrite(graph, _without(dropped))
    return surgery.closed("prune_layers", graph, pruned, changes, return_report)


def _is_gone(block, dropped):
    """Whether a block was dropped, by itself or with one around it."""
    return any(
        block is other or any(block.addition is call for call in other.calls)
        for other in dropped
    )


def _without(dropped):
    """The visitor that hands on the skip of a dropped block."""
    dead = {id(call) for block in dropped for call in block.calls}
    skips = {id(block.addition): block.skip for block in dropped}

    def visit(call, clone, args, kwargs):
        if id(call) in dead:
            # Nothing reads these: any tensors do.
            return list(call.outputs)
        if id(call) in skips:
            return _argument(call, skips[id(call)], args, kwargs)
        return clone(call.operation)(*args, **kwargs)

    return visit


def _argument(call, old, args, kwargs):
    """What stands where the tensor `old` stood in the call."""
    flat_old = keras.tree.flatten((call.arguments.args, call.arguments.kwargs))
    flat_new = keras.tree.flatten((args, kwargs))
    return next(n for o, n in zip(flat_old, flat_new, strict=True) if o is old)


def _change(graph, block, score, *, gone):
    inside = {id(call) for call in block.calls}
    outside = {id(c.operation) for c in graph.calls if id(c) not in inside}
    own = {
        id(c.operation): c.operation
        for c in block.calls
        if isinstance(c.operation, keras.layers.Layer)
        and id(c.operation) not in outside
    }
    size = sum(layer.count_params() for layer in own.values())
    what = f"block of {len(block.calls)} dropped" if gone else "kept"
    return Change(block.name, what, size, 0 if gone else size, float(score))


def _blocks(graph):
    blocks, others = residual_blocks(graph)
    if blocks:
        return blocks
    found = [f"{name}: {reason}" for name, reason in others.items()]
    listed = "\n  ".join(found) or "(no addition at all)"
    raise ValueError(
        "`tfc.prune_layers` needs residual blocks: an Add of a tensor and of what is "
        "computed from it alone, in the same shape. Received: model "
        f"{graph.model.name!r}, whose additions are\n  {listed}\nFor models without "
        "such blocks use tfc.prune_channels or tfc.factorize."
    )


def _count(amount, blocks):
    """The whole number of blocks to drop."""
    if isinstance(amount, bool) or not isinstance(
        amount, (int, float, np.integer, np.floating)
    ):
        raise TypeError(
            "`amount` must be a number of blocks or a share of them. Received: "
            f"amount={amount!r} (of type {type(amount).__name__})"
        )
    whole = isinstance(amount, (int, np.integer))
    if not (1 <= amount <= blocks if whole else 0 < amount < 1):
        raise ValueError(
            f"`amount` must be a whole number from 1 to {blocks}, which is how many "
            f"blocks there are to choose from, or a share in (0, 1). Received: "
            f"amount={amount!r}"
        )
    count = int(amount) if whole else round(float(amount) * blocks)
    if not count:
        raise ValueError(
            f"`amount`={amount!r} of {blocks} block(s) rounds to none. Pass amount=1."
        )
    return count


def _scorer(graph, model, blocks, data, score, loss):
    """A function from the blocks dropped, and those left, to the scores of these."""
    if score is None:
        score = "weights" if data is None else "output"
    if score not in _SCORES:
        raise ValueError(
            f"`score` must be one of {', '.join(map(repr, _SCORES))}. Received: "
            f"score={score!r}"
        )
    if score == "weights":
        return lambda dropped, left: [gain_of_weights(block) for block in left]
    if data is None:
        raise ValueError(
            f"score={score!r} needs `data`, examples to judge by. Pass some, or "
            "score='weights'."
        )
    loss = _loss(model, loss) if score == "loss" else None
    return DataScores(graph, blocks, data, score, loss)


def _loss(model, loss):
    loss = getattr(model, "loss", None) if loss is None else loss
    if loss is None or isinstance(loss, (list, tuple, dict)):
        raise ValueError(
            "score='loss' needs one loss: pass loss='sparse_categorical_crossentropy' "
            f"or such, or compile the model with one. Received: loss={loss!r}"
        )
    return keras.losses.get(loss)
