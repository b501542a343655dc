"""Small real data sets that ship with the package: nothing is downloaded.

Example:
    ```python
    (x, y), (x_test, y_test) = tfc.datasets.spoken_digits(split="held_out_speakers")
    ```
"""

import importlib.resources
from typing import NamedTuple

import numpy as np

HELD_OUT_SPEAKERS = ("theo", "yweweler")
_SPLITS = ("official", "held_out_speakers")


class Examples(NamedTuple):
    """Inputs and integer labels, equally long: `(x, y)`."""

    x: np.ndarray
    y: np.ndarray


def spoken_digits(split="held_out_speakers", *, normalize=True):
    """Spoken digits 0 to 9 by six speakers as MFCCs (Free Spoken Digit Dataset).

    Args:
        split: `"official"` tests on takes 0 to 4 of every speaker and digit (2,700
            train, 300 test clips; good models reach 100 %). `"held_out_speakers"`
            trains on all clips of four speakers and tests on all clips of the two
            others (2,000 train, 1,000 test), which measures what a product needs.
        normalize: Give each coefficient of each clip mean 0 and variance 1 over time
            (cepstral mean and variance normalisation), which removes much of what
            is the speaker's and the microphone's. `False` returns the raw MFCCs.

    Returns:
        `(train, test)`, each an `(x, y)` named tuple: `x` float32 of shape
        `(clips, 49 frames, 10 coefficients, 1)`, `y` int32 of shape `(clips,)`.

    Raises:
        ValueError: If `split` is neither of the two.

    Reference:
        Jakobovski/free-spoken-digit-dataset (GitHub), CC BY-SA 4.0: see
        `tfcompress/data/LICENSE.spoken_digits.md`.
    """
    if split not in _SPLITS:
        raise ValueError(f"`split` must be one of {_SPLITS}. Received: split={split!r}")
    arrays = _load("spoken_digits_mfcc.npz")
    if split == "official":
        parts = [(arrays[f"x_{s}"], arrays[f"y_{s}"]) for s in ("train", "test")]
    else:
        x, y, speaker = (
            np.concatenate([arrays[f"{key}_train"], arrays[f"{key}_test"]])
            for key in ("x", "y", "speaker")
        )
        held_out = np.isin(speaker, HELD_OUT_SPEAKERS)
        parts = [(x[~held_out], y[~held_out]), (x[held_out], y[held_out])]
    train, test = (Examples(_features(x, normalize), y.astype("int32")) for x, y in parts)
    return train, test


def _load(name):
    resource = importlib.resources.files("tfcompress") / "data" / name
    with resource.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def _features(mfcc, normalize):
    x = mfcc.astype("float32")
    if normalize:
        x -= x.mean(axis=1, keepdims=True)
        x /= x.std(axis=1, keepdims=True) + 1e-3
    return x[..., np.newaxis]
