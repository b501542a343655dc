"""Which groups of channels go: by fraction, by rank, or until a budget is met.

Groups that the same layers make form a *family*; the least of each go first, and one
always stays.

Example:
    ```python
    plan = ChannelPlan(channels, scores, amounts={}, scope="layer", round_to=8)
    removed = plan.removed(0.5)          # bool array, one for each group
    removed = plan.within(lambda removed: plan.macs(removed) <= 10e6)
    ```
"""

import math

import numpy as np

from tfcompress.graph.channels import KEPT

_STEPS = 40


class ChannelPlan:
    """Decides about groups, for every share between nothing and all that can go.

    Args:
        channels: `Channels` of a model.
        scores: Score of each group, NaN where there is none.
        chosen: Dict from the names of producers that may lose channels to a fraction
            of their own, or `None`.
        scope: `"layer"`: the same fraction of each family; `"global"`: the lowest
            scores of all.
        round_to: Channels of a layer stay a multiple of it, as far as it has as many.
        kept: Groups that stay in any case, an iterable.

    Raises:
        ValueError: If nothing can go, because all that is chosen is tied to what is
            not.
    """

    def __init__(self, channels, scores, chosen, scope, round_to, kept=()):
        self.channels = channels
        self.scores = scores
        kept = {KEPT, *map(int, kept)}
        self.families = _families(channels, scores, chosen, round_to, kept)
        if not self.families:
            raise ValueError(_nothing_goes(channels, chosen))
        self.scope = scope
        self._place = np.full(channels.group_count, np.iinfo(int).max)
        self._order = self._ranked() if scope == "global" else None
        # What is read together never goes altogether.
        self._together = [np.unique(channels.groups(a)) for a in channels.arrays()]

    def removed(self, share):
        """Groups that go when `share`, in [0, 1], of what can go does.

        Returns:
            Bool array with an entry for each group.
        """
        found = np.zeros(self.channels.group_count, bool)
        below = None
        if self.scope == "global" and len(self._order):
            below = round(share * len(self._order))
        for family in self.families:
            if family.amount is not None:
                wanted = family.amount * len(family.groups)
            elif below is None:
                wanted = share * len(family.groups)
            else:
                wanted = np.count_nonzero(self._place[family.groups] < below)
            found[family.groups[: family.possible(wanted)]] = True
        for groups in self._together:
            if found[groups].all():
                found[self._whole_unit(groups, found)] = False
        return found

    def _whole_unit(self, groups, removed):
        """The best of these groups, and of its family as many as stay together."""
        best = groups[np.argmax(self.scores[groups])]
        family = next((f for f in self.families if best in f.groups), None)
        if family is None:
            return [best]
        gone = family.groups[removed[family.groups]][::-1]
        # Those that have to stay first; both parts from the best down.
        inside = np.isin(gone, groups)
        return np.concatenate([gone[inside], gone[~inside]])[: family.unit]

    def within(self, fits, steps=_STEPS):
        """The least removal that fits; `None` if even the greatest does not.

        Args:
            fits: Function from a bool array of groups to whether that is enough. What
                fits still does if more goes.
            steps: How often the range is halved.
        """
        low, high = 0.0, 1.0
        best = self.removed(high)
        if fits(self.removed(low)):
            return self.removed(low)
        if not fits(best):
            return None
        for _ in range(steps):
            middle = (low + high) / 2
            found = self.removed(middle)
            if np.array_equal(found, best) and np.array_equal(found, self.removed(low)):
                break
            if np.array_equal(found, best) or fits(found):
                high, best = middle, found
            else:
                low = middle
        return best

    def counter(self, removed):
        """Function from ids to how many of them stay."""
        return lambda ids: int(np.count_nonzero(~removed[self.channels.groups(ids)]))

    def macs(self, removed):
        """Multiply-accumulates of one example; `None` if a shape is not known."""
        return self.channels.macs(self.counter(removed))

    def sizes(self, removed):
        """Pairs of each weight of the model and how many values of it stay."""
        count = self.counter(removed)
        for variable in self.channels.graph.model.weights:
            weight = self.channels.weights.get(id(variable))
            axes = (None,) * len(variable.shape) if weight is None else weight.axes
            yield (
                variable,
                math.prod(
                    size if ids is None else count(ids)
                    for size, ids in zip(variable.shape, axes, strict=True)
                ),
            )

    def _ranked(self):
        """All groups of families without an amount of their own, lowest first."""
        free = [f for f in self.families if f.amount is None]
        if not free:
            return np.array([], int)
        groups = np.concatenate([f.groups for f in free])
        scores = np.concatenate([f.scores for f in free])
        order = groups[np.argsort(scores, kind="stable")]
        self._place[order] = np.arange(len(order))
        return order


class _Family:
    """Groups that the same producers make, lowest score first."""

    def __init__(self, groups, scores, amount, unit):
        order = np.argsort(scores, kind="stable")
        self.groups = groups[order]
        self.scores = scores[order]
        self.amount = amount
        self.unit = unit

    def possible(self, wanted):
        """How many groups can go where `wanted` should: whole units, and not all."""
        total = len(self.groups)
        # A fraction such as 0.3 of 10 is a hair below 3.
        kept = max(total - math.floor(wanted + 1e-9), 1)
        return total - min(math.ceil(kept / self.unit) * self.unit, total)


def _families(channels, scores, chosen, round_to, kept):
    producers = channels.producers
    makers = {}
    for index, producer in enumerate(producers):
        for group in np.unique(channels.groups(producer.ids)):
            if int(group) not in kept:
                makers.setdefault(int(group), []).append(index)
    members = {}
    for group, indices in makers.items():
        members.setdefault(tuple(indices), []).append(group)
    found = []
    for indices, groups in members.items():
        names = [producers[i].name for i in indices]
        if not all(name in chosen for name in names):
            continue
        amounts = {chosen[name]: name for name in names if chosen[name] is not None}
        if len(amounts) > 1:
            (one, first), (other, second) = list(amounts.items())[:2]
            raise ValueError(
                f"Layers {first!r} and {second!r} share their channels, so that the "
                f"same go in both. Received: amounts of {one} and {other} by rules. "
                "Give both the same."
            )
        groups = np.array(groups)
        found.append(
            _Family(
                groups,
                scores[groups],
                next(iter(amounts), None),
                _unit(channels, producers[indices[0]], groups, round_to),
            )
        )
    return found


def _nothing_goes(channels, chosen):
    lines = [
        f"  {name}: tied to {others}" if others else f"  {name}: frozen, or kept"
        for name, others in tied_to_others(channels, chosen).items()
    ]
    return "\n".join(["No channel of the layers that were chosen can go:", *lines])


def tied_to_others(channels, chosen):
    """Dict from chosen producers to those that they are tied to and that were not."""
    groups = {p.name: set(channels.groups(p.ids)) - {KEPT} for p in channels.producers}
    return {
        name: [
            other
            for other, theirs in groups.items()
            if other not in chosen and theirs & groups[name]
        ]
        for name in chosen
    }


def _unit(channels, producer, groups, round_to):
    """How many groups go together so that channels stay a multiple of `round_to`."""
    if not producer.rounded:
        return 1
    ids = channels.groups(producer.ids)
    each = np.count_nonzero(ids == groups[0]) // producer.repeats
    return round_to // math.gcd(round_to, max(each, 1))
