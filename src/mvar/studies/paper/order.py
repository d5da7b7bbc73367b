"""Left open by the paper: which mixer comes first in a block, and must every block have a Mamba?

    torchrun --nproc-per-node 2 -m mvar study run order

It took 72 minutes on two cores of an AMD EPYC that ran tests meanwhile.

The paper puts attention inside a scale before Mamba, in every block, and shows no other order.
"""

from dataclasses import replace

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import M_VAR, Scale, Study, Variants


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    return {
        M_VAR: base,
        "Mamba first": replace(base, order="mamba-first"),
        "in parallel": replace(base, order="parallel"),
        "Mamba in every second block": replace(base, mamba=[i % 2 == 0 for i in range(base.depth)]),
    }


STUDY = Study(
    name="order",
    title="The order of a block's mixers",
    expected="Little difference between orders. Half of the Mambas may lose little; they have fewer parameters and "
    "take less time, so compare them at equal minutes.",
    variants=_variants,
)
