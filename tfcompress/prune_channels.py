"""Removes whole channels: a smaller and faster model on every device.

Example:
    ```python
    small = tfc.prune_channels(model, 0.5)                          # half of each layer
    small = tfc.prune_channels(model, budget={"macs": 0.5})         # half of the work
    small.compile("adam", "sparse_categorical_crossentropy")
    small.fit(x, y)                                                 # learns again
    ```
"""

import pathlib
import tempfile
from dataclasses import dataclass

import numpy as np

from tfcompress.deploy.runtime import latency_ms
from tfcompress.deploy.tflite import export_tflite
from tfcompress.measure import model_macs
from tfcompress.passes.channel_budget import (
    check_choice,
    parameters,
    within_budget,
)
from tfcompress.passes.channel_choice import channels_of, choose_producers
from tfcompress.passes.channel_plan import ChannelPlan, tied_to_others
from tfcompress.passes.channel_removal import carry_optimizer, remove_channels
from tfcompress.passes.channel_scores import find_scores


def prune_channels(
    model,
    amount=None,
    *,
    budget=None,
    scope="layer",
    score="l2",
    round_to=1,
    data=None,
    include=None,
    exclude=None,
    rules=(),
    keep_optimizer=False,
    return_report=False,
):
    """Returns the model without its least channels: filters, units, heads.

    Channels that depend on each other go together: those that are added or multiplied,
    that pass a depthwise kernel, a normalization, a reshape. The result computes what
    the model would with these channels set to zero wherever they are read; layer,
    RMS and group normalization take their statistics of what stays. Channels that an
    output of the model, or an operation that is not known, depends on stay; the report
    names them. Train it afterwards: removing channels costs accuracy.

    Args:
        model: Built `keras.Model`; nested models are inlined, a subclassed one becomes
            functional, for which it must have a `get_config`, and its `call` consist of
            Keras layers and `keras.ops`. It is left as it is.
        amount: Fraction of the channels to remove, in [0, 1). Every layer keeps one.
        budget: Instead of `amount`: dict of what the result may cost at most, and
            channels go until all of it holds. `"parameters"`, `"macs"` (of one
            example) and `"bytes"` (of the weights): a float up to 1 is a share of the
            model's own, an int is a number. `"latency"` is a share and `"latency_ms"`
            the milliseconds of one inference of the exported float32 TFLite file, on
            one thread of this machine.
        scope: `"layer"` removes the same fraction everywhere; `"global"` the lowest
            scores of the whole model.
        score: What makes a channel matter. Of its weights, relative to its layer:
            `"l1"`, `"l2"`, `"geometric_median"` (FPGM: distance to the other filters),
            `"random"`. `"batch_norm"`: scale of the batch normalization behind it.
            With `data`: `"taylor"`, its weights times the gradients of the loss, of a
            compiled model; `"rank"` of its feature maps (HRank). Or a function from a
            float32 matrix `(weights of a channel, channels)` and the layer's name to a
            score per channel, which is taken relative to the mean of its layer.
        round_to: Channels of a layer stay a multiple of it, if it has as many: 8 suits
            SIMD kernels and NPUs.
        data: Examples for `score`, `(x, y)` or a batched `tf.data.Dataset`.
        include: Regular expression(s) on the layer's name, or predicate(s): only these
            layers lose channels (and those that are tied to them must be among them).
        exclude: The same: these do not.
        rules: List of `tfc.Rule(match, amount=...)`: fractions of single layers.
        keep_optimizer: Whether to compile the result as the model was, with the state
            that the optimizer has for what stays. Not for models with nested models,
            Adafactor (whose state has no channels) or loss scaling.
        return_report: Whether to return a `ChannelReport` as well.

    Returns:
        A new `keras.Model` of Keras' own layers, not compiled unless `keep_optimizer`;
        with `return_report`, a pair of it and the report.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the model is quantization-aware or a distiller (remove channels
            first), its `call` cannot be recorded, a setting is out of range, no
            channel can go (names why), the budget cannot be reached (names the least
            there is), or the score needs data.

    Reference:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023. arXiv:2301.12900
        (groups); Li et al., 2016, arXiv:1608.08710 (L1); Liu et al., 2017,
        arXiv:1708.06519 (scales); Molchanov et al., 2019, arXiv:1906.10771 (Taylor);
        He et al., 2018, arXiv:1811.00250 (FPGM); Lin et al., 2020, arXiv:2002.10179
        (HRank)
    """
    check_choice(amount, budget, scope, round_to)
    channels = channels_of(model, verb="prune_channels")
    chosen = choose_producers(channels, include, exclude, rules)
    scores = find_scores(channels, score, data, chosen=chosen, compiled=model)
    plan = ChannelPlan(channels, scores, chosen, scope, round_to)
    if budget is None:
        removed = plan.removed(amount)
    else:
        removed = within_budget(
            plan,
            budget,
            lambda removed: _latency_ms(channels, removed),
            _uncounted_macs(plan) if "macs" in budget else 0,
        )
    small, moved = remove_channels(channels, removed)
    if keep_optimizer:
        _check_flat(model, channels)
        carry_optimizer(model, small, moved)
    if not return_report:
        return small
    return small, _report(plan, removed, chosen)


