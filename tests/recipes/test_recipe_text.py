"""Recipes as text: what is written is what is read, and nothing is guessed."""

import json

import pytest

from tfcompress.recipes import text


@pytest.mark.parametrize(
    "data",
    [
        {"stages": ["fold"]},
        {"a": 1e-3, "b": 1e-05, "c": -0.0, "d": 3, "e": 1.0, "f": 1e300},
        {"words": ["yes", "on", "null", "true", "1e-3", "12", "~", "", "2:4", "^a.*$"]},
        {"many lines": "one\ntwo\n", "colon": "a: b", "hash": "# no", "é": "ü"},
        [None, True, False, [], {}, [[200, 8], [400, 6]]],
        {"date": "2024-01-01", "octal": "0o7", "thousand": "1_000", "hex": "0xff"},
    ],
)
def test_what_is_written_is_read_the_same_with_the_same_types(data):
    found = text.loads(text.dumps(data))
    assert found == data and json.dumps(found) == json.dumps(data)
    # The text is its own normal form, and JSON is YAML.
    assert text.dumps(found) == text.dumps(data)
    assert text.loads(json.dumps(data)) == data


@pytest.mark.parametrize(
    "written, read",
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("+7", 7),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("~", None),
    ],
)
def test_numbers_and_words_are_those_of_json(written, read):
    found = text.loads(f"a: {written}")["a"]
    assert found == read and type(found) is type(read)


@pytest.mark.parametrize(
    "written, message",
    [
        ("a: 1\na: 2", "'a': twice.*line 2"),
        ("a: &x 1\nb: *x", "anchors and aliases.*line 2"),
        ("a: !!python/object/apply:os.getcwd []", "python/object"),
        ("a: [1", "line"),
        ("[1, 2]: 3", "a key is a word"),
        ("a: 1\n b: 2", "line 2"),
        pytest.param("a: " + "[" * 3000, "nested too deeply", id="deep"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
)
def test_what_is_no_plain_data_raises_and_says_where(written, message):
    with pytest.raises(ValueError, match=message):
        text.loads(written, source="'r.yaml'")
    with pytest.raises(ValueError, match="Cannot read 'r.yaml' as YAML"):
        text.loads(written, source="'r.yaml'")
