"""Commands that measure speed and memory.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from typing import Literal


def bench_train(
    preset: str = "d16",
    batch_size: int = 2,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    steps: int = 3,
    out: str | None = None,
) -> None:
    """Measure a generator's training step on the CPU: tokens a second and peak memory, also of VAR.

    Args:
        preset: of the generator, as of train generator.
        batch_size: images of a step.
        dtype: of the matrix products.
        steps: timed steps of each case, after one to warm up.
        out: folder to write train.json and train.png to.
    """
    from mvar.bench.training import bench, table

    print(table(bench(preset, batch_size, dtype, steps, out)))
