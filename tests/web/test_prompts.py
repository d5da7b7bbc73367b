"""Which class a prompt means."""

import pytest

from mvar.web.api.errors import Problem
from mvar.web.api.prompts import find_class

CLASSES = [
    "house",
    "fire truck",
    "truck",
    "T-shirt-top",
    "great white shark",
    "house-user",
    "berry",
    "3",
    "glass",
    "Bus",
    "Café crème",
]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("house", "house"),
        ("HOUSE", "house"),
        ("0", "house"),
        ("a photo of a red house", "house"),
        ("three houses at night, in the style of Hokusai", "house"),
        ("a fire truck", "fire truck"),
        ("two Fire  Trucks!", "fire truck"),
        ("a truck on fire", "truck"),
        ("a T-shirt-top", "T-shirt-top"),
        ("great  white\nshark", "great white shark"),
        ("a bowl of berries", "berry"),
        ("buses", "Bus"),
        ("a glass of water", "glass"),
        ("fire_truck", "fire truck"),
        ("a cafe creme", "Café crème"),
        ("house user icon", "house-user"),
        ("-1", None),
        ("", None),
    ],
)
def test_found(prompt, name):
    found = find_class(prompt, CLASSES)
    assert found == (None if name is None else CLASSES.index(name))


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("a hose", "close: house"),
        ("housing", "close: house"),
        ("trucking", "close: truck"),
        ("zebra", "known: house"),
        ("white shark", "close: great white shark"),
        ("11", "an index from 0 to 10"),
        ("-2", "an index from 0 to 10"),
        ("3", "index 3 or the class named '3'"),
        ("a berry and a glass, or a house and a truck", "several classes"),
        ("9" * 4000, "names no class"),
        ("a b " * 1000, "names no class"),
    ],
)
def test_refused(prompt, part):
    with pytest.raises(Problem) as caught:
        find_class(prompt, CLASSES)
    assert (caught.value.status_code, caught.value.param) == (400, "prompt")
    assert part in caught.value.detail


def test_a_model_without_classes_takes_any_prompt():
    assert find_class("a photo of a house", []) is None
