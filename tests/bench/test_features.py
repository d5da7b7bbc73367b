import json

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from mvar.bench import features
from mvar.checkpoint.placement import find_dtype
from mvar.cli import main
from mvar.features.inception import SIDE, InceptionV3, published_shapes


@pytest.mark.usefixtures("small_machine")
def test_the_command_reports_every_network_in_the_dtypes_that_pay(tmp_path, capsys):
    dtypes = list(dict.fromkeys(("float32", find_dtype(None, torch.device("cpu")))))
    main(["bench", "features", "--batch-size", "1", "--rounds", "1", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * len(dtypes)
    report = json.loads((tmp_path / "out" / "features.json").read_text())
    found = [(row["network"], row["dtype"], row["sees"]) for row in report["results"]]
    kinds = [("effnet-lite0", 64), ("effnet-lite0", 224), ("inception-v3", 299)]
    assert found == [(name, dtype, sees) for name, sees in kinds for dtype in dtypes]
    for row in report["results"]:
        assert row["images_per_second"] == pytest.approx(1 / row["seconds"][0])
        expected = row["images_per_second"] * row["flop"] / report["matmul_flops"][row["dtype"]]
        assert row["utilisation"] == pytest.approx(expected)
    with Image.open(tmp_path / "out" / "features.png") as chart:
        assert min(chart.size) > 200


def test_the_work_of_inception_is_that_of_the_published_network():
    """5.7 GFLOP of multiplications as its paper has it, counted by torch's own counter."""
    network = InceptionV3({name: torch.ones(shape) for name, shape in published_shapes().items()})
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    assert features._flop(network, image) == counter.get_total_flops() == pytest.approx(2 * 5.7e9, rel=0.02)
