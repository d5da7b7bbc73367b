import json
import tarfile

import pytest

from mvar.data.shards.samples import NO_IMAGE, key_of, parse_label, read_classes, samples


@pytest.fixture
def found(write_tar, tmp_path):
    """What a tar of these members holds: for each sample its key, label and problem."""

    def read(members, stream):
        with open(write_tar(tmp_path / "0.tar", members), "rb") as file:
            rows = list(samples(file, stream=stream))
            for row in rows:
                file.seek(row.offset)
                assert row.problem or file.read(row.size) == (row.content if stream else b"image")
        return [(key_of(row.name), row.label, row.problem) for row in rows]

    return read


@pytest.mark.parametrize("stream", [False, True])
def test_consecutive_members_with_one_key_make_a_sample(found, stream):
    image = b"image"
    members = [
        *[("d/x.PNG", image), ("d/x.txt", b""), ("d/x.CLS", b"dog")],
        *[("a.jpg", image), ("a.mask.png", b""), ("a.meta.json", b"{"), ("a.json", b'{"label": 3}')],
        *[("g.png", image), ("g.cls", b"1"), ("g.png", image), ("g.cls", b"2")],  # two samples of one key
        *[("b.cls", b"x"), ("b.json", b"{"), ("b.webp", image), ("c.png", image), ("d.cls", b"1"), ("e.json", b"{}")],
        *[("odd.png", image), ("odd.json", b"{")],
        *[
            ("._a.png", b""),
            (".thumbs/a.png", b""),
            ("./d/@eaDir/a.jpg", b""),
            ("f.gif", b""),
            ("f.txt", b""),
            ("l.png", "a.png"),
        ],
    ]
    rows = found(members, stream)
    assert rows.pop(-2)[2].startswith("its .json cannot be read (")
    assert rows == [
        *[("d/x", "dog", None), ("a", 3, None), ("g", 1, None), ("g", 2, None)],
        *[("b", "x", None), ("c", None, None), ("d", 1, f"{NO_IMAGE}, only .cls")],
        ("f", None, f"{NO_IMAGE}, only .gif, .txt"),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tar_cut_or_damaged_anywhere_is_named_with_the_place(write_shard, picture, tmp_path, stream):
    shard = write_shard(tmp_path / "0.tar", {f"{i:02d}": {"png": picture(i), "cls": i % 2} for i in range(4)})
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    damaged = [whole[:cut] for cut in range(0, members[-1].offset_data + 100, 256)]
    damaged.append(whole[: members[3].offset] + b"x" * 512 + whole[members[3].offset + 512 :])
    for content in damaged:
        shard.write_bytes(content)
        with (
            open(shard, "rb") as file,
            pytest.raises(ValueError, match=r"^(breaks off near '0\d\.\w+'|is no plain \.tar file) \([^\n]*\)$"),
        ):
            list(samples(file, stream=stream))


# --- labels and classes ---


@pytest.mark.parametrize(
    ("kind", "content", "label"),
    [
        ("cls", b"\xef\xbb\xbf 007\r\n", 7),
        ("cls", b"3d", "3d"),
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
        ("cls", b" \n", "its label is '', neither a number from 0 nor a name"),
        ("cls", b"-1", "its label is -1, neither"),
        ("cls", b"\xff\xfe", r"its \.cls cannot be read \(.*invalid start byte"),
        ("json", b'{"label": true}', "its label is True, neither"),
        ("json", b'{"label": 1.5}', r"its label is 1\.5, neither"),
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
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\r\ncafe\xcc\x81 \r\n")
    assert read_classes(tmp_path, "data") == ["cat", "caf\u00e9"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("classes.txt", b"cat\n\ncat \n", "lists cat twice"),
        ("classes.txt", b"", "is no list of names"),
        ("classes.txt", b"\xff", ".*invalid start byte"),
        ("classes.json", b'["cat", 3]', "is no list of names"),
        ("classes.json", b'{"cat": 0}', "is no list of names"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data: '.*{name}' cannot be used \({reason}"):
        read_classes(tmp_path, "data")
