"""Scaling: how the validation loss falls with parameters and compute, and where the curves of M-VAR and VAR meet.

    torchrun --nproc-per-node 2 -m mvar study run scaling

Table 2 (256 px, FID): at equal depth M-VAR is ahead of VAR everywhere, and the distance shrinks as both grow.

| depth | 12 | 16 | 20 | 24 |
|---|---|---|---|---|
| VAR | 5.81 | 3.55 | 2.95 | 2.33 |
| M-VAR | 4.19 | 3.07 | 2.41 | 1.93 |
"""

from dataclasses import replace

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import GLOBAL_ATTENTION, M_VAR, VAR, Scale, Study, Variants


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    head = base.width // base.heads
    sizes = {
        f"d{depth}-w{width}": replace(base, depth=depth, width=width, heads=width // head, stochastic_depth=None)
        for depth, width in scale.sizes
    }
    return {
        f"{kind} {name}": replace(model, **changes)
        for name, model in sizes.items()
        for kind, changes in ((VAR, GLOBAL_ATTENTION), (M_VAR, {}))
    }


STUDY = Study(
    name="scaling",
    title="Scaling",
    expected="Straight lines on logarithmic axes, M-VAR's below VAR's at equal compute.",
    variants=_variants,
    seeds=1,
    data_sets=1,
)
