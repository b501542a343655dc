"""The spoken digits: counts, splits, features."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress import datasets
from tfcompress.datasets import HELD_OUT_SPEAKERS, SPEAKERS, spoken_digits


def _rows(x):
    return {clip.tobytes() for clip in x}


@pytest.mark.parametrize(
    "split, train, test", [("official", 2700, 300), ("held_out_speakers", 1800, 1000)]
)
def test_shapes_types_and_counts(split, train, test):
    for part, count in zip(spoken_digits(split), (train, test), strict=True):
        assert part.x.shape == (count, 49, 10, 1)
        assert part.y.shape == (count,)
        assert (part.x.dtype, part.y.dtype) == ("float32", "int32")


@pytest.mark.parametrize("split", ["official", "held_out_speakers"])
def test_all_ten_digits_are_equally_many_in_both_parts(split):
    for part in spoken_digits(split):
        counts = np.bincount(part.y, minlength=10)
        assert counts.tolist() == [len(part.y) // 10] * 10


def test_no_clip_is_in_both_parts_of_the_official_split():
    train, test = spoken_digits("official", normalize=False)
    assert not _rows(train.x) & _rows(test.x)
    assert len(_rows(train.x)) + len(_rows(test.x)) == 3000


def test_held_out_speakers_are_in_the_test_part_only():
    train, test = spoken_digits(normalize=False)
    for name in SPEAKERS:
        whole = spoken_digits("official", speakers=[name], normalize=False)
        clips = _rows(whole[0].x) | _rows(whole[1].x)
        assert len(clips) == 500
        if name in HELD_OUT_SPEAKERS:
            assert clips <= _rows(test.x)
            assert not clips & _rows(train.x)
        else:
            # The official test clips of these four are in neither part.
            assert clips & _rows(train.x) == _rows(whole[0].x)
            assert not clips & _rows(test.x)


def test_speakers_may_be_chosen():
    train, test = spoken_digits("official", speakers=["theo", "lucas"])
    assert (len(train.x), len(test.x)) == (900, 100)
    train, test = spoken_digits("held_out_speakers", speakers=["theo"])
    assert (len(train.x), len(test.x)) == (0, 500)


def test_normalised_features_have_mean_zero_and_variance_one_over_time():
    x = spoken_digits()[0].x
    # 1e-4: float32 sums of 49 frames. The 1e-3 that guards the division makes the
    # deviation of quiet coefficients a little less than 1.
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-4)
    deviation = x.std(axis=1)
    assert deviation.max() < 1 + 1e-4
    assert np.median(deviation) > 0.999
    assert np.all(np.isfinite(x))


def test_normalisation_undoes_a_change_of_level():
    raw = spoken_digits(normalize=False)[0].x[:5, ..., 0]
    normalised = spoken_digits()[0].x[:5, ..., 0]
    by_hand = (raw - raw.mean(1, keepdims=True)) / (raw.std(1, keepdims=True) + 1e-3)
    # 1e-5: the same float32 sums.
    np.testing.assert_allclose(normalised, by_hand, atol=1e-5)
    assert np.abs(raw.mean(axis=1)).max() > 1


def test_parts_unpack_as_inputs_and_labels():
    (x, y), (x_test, y_test) = datasets.spoken_digits()
    assert len(x) == len(y)
    assert len(x_test) == len(y_test)


def test_each_call_gives_arrays_of_its_own():
    first = spoken_digits()[0].x
    before = first[0].copy()
    first[:] = 0
    np.testing.assert_array_equal(spoken_digits()[0].x[0], before)


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'official', 'held_out_speakers'") as caught:
        spoken_digits("train")
    assert "split='train'" in str(caught.value)


def test_an_unknown_speaker_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="george") as caught:
        spoken_digits(speakers=["theo", "thoe"])
    assert "thoe" in str(caught.value)


def test_an_untuned_data_set_has_the_same_elements_and_no_tuner():
    data = tf.data.Dataset.range(7).map(lambda i: (i, i + 1), tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    data = data.with_options(options).batch(2)

    plain = datasets.untuned(data)

    assert plain.options().autotune.enabled is False
    assert plain.options().deterministic is True
    assert data.options().autotune.enabled is not False
    pairs = zip(data.as_numpy_iterator(), plain.as_numpy_iterator(), strict=True)
    for old, new in pairs:
        np.testing.assert_array_equal(old, new)
    assert plain.cardinality() == data.cardinality()


def test_what_is_no_data_set_is_not_untuned():
    with pytest.raises(TypeError, match="from_tensor_slices"):
        datasets.untuned((np.zeros(3), np.zeros(3)))
