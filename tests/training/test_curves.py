from PIL import Image

from mvar.training import curves

DRAW = curves.draw_curves  # before other tests replace it


def test_training_stands_beside_validation_and_scales_come_last():
    records = [
        {"step": 1, "loss": 2.0, "lr": 0.1},
        {"step": 2, "val_used": [0.1, 0.2], "val_loss": 1.5, "loss": 1.9},
    ]
    panels = curves.all_panels(records)
    assert panels == {"loss": ["loss", "val_loss"], "lr": ["lr"], "used": ["val_used"]}


def test_a_run_is_drawn_whatever_it_logged(tmp_path):
    short = [{"step": 1, "loss": 2.0}]
    spoilt = [{"step": i, "loss": float("inf") if i == 3 else 1 / i, "used": [0.1 * i, 0.2]} for i in range(1, 5)]
    for records in (short, spoilt):
        DRAW(records, tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            assert image.width > 300
