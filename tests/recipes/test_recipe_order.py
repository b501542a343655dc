"""Orders of stages: refused with one that works, or all that was made is kept."""

import itertools
import random

import keras
import numpy as np
import pytest
from networks import compiled, conv_net, image_data
from recipes.kept import check_kept

import tfcompress as tfc
from tfcompress.graph import find_layers
from tfcompress.layers import FakeQuant

_FIT = {"fit": {"epochs": 1, "learning_rate": 0.005}}
# What may come in any order: name -> stages.
PARTS = {
    "cut": [{"prune_channels": {"amount": 0.25}}],
    "factorize": [{"factorize": {"include": "hidden", "rank": 3}}],
    "prune": [{"Pruning": {"sparsity": 0.6, "skip_small_and_last": False}}, _FIT],
    "distill": ["distill", _FIT],
    "cluster": [{"cluster": {"clusters": 6}}, _FIT],
    "quantize": ["quantize_aware", _FIT],
    "fold": ["fold"],
    "shrink": [{"ChannelPruning": {"amount": 0.25}}, _FIT],
}
# (what, cannot follow).
_LOSES = {
    *itertools.product(("cut", "factorize", "fold", "shrink"), ("cluster", "quantize")),
    ("cluster", "quantize"),
    *itertools.product(("factorize", "shrink"), ("prune",)),
}


def _stages(parts):
    return [stage for part in parts for stage in PARTS[part]]


def _orders(count, seed):
    """Random subsets of the parts in random orders."""
    draw = random.Random(seed)
    orders = []
    while len(orders) < count:
        order = draw.sample(sorted(PARTS), draw.randint(2, len(PARTS)))
        if order not in orders:
            orders.append(order)
    return orders


@pytest.mark.parametrize(
    "size", [1, 2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))]
)
def test_every_order_is_taken_or_refused_with_one_that_works(size):
    orders = list(itertools.permutations(PARTS, size))
    # All of up to four stages, some of the 6,720 of five.
    for parts in random.Random(0).sample(orders, min(len(orders), 1680)):
        lost = [
            (late, early)
            for early, late in itertools.combinations(parts, 2)
            if (late, early) in _LOSES
        ]
        if not lost:
            tfc.Recipe(_stages(parts))
            continue
        with pytest.raises(ValueError, match="An order that works") as err:
            tfc.Recipe(_stages(parts))
        names = str(err.value).rpartition("An order that works: ")[2].rstrip(".")
        better = names.split(", ")
        settings = {
            next(iter(s)): s for part in parts for s in PARTS[part] if type(s) is dict
        }
        recipe = tfc.Recipe([settings.get(name, name) for name in better])
        assert sorted(better) == sorted(
            s if isinstance(s, str) else next(iter(s)) for s in _stages(parts)
        )
        assert recipe is not None


@pytest.mark.parametrize(
    "stages, message",
    [
        (["quantize_aware", "quantize_aware"], "Stage 2.*once only"),
        ([tfc.Pruning(), tfc.ChannelPruning(0.5), _FIT], "cannot share a `fit`"),
        ([tfc.Pruning(), tfc.Pruning(0.9), _FIT], "`Pruning` twice for one `fit`"),
        (["distill", "distill"], "`distill` twice"),
    ],
)
def test_what_makes_no_sense_in_any_order_is_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        tfc.Recipe(stages)


def test_the_model_that_a_recipe_starts_from_counts(tmp_path):
    x, y = image_data(64)
    model = compiled(conv_net())
    pruned = keras.models.clone_model(model)
    kernel = pruned.get_layer("hidden").kernel
    kernel.assign(kernel * (np.arange(8) % 2))
    recipe = tfc.Recipe([PARTS["factorize"][0]])
    with pytest.raises(ValueError, match="starts from has zeros"):
        recipe.apply(pruned)
    with pytest.raises(ValueError, match="starts from has zeros"):
        recipe.run(compiled(pruned), (x, y), tmp_path / "out")
    qat = compiled(tfc.quantize_aware(model, calibration_data=x))
    with pytest.raises(ValueError, match="starts from has quantizers"):
        recipe.apply(qat)
    with pytest.raises(ValueError, match="Stage 1, `quantize_aware`.*once only"):
        tfc.Recipe(["quantize_aware"]).apply(qat)
    schedule = tfc.Recipe([{"QuantizationSchedule": {"start_step": 1}}, _FIT])
    with pytest.raises(ValueError, match="no quantizers in that `fit`"):
        schedule.run(model, (x, y), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _check_order(parts, folder):
    x, y = image_data(64)
    recipe = tfc.Recipe(_stages(parts))
    model = compiled(conv_net())
    result = recipe.run(model, (x, y), folder)
    last = check_kept(recipe, model, folder)
    assert bool(find_layers(last, FakeQuant)) == ("quantize" in parts)
    file = result.measurements[1]
    if "prune" in parts:
        # Whole kernels: of 0.6, and what rounding to 8 bits adds.
        total = sum(n for _, n, _ in file.kernels)
        assert sum(n * s for _, n, s in file.kernels) / total > 0.55
    if "cluster" in parts:
        # An integer file has a scale for each output channel.
        layers = file.layers if "quantize" in parts else tfc.measure(last).layers
        per = "channel_values" if "quantize" in parts else "distinct_values"
        assert all(getattr(layer, per) <= 6 for layer in layers)
    assert file.name == ("int8" if "quantize" in parts else "float32")


def _accepted(orders):
    return [
        order
        for order in orders
        if not any(pair[::-1] in _LOSES for pair in itertools.combinations(order, 2))
    ]


# By default one such order is looked at in `test_recipe_run.py`.
@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, id="-".join(order))
        for order in [
            ["prune", "cut", "distill", "quantize"],
            ["shrink", "factorize", "prune", "distill", "fold", "quantize"],
            ["cut", "prune", "cluster", "distill", "quantize"],
            ["cluster", "prune", "quantize", "distill"],
            *_accepted(_orders(150, seed=1))[:5],
        ]
    ],
)
def test_what_earlier_stages_made_is_kept_in_any_order(order, tmp_path):
    _check_order(order, tmp_path / "out")
