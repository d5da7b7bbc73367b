import io
import tarfile
from collections import Counter

import pytest

from mvar.data.shards.tar import BrokenTar, samples


def header(name, size, kind=b"0"):
    """One block that claims a size, however absurd."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, content, kind=b"0"):
    return header(name, len(content), kind) + content + b"\0" * (-len(content) % 512)


def pax(**records):
    """The header that changes what the next one says."""
    content = b""
    for key, value in records.items():
        rest = f" {key.replace('_', '.')}={value}\n".encode()
        length = next(n for n in range(len(rest), len(rest) + 9) if n == len(str(n)) + len(rest))
        content += str(length).encode() + rest
    return member("././@PaxHeader", content, b"x")


A = member("a.png", b"A") + member("a.cls", b"1")
END = b"\0" * 1024


@pytest.fixture
def found(tmp_path):
    """What a tar holds: for each sample its key, its image's problem, and its label or why it cannot be read."""

    def read(content, stream):
        path = tmp_path / "0.tar"
        if content is not None:
            path.write_bytes(content)
        rows = []
        with open(path, "rb") as file:
            for sample in samples(file, Counter(), stream=stream):
                try:
                    label = sample.read_label()
                except ValueError as error:
                    label = str(error)
                rows.append((sample.key, sample.problem, label))
        return rows

    return read


@pytest.mark.parametrize("stream", [False, True])
def test_how_members_make_samples(found, stream):
    plain = member("d/x.PNG", b"") + member("d/x.txt", b"") + member("d/x.CLS", b"dog")
    assert found(plain + END, stream) == [("d/x", None, "dog")]
    dotted = b"".join(member(f"a.{part}", b"0") for part in ("v2.png", "v2.cls", "v3.cls", "v3.PNG", ".png"))
    assert found(dotted + END, stream) == [("a.v2", None, 0), ("a.v3", None, 0), ("a.", None, None)]
    fields = (
        A + member("a.mask.png", b"") + member("a.meta.json", b"{") + member("a.v2.png", b"") + member("a.v2.cls", b"2")
    )
    assert found(fields + END, stream) == [("a", None, 1), ("a.v2", None, 2)]
    twice = A + member("a.png", b"") + member("a.cls", b"2")
    assert found(twice + END, stream) == [("a", None, 1), ("a", None, 2)]
    names = "._a.png .thumbs/a.png ./d/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg d/#Recycle/a.png __meta__/a.png d/__x__/a.png"
    hidden = b"".join(member(name, b"") for name in names.split())
    assert found(member("a.png", b"") + hidden + member("a.cls", b"3") + END, stream) == [("a", None, 3)]
    shown = b"".join(member(name, b"") for name in ("./b.png", "../__c.png", "d__/e__.png"))
    assert found(shown + END, stream) == [("./b", None, None), ("../__c", None, None), ("d__/e__", None, None)]


@pytest.mark.parametrize("stream", [False, True])
def test_labels_whose_image_has_another_name_or_kind(found, stream):
    pair = member("d/a.input.png", b"") + member("d/a.target.png", b"") + member("d/a.cls", b"1")
    reason = "has a label but no image of its name, only a.input.png, a.target.png; rename one to match"
    assert found(pair + A + END, stream) == [("d/a", reason, 1), ("a", None, 1)]
    own = member("d/a.v2.png", b"") + member("d/a.v2.cls", b"2")
    assert ("d/a.v2", None, 2) in found(own + pair + END, stream)
    unread = member("b.GIF", b"") + member("b.cls", b"1") + member("c.tiff", b"")
    assert found(A + unread + END, stream)[1:] == [("b", "has a label but no image; convert b.GIF to PNG", 1)]


def test_labels_may_lie_anywhere_in_a_local_tar_only(found):
    late = member("a.png", b"") + member("b.png", b"") + member("b.cls", b"1") + member("a.cls", b"0") + END
    assert found(late, False) == [("a", None, 0), ("b", None, 1)]
    lone = "has a label but no image"
    assert found(late, True) == [("a", None, None), ("b", None, 1), ("a", lone, 0)]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info.tobuf()