@dataclass(frozen=True)
class ChannelReport:
    """What `prune_channels` removed.

    Attributes:
        layers: Tuple of `(name, channels before, channels after, why)`, one for each
            layer that makes channels; `why` says what keeps them all, or is "".
        parameters: `(before, after)`.
        macs: `(before, after)` for one example; `None` if a shape is not known.
        barriers: Dict from the names of operations that channels could not be followed
            through to the reason.
    """

    layers: tuple
    parameters: tuple
    macs: tuple | None
    barriers: dict

    def __str__(self):
        width = max((len(name) for name, *_ in self.layers), default=5)
        rows = [f"{'layer':<{width}} {'channels':>8} {'left':>6}"]
        rows += [
            f"{name:<{width}} {before:>8} {after:>6}  {why}".rstrip()
            for name, before, after, why in self.layers
        ]
        rows.append("parameters {:,} -> {:,}".format(*self.parameters))
        if self.macs is not None:
            rows.append("MACs {:,} -> {:,}".format(*self.macs))
        rows += [f"not followed: {n!r}: {why}" for n, why in self.barriers.items()]
        return "\n".join(rows)


def _report(plan, removed, chosen):
    channels = plan.channels
    tied = tied_to_others(channels, chosen)
    layers = []
    for producer in channels.producers:
        ids = producer.ids[: len(producer.ids) // producer.repeats]
        why = list(dict.fromkeys(channels.kept_because(ids)))
        if not why and producer.name not in chosen:
            why = ["not chosen"]
        elif not why and tied[producer.name]:
            why = [f"tied to {tied[producer.name]}, not chosen"]
        layers.append(
            (producer.name, len(ids), plan.counter(removed)(ids), "; ".join(why))
        )
    nothing = np.zeros_like(removed)
    macs = plan.macs(nothing), plan.macs(removed)
    return ChannelReport(
        layers=tuple(layers),
        parameters=(parameters(plan, nothing), parameters(plan, removed)),
        macs=None if None in macs else macs,
        barriers=channels.barriers,
    )


def _latency_ms(channels, removed):
    small, _ = remove_channels(channels, removed)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        export_tflite(small, path, kind="float32")
        return latency_ms(path)


def _uncounted_macs(plan):
    """Work of operations that channels were not followed through."""
    counted = plan.macs(np.zeros(plan.channels.group_count, bool))
    if counted is None or not plan.channels.barriers:
        return 0
    whole = model_macs(plan.channels.graph.model)
    return 0 if whole is None else whole - counted


def _check_flat(model, channels):
    if channels.graph.model is not model:
        raise ValueError(
            f"keep_optimizer: model {model.name!r} holds nested models, or is "
            "subclassed, so its weights get new places. Compile the result instead."
        )
