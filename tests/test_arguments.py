"""Words of the command line that name modalities."""

from types import SimpleNamespace

import pytest

from fusemix.arguments import modalities, named
from fusemix.errors import DataError


def context(*words):
    """What typer gives a verb: its own options, and the words that it did not know."""
    return SimpleNamespace(args=list(words), command=SimpleNamespace(params=[SimpleNamespace(opts=["--seed", "-s"])]))


def test_any_word_is_a_modality_with_a_space_or_an_equals_sign():
    found = modalities(context("--sound", "wav=a", "--smell=nose=b"), ["photo=c"], ["title=d"])
    assert found == {"image": "photo=c", "sound": "wav=a", "smell": "nose=b", "text": "title=d"}


def test_a_word_that_belongs_to_another_is_told_of_quotes():
    for words in (("shoe",), ("--sound", "wav=a", "wav=b")):
        with pytest.raises(
            DataError, match=f"'{words[-1]}' is one word too many: what belongs together goes in quotes"
        ):
            modalities(context(*words), None, None)


@pytest.mark.parametrize("words", [("--sound",), ("--sound", "--seed"), ("--sound=",)])
def test_a_word_that_names_nothing_is_refused(words):
    with pytest.raises(DataError, match="is no option of this command; found: seed, s"):
        modalities(context(*words), None, None)


def test_a_modality_that_is_given_twice_is_refused():
    with pytest.raises(DataError, match="--sound a=b and --sound c=d: 'sound' is given twice"):
        modalities(context("--sound", "a=b", "--sound", "c=d"), None, None)


def test_name_and_value_are_parted_at_the_first_equals_sign():
    assert named("decode", ["image=my.py:a=b"]) == {"image": "my.py:a=b"} and named("decode", None) == {}
    with pytest.raises(DataError, match="--decode image: wanted NAME=VALUE"):
        named("decode", ["image"])
