import sys
from pathlib import Path

import pytest

from mvar.charts import can_draw, new_figure
from mvar.training.tokenizer.task import train


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
    with pytest.warns(UserWarning, match=r"^sample\.png: left out without matplotlib"):
        assert not can_draw("sample.png")
