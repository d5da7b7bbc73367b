"""Table 6: are both halves needed, attention inside a scale and Mamba across scales?

    torchrun --nproc-per-node 2 -m mvar study run mixers

It is 214 minutes of training steps on one core of an AMD EPYC; 12 of its 20 runs took an hour on two cores of a Xeon
with AMX (float32) that ran tests meanwhile.

| method | global attention | intra-scale attention | Mamba | FID |
|---|---|---|---|---|
| VAR | yes | | | 3.55 |
| 1 | | yes | | 7.17 |
| 2 | | | yes | 4.12 |
| M-VAR | | yes | yes | 3.07 |

(256 px, depth 16. The text calls method 2 "intra-scale attention with enhancements"; the table's ticks say
Mamba alone.)
"""

from dataclasses import replace

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import GLOBAL_ATTENTION, M_VAR, VAR, Scale, Study, Variants


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    return {
        VAR: replace(base, **GLOBAL_ATTENTION),
        "intra-scale attention only": replace(base, mamba=False),
        "Mamba only": replace(base, attention="none"),
        M_VAR: base,
    }


STUDY = Study(
    name="mixers",
    title="Which mixers",
    expected="M-VAR first, then VAR, Mamba alone, and last attention that never looks at another scale.",
    variants=_variants,
    baselines=(M_VAR, VAR),
    long=True,
)
