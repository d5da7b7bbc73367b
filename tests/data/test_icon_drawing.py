import numpy as np
import pytest

from mvar.data.sets.icon_drawing import draw, is_black_on_white, nearest, shape_of
from mvar.data.sets.iconify import Icon


def icon(body, width=16.0, height=16.0, left=0.0, top=0.0):
    return Icon("thing", "a-set", "an-icon", body, left, top, width, height)


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ('<path fill="currentColor" d="M0 0"/>', True),
        ('<path fill="none" stroke="#000" style="fill:white"/>', True),
        ('<mask id="m"><path fill="#FFF"/></mask><path mask="url(#m)"/><path clip-path="url(#m)"/>', True),
        ('<path fill="red"/>', False),
        ('<path fill-opacity="0.5"/>', False),
        ('<path fill="url(#gradient)"/>', False),
        ('<image href="a.png"/>', False),
        ("<path d='" + 6130 * "0" + "'/>", True),
        ("<path d='" + 6140 * "0" + "'/>", False),
        (700 * '<animate attributeName="r"/>' + "<path/>", True),
    ],
)
def test_icons_of_one_colour(body, taken):
    assert is_black_on_white(body) is taken


def test_drawings_without_a_picture_have_no_shape():
    stripes = "".join(f'<path d="M0 {y}h16v1h-16z"/>' for y in range(0, 16, 4))
    assert shape_of(icon(stripes)) is not None
    assert shape_of(icon("")) is None
    assert shape_of(icon('<path d="M0 0h.5v.5h-.5z"/>')) is None
    assert shape_of(icon('<path d="M0 0h16v16h-16z"/>')) is None  # full
    assert shape_of(icon('<path d="M0 0h3v3h-3z"/>')) is None  # no edges to speak of
    assert shape_of(icon(f'<g opacity="0.5">{stripes}</g>')) is None  # grey


def test_an_icon_is_drawn_in_black_within_its_margin():
    whole = draw(icon('<path fill="currentColor" d="M-9 -9h90v90h-90z"/>'), 64)
    assert whole.dtype == np.uint8
    assert (whole == 0).all()  # what lies outside of the box is seen
    for size, edge in ((64, 4), (32, 2), (128, 8)):
        box = draw(icon('<animate attributeName="x"/><path d="M0 0h16v16h-16z"/>'), size)
        assert (box[edge:-edge, edge:-edge] == 0).all()
        assert (box != 255).sum() == (size - 2 * edge) ** 2
    wide = draw(icon('<path d="M-8 4h28v14h-28z"/>', width=28.0, height=14.0, left=-8.0, top=4.0), 64)
    assert (wide[18:46, 4:60] == 0).all()
    assert (wide != 255).sum() == 28 * 56
    assert 0 < draw(icon('<path d="M0 0h16v8.1h-16z"/>'), 64)[32, 32] < 255


def test_shapes_do_not_depend_on_place_and_size():
    small = shape_of(icon('<path d="M1 1h4v2h-2v4h-2z"/>'))
    large = shape_of(icon('<path d="M8 8h8v4h-4v8h-4z"/>', width=24.0, height=24.0))
    other = shape_of(icon('<path d="M8 8h8v12h-4v-8h-4z"/>', width=24.0, height=24.0))
    assert nearest(small[None], large[None])[1] < 0.1
    assert nearest(small[None], other[None])[1] > 0.3


def test_what_is_near_is_the_difference_over_the_mean_ink():
    random = np.random.default_rng(0)
    first = random.integers(0, 4081, (1, 1024)).astype(np.int16)
    drift = random.integers(-700, 701, (60, 1024)) * np.linspace(0, 1, 60)[:, None]
    some = (first + drift).clip(0, 4080).astype(np.int16)
    wide = some.astype(int)
    shares = [[2 * abs(a - b).sum() / (a + b).sum() for b in wide[1::2]] for a in wide[::2]]
    found, least = nearest(some[::2], some[1::2])
    assert found.tolist() == np.argmin(shares, 1).tolist()
    assert np.allclose(least, np.min(shares, 1))
