"""The packaged Fashion-MNIST model: all commands from the original data to the figures in its documentation.

    mvar data fashion-mnist --out data/fashion-mnist
    mvar train tokenizer --preset tiny32 --data data/fashion-mnist --out runs/tokenizer
    mvar train generator --preset tiny32 --data data/fashion-mnist --tokenizer runs/tokenizer --out runs/generator
    python -m recipes.fashion_mnist judge --data data/fashion-mnist --out runs/judge.safetensors
    python -m recipes.fashion_mnist sweep --model runs/generator --data data/fashion-mnist \
        --judge runs/judge.safetensors --out docs/images/fashion-mnist
    python -m recipes.fashion_mnist package --model runs/generator --tokenizer-run runs/tokenizer \
        --sweep docs/images/fashion-mnist/sweep.json --out src/mvar/models/fashion-mnist
    python -m recipes.fashion_mnist measure --model fashion-mnist --data data/fashion-mnist \
        --judge runs/judge.safetensors --tokenizer-run runs/tokenizer --generator-run runs/generator \
        --out docs/images/fashion-mnist --sheet docs/images/fashion-mnist-samples.png
    python -m recipes.fashion_mnist page

What ships came about in stages, which its page tells.
"""

from mvar.data.sets.fashion_mnist import FRAME
from mvar.studies.measuring import Form
from mvar.studies.sweep import Grid
from recipes.cli import run_cli
from recipes.packaged import Recipe


class FashionMnist(Recipe):
    """The packaged model `fashion-mnist`."""

    name = "fashion-mnist"
    form = Form(28 + 2 * FRAME, FRAME, grey=True)
    data = "the 60,000 training images of Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence), framed with black"
    most_bytes = 12_000_000
    grid = Grid(
        guidance=(1.5, 2.5, 3.0, 4.0),
        temperature=(1.1, 1.3, 1.4, 1.5),
        last_temperature=0.95,
        top_k=(900, 600, 300),
        top_p=(0.99, 0.97, 0.94),
        least_accuracy=0.925,
        spread_band=(0.9, 1.1),
    )
    judge_epochs = 8


if __name__ == "__main__":
    run_cli(FashionMnist, "python -m recipes.fashion_mnist")
