"""What `Pruning` refuses to be told, each with what to do instead."""

import numbers

from tfcompress import schedules
from tfcompress.numerics import masks, patterns

_SCOPES = ("layer", "global", "erk")
_REGROWTHS = (None, "random", "gradient")
_REWINDS = (None, "weights", "learning_rate")


def check_arguments(callback):
    """Raises if the arguments of a `Pruning` are none, or contradict each other."""
    for name, choices in (
        ("scope", _SCOPES),
        ("regrow", _REGROWTHS),
        ("rewind", _REWINDS),
    ):
        if getattr(callback, name) not in choices:
            raise ValueError(
                f"`{name}` must be one of {choices}. "
                f"Received: {name}={getattr(callback, name)!r}"
            )
    _check_schedule(callback.schedule)
    frequency = callback.frequency
    if frequency is not None and frequency < 1:
        raise ValueError(
            f"`frequency` must be a number of steps from 1 on. Received: {frequency}"
        )
    for rule in callback.rules:
        if set(rule.settings) != {"sparsity"}:
            raise ValueError(f"A rule for pruning sets `sparsity`. Received: {rule!r}")
        masks.check_sparsity(rule.settings["sparsity"])
    if callback.final is None:
        _check_nothing_else(callback)
    _check_movement(callback)
    if callback.regrow is not None:
        _check_regrowth(callback)
    if callback.rewind is not None:
        _check_rewind(callback)


def check_rewinding(callback, curve, step):
    """Raises if a run cannot go back to the step that it is to go back to.

    Args:
        callback: A `Pruning` with `rewind`.
        curve: The schedule in force.
        step: Step at which the run begins.
    """
    if getattr(callback.model, "optimizer", None) is None:
        raise ValueError(
            f"`rewind` resets `model.optimizer`, and model {callback.model.name!r} has "
            "none. Pass the optimizer to `compile`, or leave out `rewind`."
        )
    if curve.begin <= callback.rewind_step:
        raise ValueError(
            f"The first round ends at step {curve.begin}, which is not after the step "
            "to rewind to. Train longer, or pass a lower `rewind_step`. Received: "
            f"rewind_step={callback.rewind_step}"
        )
    if step > callback.rewind_step and curve(step) < curve.final:
        raise ValueError(
            f"This `fit` starts at step {step}, and what it would rewind to, step "
            f"{callback.rewind_step}, was not kept with the checkpoint. Start the run "
            "again from its first epoch, or go on without `rewind`."
        )


def _check_schedule(schedule):
    if schedule is None:
        return
    if not isinstance(schedule, schedules.Schedule):
        raise TypeError(
            "`schedule` must be one of tfc.schedules. "
            f"Received: schedule={schedule!r} (of type {type(schedule).__name__})"
        )
    initial = masks.check_sparsity(getattr(schedule, "initial", 0.0))
    if masks.check_sparsity(schedule.final) < initial:
        raise ValueError(
            "Sparsity cannot fall: a weight once zero stays zero. "
            f"Received: schedule={schedule!r}"
        )


def _check_nothing_else(callback):
    if callback.rules:
        raise ValueError("`rules` need a `sparsity`; with None zeros are only kept.")
    for name in ("regrow", "rewind"):
        if getattr(callback, name) is not None:
            raise ValueError(
                f"`{name}` needs a `sparsity`; with None zeros are only kept."
            )


def _check_movement(callback):
    schedule = callback.schedule
    at_start = callback.regrow is not None or (schedule and schedule(0) > 0)
    if callback.criterion.reads == "movement" and at_start:
        raise ValueError(
            "score='movement' knows nothing before the first step. Pass a schedule "
            "that starts from 0 or begins later, without `regrow`. Received: "
            f"schedule={schedule!r}, regrow={callback.regrow!r}"
        )


def _check_regrowth(callback):
    if callback.schedule is not None and not isinstance(
        callback.schedule, schedules.Constant
    ):
        raise ValueError(
            "With `regrow` the sparsity is the same throughout. Pass `sparsity` "
            "alone, or a tfc.schedules.Constant. Received: "
            f"schedule={callback.schedule!r}"
        )
    if isinstance(callback.units, patterns.NOfM):
        raise ValueError(
            "`regrow` moves weights, blocks, filters or channels, not N of M. Received:"
            f" pattern={callback.pattern!r}"
        )
    fraction = callback.regrow_fraction
    if not isinstance(fraction, numbers.Real) or not 0 < fraction < 1:
        raise ValueError(
            "`regrow_fraction` must be in (0, 1). Received: "
            f"regrow_fraction={fraction!r}. The papers take 0.3."
        )


def _check_rewind(callback):
    if callback.regrow is not None:
        raise ValueError("`rewind` and `regrow` do not go together: pass one of them.")
    if callback.schedule is not None and not isinstance(
        callback.schedule, (schedules.Iterative, schedules.Constant)
    ):
        raise ValueError(
            "`rewind` goes back whenever the sparsity rises, so it needs a schedule in "
            "rounds: tfc.schedules.Iterative(sparsity, rounds=5, every=...), or "
            "Constant(sparsity, begin=...) for one. Received: "
            f"schedule={callback.schedule!r}"
        )
    step = callback.rewind_step
    if isinstance(step, bool) or not isinstance(step, numbers.Integral) or step < 0:
        raise ValueError(
            "`rewind_step` must be a whole number of steps from 0 on. Received: "
            f"rewind_step={step!r}"
        )
