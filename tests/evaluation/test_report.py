import pytest

from mvar.evaluation.report import Report, Value, compare, read, table, write


def report(value=3.0, **protocol):
    return Report(
        protocol={"network": "inception-v3", "samples": 50_000} | protocol,
        samples={"name": "drawn", "guidance": 1.5},
        floor={"name": "training images", "images": 50_000},
        metrics={
            "FID": Value(value=value, low=value - 0.1, high=value + 0.1, floor=1.2),
            "IS": Value(value=290.0, better="higher"),
        },
        classes=[],
        notes=["N is small"],
        speed={"images_per_second": 10.0, "seconds": 31.0, "peak_bytes": 2e9},
        machine={"cores": 2},
    )


def test_it_is_read_as_it_was_written(tmp_path):
    write(report(), tmp_path)
    assert read(tmp_path) == read(tmp_path / "report.json") == report()


def test_the_text_tells_protocol_value_interval_floor_and_notes():
    text = table(report())
    for part in ("inception-v3", "guidance  1.5", "training images", "2.9 .. 3.1", "1.2", "note: N is small"):
        assert part in text
    assert "31 s, 2 GB; 10 samples per second" in text


def test_one_protocol_makes_one_table_with_floor_protocol_and_notes():
    lines = compare({"a": report(2.0, reference="val"), "b": report(3.0, reference="another name of it")}).splitlines()
    assert lines == [
        "|  | FID ↓ | IS ↑ |",
        "| --- | ---: | ---: |",
        "| a | 2 (1.9–2.1) | 290 |",
        "| b | 3 (2.9–3.1) | 290 |",
        "| 50,000 real images: training images | 1.2 |  |",
        "",
        "Protocol: network inception-v3, samples 50000, reference val.",
        "",
        "Note on a: N is small.",
        "",
        "Note on b: N is small.",
    ]


@pytest.mark.parametrize("other", [{"samples": 10_000}, {"network": "effnet-lite0"}, {"dtype": "bfloat16"}])
def test_different_protocols_make_none(other):
    (field,) = other
    with pytest.raises(ValueError, match=f"{field} = .* in a, {other[field]} in b: different protocols, no table"):
        compare({"a": report(), "b": report(**other)})


def test_what_is_no_report_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"metrics": 3}')
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"report = .*: is no report\.json of mvar evaluate"):
            read(path)
