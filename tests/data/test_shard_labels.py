import json
import re

import pytest

from mvar.data.shards.labels import parse_label, read_classes


def both(label):
    """Text as each kind of file holds it."""
    return ("cls", label.encode()), ("json", json.dumps({"label": label}).encode())


@pytest.mark.parametrize(
    ("kind", "content", "label"),
    [
        ("cls", b"3", 3),
        ("cls", b"\xef\xbb\xbf 007\r\n", 7),
        ("cls", b"+3", 3),
        ("cls", "\u0663".encode(), "\u0663"),  # a digit of another script is a name
        *((kind, text, name) for name in ("3d", "1.2.3", "nano") for kind, text in both(name)),
        ("cls", b" great  dane\n", "great dane"),
        ("cls", b"cafe\xcc\x81", "caf\u00e9"),
        ("json", b'\xef\xbb\xbf{"label": 3, "more": {"label": 4}}', 3),
        ("json", b'{"label": " 3"}', 3),
        ("json", b'{"caption": "a dog"}', None),
        ("json", b"[3]", None),
    ],
)
def test_labels(kind, content, label):
    assert parse_label(kind, content) == label


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("cls", b" \n", "its label is an empty name"),
        *((kind, text, "its label is negative") for kind, text in both("-1")),
        *(
            (kind, text, f"its label is '{re.escape(number)}', neither a whole number nor a name")
            for number in ("1.0", ".5", "1.5E-3", "NaN")
            for kind, text in both(number)
        ),
        ("cls", b"\xff\xfe", r"its \.cls cannot be read \(.*invalid start byte"),
        ("cls", b"x" * 300, "its label is a name of 300 characters, more than 200"),
        ("json", b'{"label": true}', "its label is of the type bool, neither a whole number nor a name"),
        ("json", b'{"label": %s}' % (b"[" * 900 + b"]" * 900), "its label is of the type list"),
        ("json", b'{"label": "\\ud800"}', r"its label is no text: '\\ud800'"),
        ("json", b'{"label": 1, "label": 2}', r"its \.json cannot be read \(it has two labels\)"),
        ("json", b'{"label": %s}' % (b"9" * 5000), r"its \.json cannot be read \("),
        ("json", b"{", r"its \.json cannot be read \("),
    ],
)
def test_what_is_no_label(kind, content, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        parse_label(kind, content)


def test_listed_names_are_clean(tmp_path):
    assert read_classes(tmp_path, "data") is None
    (tmp_path / "classes.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(["b ", "a, or  c"]).encode())
    assert read_classes(tmp_path, "data") == ["b", "a, or c"]
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\xef\xbb\xbf\r\ncafe\xcc\x81 \r\n")
    assert read_classes(tmp_path, "data") == ["cat", "caf\u00e9"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("classes.txt", b"cat\n\ncat \n", "names 1 and 2 are both 'cat'"),
        ("classes.txt", b"\xc3\xa9\ne\xcc\x81", "names 1 and 2 are both '\u00e9'"),
        ("classes.txt", b"", "is no list of names"),
        ("classes.json", b'["cat", " "]', "name 2 is an empty name"),
        ("classes.json", b'["\\udfff"]', "name 1 is no text"),
        ("classes.json", b'["cat", 3]', "is no list of names"),
        ("classes.json", b'{"cat": 0}', "is no list of names"),
        ("classes.json", b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data: '.*{name}' cannot be used \({reason}"):
        read_classes(tmp_path, "data")


def test_a_list_that_is_no_file_of_sensible_size_is_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.symlink_to("nowhere")
    with pytest.raises(ValueError, match="is a broken link"):
        read_classes(tmp_path, "data")
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"has 1,099,511,627,776 bytes, more than 16,777,216\); fix it"):
        read_classes(tmp_path, "data")
