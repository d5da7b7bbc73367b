"""Table 5: is M-VAR better because it decouples, or because it has more parameters?

    torchrun --nproc-per-node 2 -m mvar study run width-depth

M-VAR-W and M-VAR-D took 58 minutes on two cores of a Xeon with AMX (float32) that trained other models meanwhile; VAR
and M-VAR are runs of the mixers study.

| model | depth | width | parameters | FID | training cost | inference time |
|---|---|---|---|---|---|---|
| VAR | 16 | 1024 | 310 M | 3.55 | 1 | 0.9 |
| M-VAR-W | 16 | 768 | 260 M | 3.20 | 0.9 | 0.9 |
| M-VAR-D | 12 | 1024 | 340 M | 3.19 | 0.8 | 0.7 |
| M-VAR | 16 | 1024 | 450 M | 3.07 | 1 | 1 |

(256 px. The text says of M-VAR-D 0.8 for both columns; the table has 0.7 for inference.)
"""

from dataclasses import replace

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import GLOBAL_ATTENTION, M_VAR, VAR, Scale, Study, Variants


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    return {
        VAR: replace(base, **GLOBAL_ATTENTION),
        "M-VAR-W": replace(base, width=3 * base.width // 4, heads=3 * base.heads // 4),
        "M-VAR-D": replace(base, depth=3 * base.depth // 4, stochastic_depth=None),
        M_VAR: base,
    }


STUDY = Study(
    name="width-depth",
    title="Width and depth",
    expected="All three M-VARs before VAR, though M-VAR-W has fewer parameters than VAR and M-VAR-D about as many.",
    variants=_variants,
    baselines=(M_VAR, VAR),
    long=True,
)
