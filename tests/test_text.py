import pytest

from mvar.text import Names, clean, counted, join_names, shown, some, split_names


@pytest.mark.parametrize("name", ["\ufeffcafé", "cafe\u0301", " café ", "café\n"])
def test_equal_names_are_one(name):
    assert clean(name) == "café"
    assert clean("polar\u00a0 \t bear") == "polar bear"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("a\rb", r"a\rb"),
        ("\udcff.png", r"\udcff.png"),
        ("two\nlines", "two\nlines"),
        ("日本語 é", "日本語 é"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, safe):
    assert shown(text) == safe


def test_counts_have_their_plural():
    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert counted(2, "class", "classes") == "2 classes"
    assert some(["a", "b"], 2) == "a, b"
    assert some([str(i) for i in range(1007)], 3) == "0, 1, 2 and 1,004 more"


def test_names_are_found_as_they_are_written_first_then_without_case():
    names = Names(["Cat", "cat", " polar bear\ufeff", "cafe\u0301", "STRASSE"])
    found = [names.find(name) for name in ("cat", "CAT", "Polar  Bear", "caf\u00e9", "stra\u00dfe", "bear", "")]
    assert found == [[1], [0, 1], [2], [3], [4], [], []]


@pytest.mark.parametrize("names", [["Cats, dogs", 'a "b"', "c"], [], ["-1", "0"]])
def test_names_between_commas(names):
    assert split_names(join_names(names), "labels") == names
    assert split_names("a, b,,", "labels") == ["a", "b"]
    with pytest.raises(ValueError, match=r"^labels = '\"a': close each name in double quotes, with a comma after it$"):
        split_names('"a', "labels")
