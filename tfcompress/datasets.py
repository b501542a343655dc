"""Small real data sets that ship with the package, and how to feed any to `fit`.

Nothing is downloaded.

Example:
    ```python
    (x, y), (x_test, y_test) = tfc.datasets.spoken_digits(split="held_out_speakers")
    ```
"""

import importlib.resources
from typing import NamedTuple

import numpy as np
import tensorflow as tf

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
HELD_OUT_SPEAKERS = ("theo", "yweweler")
_SPLITS = ("official", "held_out_speakers")


class Examples(NamedTuple):
    """Inputs and integer labels, equally long: `(x, y)`."""

    x: np.ndarray
    y: np.ndarray


def spoken_digits(split="held_out_speakers", *, speakers=None, normalize=True):
    """Spoken digits 0 to 9 by six speakers as MFCCs (Free Spoken Digit Dataset).

    Args:
        split: `"official"` tests on takes 0 to 4 of every speaker and digit (2,700
            train, 300 test clips; good models reach 100 %). `"held_out_speakers"`
            trains on the official training clips of four speakers and tests on all
            clips of the two others (1,800 train, 1,000 test), which is what a product
            meets.
        speakers: Names of `SPEAKERS`: only their clips are returned; `None` for all.
        normalize: Give each coefficient of each clip mean 0 and variance 1 over time
            (cepstral mean and variance normalisation), which removes much of what
            is the speaker's and the microphone's. `False` returns the raw MFCCs.

    Returns:
        `(train, test)`, each an `(x, y)` named tuple: `x` float32 of shape
        `(clips, 49 frames, 10 coefficients, 1)`, `y` int32 of shape `(clips,)`.

    Raises:
        ValueError: If `split` is neither of the two, or a speaker is unknown.

    Reference:
        Jakobovski/free-spoken-digit-dataset (GitHub), CC BY-SA 4.0: see
        `tfcompress/data/LICENSE.spoken_digits.md`.
    """
    if split not in _SPLITS:
        raise ValueError(f"`split` must be one of {_SPLITS}. Received: split={split!r}")
    if set(speakers or ()) - set(SPEAKERS):
        raise ValueError(f"`speakers` must be of {SPEAKERS}. Received: {speakers!r}")
    arrays = _load("spoken_digits_mfcc.npz")
    train, test = (
        [arrays[f"{key}_{part}"] for key in ("x", "y", "speaker")]
        for part in ("train", "test")
    )
    if split == "held_out_speakers":
        everything = [np.concatenate(pair) for pair in zip(train, test, strict=True)]
        known = sorted(set(SPEAKERS) - set(HELD_OUT_SPEAKERS))
        train, test = _only(train, known), _only(everything, HELD_OUT_SPEAKERS)
    if speakers is not None:
        train, test = _only(train, speakers), _only(test, speakers)
    return tuple(
        Examples(_features(x, normalize), y.astype("int32"))
        for x, y, _ in (train, test)
    )


def _only(part, speakers):
    rows = np.isin(part[2], list(speakers))
    return [array[rows] for array in part]


def untuned(data):
    """The same data set, without the thread by which TensorFlow tunes a pipeline.

    That thread sleeps for 10, 20, 40, ... milliseconds, up to a minute, and an iterator
    that is deleted can have to wait until it wakes. As `fit` makes an iterator for each
    epoch, an epoch then takes up to twice as long as what is computed in it (TensorFlow
    2.21: of epochs of 0.7 seconds every other ended after 1.26).

    Args:
        data: `tf.data.Dataset`. Buffers and parallel calls of `tf.data.AUTOTUNE` are
            chosen once, not followed up: pass numbers where loading is what takes long.

    Returns:
        A `tf.data.Dataset` of the same elements in the same order.

    Raises:
        TypeError: If `data` is no `tf.data.Dataset`.
    """
    if not isinstance(data, tf.data.Dataset):
        raise TypeError(
            f"`data` must be a tf.data.Dataset. Received: {type(data).__name__}. Make "
            "one by tf.data.Dataset.from_tensor_slices((x, y)).batch(32)."
        )
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


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
