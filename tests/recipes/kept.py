"""Whether the stages of a run kept what was made before them."""

import pathlib

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.graph import kernels


def check_kept(recipe, model, folder):
    """Compares the models that the stages of a run left, each with the one before.

    Args:
        recipe: `tfc.Recipe` for networks such as `conv_net`.
        model: What it started from.
        folder: Folder of the run.

    Returns:
        The last model.
    """
    before, pruned, filters, held = model, False, None, []
    for number, stage in enumerate(recipe.stages, start=1):
        path = pathlib.Path(folder, f"{number:02d}_{stage.name}", "model.keras")
        if not path.exists():
            held.append(stage.name)
            continue
        after = keras.models.load_model(path, compile=False)
        if "ChannelPruning" not in held or stage.name != "fit":
            _check_stage(before, after, stage.name, pruned)
        now = tfc.strip(after).get_layer("conv").filters
        if stage.name == "prune_channels" or "ChannelPruning" in held:
            assert now < before.get_layer("conv").filters
        else:
            assert filters in (None, now)
        filters = now
        pruned = pruned or (stage.name == "fit" and "Pruning" in held)
        held = [] if stage.name == "fit" else held
        before = after
    return before


def _check_stage(before, after, stage, pruned):
    old, new = (kernels(tfc.strip(m)) for m in (before, after))
    if stage not in ("factorize", "fold"):
        assert set(old) == set(new)
    for path in set(old) & set(new):
        a, b = old[path].numpy(), new[path].numpy()
        if stage not in ("prune_channels", "factorize"):
            assert a.shape == b.shape, path
        if pruned and a.shape == b.shape:
            assert not np.any(b[a == 0]), f"{stage} filled zeros of {path}"
        elif pruned:
            # Channels went: what is left is what was there, zeros included.
            assert set(b[b != 0]) <= set(a[a != 0]), path
