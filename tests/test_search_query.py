"""Queries as one types them, the arithmetic of their terms, and vectors that come as files."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.errors import DataError
from fusemix.search.query import ItemId, Term, combine, parse, unit


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a few files of any content."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "night.png", "my photo.jpg", "notes", "it's.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def text(words, modality=None, weight=1.0):
    return Term(words, modality, weight)


def file(name, weight=1.0, modality=None):
    return Term(Path(name), modality, weight)


def item(name, weight=1.0, modality=None):
    return Term(ItemId(name, modality), None, weight)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("red shoe", [text("red shoe")]),
        ("snow", [text("snow")]),
        ("it's snowing", [text("it's snowing")]),
        ("'tis the season", [text("'tis the season")]),
        ("the 'best' day", [text("the 'best' day")]),
        ("rock 'n' roll", [text("rock 'n' roll")]),
        ('a 5" screen', [text('a 5" screen')]),
        ("red - blue", [text("red - blue")]),
        ("t-shirt + jeans", [text("t-shirt + jeans")]),
        ("-5 degrees", [text("-5 degrees")]),
        ("2 * night", [text("2 * night")]),
        ("version 3.5", [text("version 3.5")]),
        ("3.5", [text("3.5")]),
        ("what is a photo.jpg", [text("what is a photo.jpg")]),
        ("photo.jpg at night", [text("photo.jpg at night")]),
        ("+", [text("+")]),
        ("'it's'", [text("'it's'")]),
        ("'hello world'", [text("hello world")]),
        ('"it\'s snowing"', [text("it's snowing")]),
        ("photo.jpg", [file("photo.jpg")]),
        (" photo.jpg ", [file("photo.jpg")]),
        ("notes", [file("notes")]),
        ("my photo.jpg", [file("my photo.jpg")]),
        ("it's.jpg", [file("it's.jpg")]),
        ("none.jpg", [file("none.jpg")]),
        ("NONE.WAV", [file("NONE.WAV")]),
        ("id:3", [item("3")]),
        ("id:my photo.jpg", [item("my photo.jpg")]),
        ("  id:'a - b' ", [item("a - b")]),
        ("id:\"it's\" - 2 * id:'my photo.jpg'", [item("it's"), item("my photo.jpg", -2)]),
        ("id:it's", [item("it's")]),
        ("photo.jpg - 'day' + 'night'", [file("photo.jpg"), text("day", None, -1), text("night")]),
        ("photo.jpg -'day' +\"night\"", [file("photo.jpg"), text("day", None, -1), text("night")]),
        ("'king' - 'man' + 'woman'", [text("king"), text("man", None, -1), text("woman")]),
        ("2 * 'night'", [text("night", None, 2)]),
        ("2*'night' - .5 * photo.jpg", [text("night", None, 2), file("photo.jpg", -0.5)]),
        ("'a' - 0.25 * id:7", [text("a"), item("7", -0.25)]),
        ("- 'day'", [text("day", None, -1)]),
        ("- photo.jpg", [file("photo.jpg", -1)]),
        ("2 * photo.jpg", [file("photo.jpg", 2)]),
        ("id:3 - id:4", [item("3"), item("4", -1)]),
        ("'red - blue' + night.png", [text("red - blue"), file("night.png")]),
        ("'photo.jpg' + 'id:3'", [text("photo.jpg"), text("id:3")]),
        ("none.jpg + 'snow'", [file("none.jpg"), text("snow")]),
    ],
)
def test_what_one_types_is_read_as_it_is_meant(query, expected):
    assert parse(query) == expected


@pytest.mark.parametrize(
    ("query", "modality", "expected"),
    [
        ("red shoe", "caption", [text("red shoe", "caption")]),
        ("none.jpg", "caption", [text("none.jpg", "caption")]),
        ("none.dcm", "scan", [text("none.dcm", "scan")]),
        ("photo.jpg", "scan", [file("photo.jpg", 1, "scan")]),
        ("notes", "scan", [file("notes", 1, "scan")]),
        ("id:3", "image", [item("3", 1, "image")]),
        (" id:3", "image", [item("3", 1, "image")]),
        ("'day' - photo.jpg", "text", [text("day", "text"), file("photo.jpg", -1, "text")]),
    ],
)
def test_a_modality_says_what_names_do_not_tell(query, modality, expected):
    assert parse(query, modality) == expected


@pytest.mark.parametrize("query", ["", "  ", "\n", "''", "' ' + 'night'", "photo.jpg - ''"])
def test_an_empty_query_is_told(query):
    with pytest.raises(DataError, match="nothing to search for: the query is empty"):
        parse(query)


@pytest.mark.parametrize(
    ("query", "word"), [("photo.jpg - day", "day"), ("'day' + night", "night"), ("id:3 + a", "a"), ("id:a - b", "b")]
)
def test_words_without_quotes_in_arithmetic_are_told(query, word):
    with pytest.raises(
        DataError, match=f"'{word}' in the query: no such file; words in arithmetic stand in quotes, as"
    ):
        parse(query)


@given(st.text(max_size=30), st.none() | st.just("text"))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_query_or_a_mistake_that_is_told(query, modality):
    try:
        terms = parse(query, modality)
    except DataError:
        return
    assert terms and all(isinstance(term, Term) for term in terms)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["+", "-"]),
            st.integers(1, 99) | st.sampled_from([0.5, 2.25]),
            st.text("ab '+-*:.", min_size=1).filter(str.strip),
        ),
        min_size=2,
        max_size=5,
    )
)
@settings(max_examples=50, deadline=None)
def test_quoted_terms_come_back_as_they_were_written(terms):
    query = " ".join(f'{sign} {number} * "{words}"' for sign, number, words in terms)
    assert parse(query) == [text(words, None, number if sign == "+" else -number) for sign, number, words in terms]


def test_a_file_of_a_vector_is_read(here):
    np.save(here / "v.npy", np.arange(4.0))
    (term,) = parse("v.npy")
    assert term.modality is None and term.value.tolist() == [0, 1, 2, 3]
    (latent,) = parse("v.npy", "image")
    assert latent.modality == "image" and latent.value.tolist() == [0, 1, 2, 3]
    both = parse("'night' - v.npy")
    assert both[0] == text("night") and both[1].weight == -1 and both[1].value.shape == (4,)


class Evil:
    def __reduce__(self):
        return Path.write_text, (Path("ran"), "")


def test_a_file_that_is_no_vector_is_told_and_never_unpickled(here):
    (here / "pickled.npy").write_bytes(pickle.dumps(Evil()))
    np.save(here / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(here / "zip.npy", "w") as packed:
        packed.writestr("a.npy", "x")
    (here / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    whole = here / "short.npy"
    np.save(whole, np.zeros(100))
    whole.write_bytes(whole.read_bytes()[:-8])
    (here / "empty.npy").touch()
    for name in ("pickled", "objects", "zip", "cut", "short", "empty"):
        with pytest.raises(DataError, match=rf"^{name}.npy: no array of numbers \("):
            parse(f"{name}.npy")
    assert not (here / "ran").exists()
    with pytest.raises(DataError, match="^none.npy: no such file$"):
        parse("none.npy")


def vectors(count, width=5):
    drawn = np.random.default_rng(0).normal(size=(count, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_terms_are_added_with_their_weights_and_the_sum_has_unit_norm():
    parts, weights = vectors(3), [1.0, -0.5, 2.0]
    slow = sum(weight * part.astype(np.float64) for weight, part in zip(weights, parts, strict=True))
    found = combine(weights, list(parts), len(parts[0]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow / np.linalg.norm(slow), rtol=1e-6)
    np.testing.assert_allclose(combine([1e-9], [parts[0]], len(parts[0])), parts[0], rtol=1e-6)
    np.testing.assert_allclose(combine([-1e9], [parts[0]], len(parts[0])), -parts[0], rtol=1e-6)


def test_terms_that_cancel_are_told_whatever_their_weights():
    one = vectors(1)[0]
    close = one + np.float32(1e-8) * np.arange(5, dtype=np.float32)
    for weights, parts in (
        ([1, -1], [one, one]),
        ([0], [one]),
        ([1e9, -1e9], [one, close]),
        ([1e-9, -1e-9], [one, one]),
    ):
        with pytest.raises(DataError, match="the terms of the query cancel each other, so nothing is left"):
            combine(weights, parts, 2)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(DataError, match=f"a term of the query has the weight {wrong}"):
            combine([1.0, wrong], [one, one], 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_a_vector_gets_unit_norm(dtype, shape):
    found = unit(np.array([3, 0, 4, 0], dtype).reshape(shape), 4)
    np.testing.assert_allclose(found, [0.6, 0, 0.8, 0], rtol=1e-6)
    assert found.dtype == np.float32 and found.shape == (4,)


def test_very_large_and_very_small_numbers_have_a_direction_too():
    for size in (1e30, 1e-30):
        np.testing.assert_allclose(unit(np.array([3 * size, 4 * size]), 2), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.ones(5), r"wanted 4 numbers, got float64 of shape \(5,\); of a latent say the modality \(--from\)"),
        (np.ones((2, 2)), r"wanted 4 numbers, got float64 of shape \(2, 2\)"),
        (np.ones((4, 1)), r"got float64 of shape \(4, 1\)"),
        (np.ones((3, 4)), r"got float64 of shape \(3, 4\)"),
        (np.float64(3), r"got float64 of shape \(\)"),
        (np.array(list("abcd")), r"got <U1 of shape \(4,\)"),
        (np.array([None] * 4), r"got object of shape"),
        (np.ones(4, bool), "got bool of shape"),
        (np.ones(4, complex), "got complex128 of shape"),
        (np.array([1, 2, np.nan, 4]), "the numbers must be finite"),
        (np.array([1, 2, -np.inf, 4]), "the numbers must be finite"),
        (np.full(4, 1e300), "the numbers must be finite"),
        (np.zeros(4), "the numbers must not all be zero"),
    ],
)
def test_what_is_no_vector_of_the_space_is_told(vector, message):
    with pytest.raises(DataError, match=f"^a vector of the shared space: .*{message}"):
        unit(vector, 4)
