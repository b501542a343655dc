"""Which layers may lose channels, and how many of their own.

Example:
    ```python
    chosen = choose_producers(channels, exclude="stem")    # {"conv": None, ...}
    ```
"""

from tfcompress.graph.channel_rules import find_channels
from tfcompress.graph.channels import KEPT
from tfcompress.passes.channel_budget import is_fraction
from tfcompress.passes.surgery import opened
from tfcompress.selection import select


def channels_of(model, *, verb, open_layers=True):
    """The `Channels` of any model that can be made flat.

    Args:
        model: Built `keras.Model`.
        verb: Name of the function, for messages.
        open_layers: Whether to take apart a user's own layers that consist of layers.

    Returns:
        `Channels`; its `graph.model` is `model` itself, or a flat copy.

    Raises:
        TypeError: If it is no Keras 3 model.
        ValueError: If a pass of this library put layers in, or it has no graph of
            layers and none can be recorded.
    """
    return find_channels(opened(model, verb=verb, open_layers=open_layers))


def choose_producers(channels, include=None, exclude=None, rules=()):
    """Picks among the layers that make channels.

    Args:
        channels: `Channels` of a model.
        include: Pattern(s) of layers that may lose channels; `None`: all.
        exclude: Pattern(s) of layers that may not.
        rules: List of `Rule(match, amount=...)`.

    Returns:
        Dict from the name of each chosen producer to its amount, or `None`.

    Raises:
        ValueError: If no channel can go at all, a pattern matches nothing, or a rule
            sets something else.
    """
    for rule in rules:
        amount = rule.settings.get("amount")
        if set(rule.settings) != {"amount"} or not is_fraction(amount):
            raise ValueError(
                "A rule for channels sets `amount`, a fraction in [0, 1). Received: "
                f"{rule!r}"
            )
    free, stuck = [], {}
    for producer in channels.producers:
        if (channels.groups(producer.ids) != KEPT).any():
            free.append(producer.name)
        else:
            stuck[producer.name] = channels.kept_because(producer.ids)
    if not free:
        raise ValueError(_nothing(channels, stuck))
    names = [p.name for p in channels.producers]
    chosen = select(names, include=include, exclude=exclude, rules=rules)
    if not set(chosen) & set(free):
        raise ValueError(
            "No layer that is left by `include` and `exclude` has channels that can "
            f"go. Layers that have: {free}. The others: {stuck}"
        )
    return {name: settings.get("amount") for name, settings in chosen.items()}


def _nothing(channels, stuck):
    model = channels.graph.model
    if not stuck:
        return f"Model {model.name!r} has no layer that makes channels."
    lines = [f"  {name}: {'; '.join(why)}" for name, why in stuck.items()]
    return "\n".join(
        [f"No channel of model {model.name!r} can go. What keeps them:", *lines]
    )