def test_links_are_read_where_they_lead(found):
    labels = (
        member("labels/one", b"1") + link("d/a.cls", "../labels/one") + link("d/b.cls", "labels/one", tarfile.LNKTYPE)
    )
    content = link("d/a.png", "b.png") + link("d/b.png", "./c.png") + member("d/c.png", b"C") + labels + END
    assert found(content, False) == [("d/a", None, 1), ("d/b", None, 1), ("d/c", None, None)]
    chain = b"".join(link(f"{i}.png", f"{i + 1}.png") for i in range(3000)) + member("3000.png", b"") + END
    assert all(problem is None for _, problem, _ in found(chain, False))
    assert found(A + link("b.png", "a.png") + END, True)[1] == (
        "b",
        "is a link, which cannot be followed in a stream",
        None,
    )


@pytest.mark.parametrize(
    ("links", "problem"),
    [
        ({"b.png": "c.png", "c.png": "b.png"}, "is a link that goes in a circle"),
        ({"b.png": "/etc/passwd"}, "is a link that leads to '/etc/passwd', which is not in this shard"),
    ],
)
def test_links_that_lead_nowhere(found, links, problem):
    content = A + b"".join(link(*one) for one in links.items()) + END
    assert found(content, False) == [("a", None, 1), *((name[0], problem, None) for name in links)]


def test_a_label_is_read_within_bounds(found, tmp_path):
    large = member("b.png", b"") + member("b.cls", b"1" * 5000)
    said = "its .cls has 5,000 bytes, more than the 4,096 that are read"
    for stream in (False, True):
        assert found(A + large + END, stream)[1:] == [("b", None, said)]
    content = A + member("b.png", b"") + header("b.cls", 2**36)
    with open(tmp_path / "0.tar", "wb") as file:  # really of this size, most of it a hole on the disk
        file.write(content)
        file.truncate(len(content) + 2**36)
    said = "its .cls has 68,719,476,736 bytes, more than the 4,096 that are read"
    assert found(None, False)[1:] == [("b", None, said)]


@pytest.mark.parametrize("stream", [False, True])
def test_members_with_holes_and_without_content_are_problems(found, stream):
    sparse = "its .cls is sparse; pack it without --sparse"
    map_01 = pax(GNU_sparse_map="0,1,8000000000,1", GNU_sparse_size=9 * 10**9, GNU_sparse_name="b.cls")
    assert found(member("b.png", b"") + map_01 + member("b", b"12") + A + END, stream) == [
        ("b", None, sparse),
        ("a", None, 1),
    ]
    map_10 = pax(GNU_sparse_major=1, GNU_sparse_minor=0, GNU_sparse_realsize=9 * 10**9, GNU_sparse_name="b.cls")
    endless = member("b", b"9" * 5000)  # a list of holes without an end
    assert found(member("b.png", b"") + map_10 + endless + A + END, stream) == [("b", None, sparse), ("a", None, 1)]
    for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE):
        assert found(header("b.png", 0, kind) + A + END, stream)[0] == ("b", "is not a regular file", None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pax(size=-2048) + header("b.png", 0), "'b.png' has a negative size"),  # would be read for ever
        (header("long", 2**40, b"x"), "a header claims 1,099,511,627,776 bytes"),
        (pax(path="b.png") * 3000 + member("b", b""), "too many headers of one member"),
        (b"x" * 512, "damaged header"),
        (member("b.png", b"")[:300], "damaged header"),
        (END + b"\0" * 4096 + A, "more follows the end mark: a damaged header, or several tars in one file"),
        (header("b.txt", 2**62) + b"x" * 9000, "unexpected end of data"),  # a stream would be read for ever
        (header("b.cls", 2**80), "unexpected end of data"),
    ],
)
def test_a_tar_that_cannot_be_read_to_its_end(found, content, reason, stream):
    with pytest.raises(BrokenTar, match=f"^{reason}") as caught:
        found(A + content, stream)
    assert caught.value.last == "a.cls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tar_without_samples_says_what_it_holds(found, stream):
    (row,) = found(
        member("d.png", b"", tarfile.DIRTYPE) + member("d/x.tiff", b"") + member("d/.png", b"") + END, stream
    )
    assert row[1].startswith("holds no images: 2 members, none named *.png ")
    assert row[1].endswith(", the first 'd/x.tiff'")
    assert found(END * 10, stream)[0][1] == "holds no images: it is empty"
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w").close()
    assert found(buffer.getvalue(), stream)[0][1] == "holds no images: it is empty"
