import sys
from pathlib import Path

import pytest
from PIL import Image

from mvar.charts import new_figure
from mvar.training.run import curves
from mvar.training.tokenizer.task import train

PLOT = curves.plot_curves  # before other tests replace it


def test_a_run_is_drawn_whatever_it_logged(tmp_path):
    path = tmp_path / "curves.png"
    for records, panels in (([], None), ([{"step": 1}], None), ([{"step": 1, "loss": 1.0}], {"psnr": ["psnr"]})):
        PLOT(records, path, panels)
        assert not path.exists(), "there is nothing to draw"
    spoilt = [{"step": i, "loss": float("inf") if i == 3 else 1 / i, "used": [0.1 * i, 0.2]} for i in range(1, 5)]
    for records in ([{"step": 1, "loss": 2.0}], spoilt):
        PLOT(records, path)
        with Image.open(path) as image:
            assert image.width > 300


def test_a_run_goes_on_without_matplotlib_and_tensorboard(tokenizer_run, monkeypatch):
    for package in ("matplotlib", "matplotlib.figure", "tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ModuleNotFoundError
    config = tokenizer_run(steps=1)
    with pytest.warns(UserWarning, match="left out") as warned:
        train(config)
    assert [text for text in map(str, (warning.message for warning in warned)) if "left out" in text] == [
        "curves.png: left out without matplotlib; pip install 'mvar-torch[plots]'",
        "TensorBoard events: left out without tensorboard; pip install 'mvar-torch[tensorboard]'",
    ]
    files = {path.name.partition(".")[0] for path in Path(config.out).iterdir()}
    assert "metrics" in files
    assert not files & {"curves", "events"}
    with pytest.raises(ValueError, match=r"^figures need matplotlib; pip install 'mvar-torch\[plots\]'$"):
        new_figure(1, 1)
