from PIL import Image

from mvar.training.run import curves

DRAW = curves.draw_curves  # before other tests replace it


def test_what_belongs_together_stands_together_the_loss_first_and_scales_last():
    records = [
        {"step": 1, "lr": 0.1, "grad_norm": 2.0, "loss": 2.0, "score_real": 0.1, "score_fake": 0.2},
        {"step": 2, "val_used": [0.1, 0.2], "val_loss": 1.5, "loss": 1.9},
    ]
    assert list(curves.all_panels(records).items()) == [
        ("loss", ["loss", "val_loss"]),
        ("lr", ["lr"]),
        ("grad_norm", ["grad_norm"]),
        ("score", ["score_real", "score_fake"]),
        ("used", ["val_used"]),
    ]


def test_a_run_is_drawn_whatever_it_logged(tmp_path):
    path = tmp_path / "curves.png"
    for records, panels in (([], None), ([{"step": 1}], None), ([{"step": 1, "loss": 1.0}], {"psnr": ["psnr"]})):
        DRAW(records, path, panels)
        assert not path.exists(), "there is nothing to draw"
    spoilt = [{"step": i, "loss": float("inf") if i == 3 else 1 / i, "used": [0.1 * i, 0.2]} for i in range(1, 5)]
    for records in ([{"step": 1, "loss": 2.0}], spoilt):
        DRAW(records, path)
        with Image.open(path) as image:
            assert image.width > 300
