"""How many channels go: a fraction, or what the result may cost.

Example:
    ```python
    removed = within_budget(plan, {"macs": 0.5, "parameters": 100_000})
    ```
"""

import numbers

import numpy as np
import tensorflow as tf

_SHARES_AND_NUMBERS = ("parameters", "macs", "bytes")
_MEASURED = ("latency", "latency_ms")
# Each costs an export and a second of measuring.
_MEASURED_STEPS = 7


def check_choice(amount, budget, scope, round_to, *, measured=True):
    """Raises unless it is clear how many channels are to go, and that makes sense.

    Args:
        amount: Fraction of the channels to remove, or `None`.
        budget: Dict as of `tfc.prune_channels`, or `None`.
        scope: `"layer"` or `"global"`.
        round_to: Multiple that stays.
        measured: Whether latency can be in the budget.
    """
    if (amount is None) == (budget is None):
        raise ValueError(
            "Pass either `amount`, the fraction of channels to remove, or `budget`. "
            f"Received: amount={amount}, budget={budget}"
        )
    if amount is not None and not is_fraction(amount):
        raise ValueError(
            "`amount` must be a number in [0, 1): a layer without channels computes "
            "nothing. "
            f"Received: amount={amount!r}"
        )
    if budget is not None and not (isinstance(budget, dict) and budget):
        raise ValueError(
            f"`budget` must be a dict such as {{'macs': 0.5}}. Received: {budget!r}"
        )
    known = _SHARES_AND_NUMBERS + (_MEASURED if measured else ())
    for name, limit in (budget or {}).items():
        _check_limit(name, limit, known)
    if scope not in ("layer", "global"):
        raise ValueError(f"`scope` must be 'layer' or 'global'. Received: {scope!r}")
    whole = isinstance(round_to, numbers.Integral) and not isinstance(round_to, bool)
    if not whole or round_to < 1:
        raise ValueError(f"`round_to` must be 1 or more. Received: {round_to}")


def is_fraction(amount):
    """Whether an amount is a number in [0, 1)."""
    return (
        isinstance(amount, numbers.Real)
        and not isinstance(amount, bool)
        and 0 <= amount < 1
    )


def within_budget(plan, budget, latency_ms=None, uncounted_macs=0):
    """The groups that go so that all of a budget holds.

    Args:
        plan: `ChannelPlan`.
        budget: Dict from what it costs to a limit.
        latency_ms: Function from a bool array of removed groups to milliseconds.
        uncounted_macs: Work that no channel changes and that the plan does not know of.

    Returns:
        Bool array with an entry for each group.

    Raises:
        ValueError: If the budget cannot be reached; it names the least there is.
    """
    measured = {}

    def latency(removed):
        key = removed.tobytes()
        if key not in measured:
            measured[key] = latency_ms(removed)
        return measured[key]

    costs = {
        "parameters": lambda removed: parameters(plan, removed),
        "macs": lambda removed: _known_macs(plan, removed) + uncounted_macs,
        "bytes": lambda removed: _bytes(plan, removed),
        "latency": latency,
        "latency_ms": latency,
    }
    # In this order: the cheap ones first, so that fewer files are measured.
    names = [name for name in costs if name in budget]
    whole = np.zeros(plan.channels.group_count, bool)
    limits = {
        name: budget[name] * costs[name](whole)
        if _is_share(name, budget[name])
        else budget[name]
        for name in names
    }

    def fits(removed):
        return all(costs[name](removed) <= limits[name] for name in names)

    removed = plan.within(
        fits, *([_MEASURED_STEPS] if set(_MEASURED) & set(names) else [])
    )
    if removed is not None:
        return removed
    least = plan.removed(1.0)
    reached = ", ".join(
        f"{name}: {costs[name](least):,.6g} (wanted: {limits[name]:,.6g})"
        for name in names
    )
    raise ValueError(
        "The budget cannot be reached. The least there is, with as few channels left "
        f"as can be: {reached}."
    )


def parameters(plan, removed):
    """Number of weights that stay."""
    return sum(size for _, size in plan.sizes(removed))


def _bytes(plan, removed):
    return sum(
        size * tf.as_dtype(variable.dtype).size
        for variable, size in plan.sizes(removed)
    )


def _known_macs(plan, removed):
    found = plan.macs(removed)
    if found is None:
        raise ValueError(
            'budget={"macs": ...}: the size of some input is not known, so neither is '
            "the work. Give keras.Input its full shape, or set another budget."
        )
    return found


def _is_share(name, limit):
    whole = isinstance(limit, numbers.Integral)
    return name == "latency" or (name != "latency_ms" and not whole)


def _check_limit(name, limit, known):
    if name not in known:
        raise ValueError(
            f"`budget` must be a dict with some of {list(known)}. Received: {name!r}"
        )
    number = isinstance(limit, (numbers.Real, np.floating))
    if isinstance(limit, bool) or not number or not limit > 0:
        raise ValueError(
            f"`budget`: {name!r} must be a number above 0. Received: {limit!r}"
        )
    if _is_share(name, limit) and limit > 1:
        raise ValueError(
            f"`budget`: a float is a share, at most 1.0, of the model's own {name}; an "
            f"int is a number. Received: {limit!r}"
        )
