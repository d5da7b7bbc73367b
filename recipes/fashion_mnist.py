"""The packaged Fashion-MNIST model; docs/models/fashion-mnist.md has its commands, from the data to the figures."""

from mvar.data.sets.fashion_mnist import FRAME
from mvar.studies.grid import Grid
from mvar.studies.measuring import Form
from recipes.packaged import Recipe
from recipes.shared import run_cli


class FashionMnist(Recipe):
    """The packaged model `fashion-mnist`."""

    name = "fashion-mnist"
    form = Form(28 + 2 * FRAME, FRAME, grey=True)
    data = "the 60,000 training images of Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence), framed with black"
    most_bytes = 12_000_000
    grid = Grid(
        guidance=[1.5, 2.5, 3.0, 4.0],
        temperature=[1.1, 1.3, 1.4, 1.5],
        last_temperature=0.95,
        top_k=[900, 600, 300],
        top_p=[0.99, 0.97, 0.94],
        least_accuracy=0.925,
        spread_band=(0.9, 1.1),
    )
    judge_epochs = 8


if __name__ == "__main__":
    run_cli("python -m recipes.fashion_mnist", *FashionMnist().commands())
