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


def test_points_are_seen_and_all_panels_have_the_same_steps(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    many = [{"step": i, "loss": 1 / i, **dict.fromkeys("abcd", i)} for i in range(1, 100)]
    DRAW([*many, {"step": 100, "val_loss": 0.5}], tmp_path / "curves.png")
    loss, *others = figures[0].axes[:5]
    assert [(line.get_label(), line.get_marker() in ("", "None")) for line in loss.lines][:2] == [
        ("loss", True), ("val_loss", False),
    ]  # fmt: skip
    assert {axes.get_xlim() for axes in [loss, *others]} == {loss.get_xlim()}
    assert loss.get_xlim()[1] > 100
    # The lowest panel of each column says what step it is.
    assert [axes.get_xlabel() for axes in figures[0].axes[:5]] == ["", "step", "step", "step", "step"]


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
