"""Figure 5: how many of VAR's blocks must be replaced by M-VAR's, and which ones?

    torchrun --nproc-per-node 2 -m mvar study run replace

It is 186 minutes of training steps on one core of an AMD EPYC.

0 to 16 of the 16 global-attention layers of VAR-d16 were replaced by intra-scale attention and Mamba: FID falls
steadily from 3.55 to 3.07. The paper does not say which were replaced first; here the first ones or the last ones are.
"""

from dataclasses import replace

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import GLOBAL_ATTENTION, M_VAR, VAR, Scale, Study, Variants

QUARTERS = (1, 2, 3)


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    found = {VAR: replace(base, **GLOBAL_ATTENTION)}
    for end in ("first", "last"):
        for quarters in QUARTERS:
            model = _replaced(base, base.depth * quarters // 4, end)
            if model.mixers not in [other.mixers for other in (base, *found.values())]:  # few blocks have few quarters
                found[f"{end} {quarters}/4"] = model
    return {**found, M_VAR: base}


def _replaced(base: GeneratorConfig, blocks: int, end: str) -> GeneratorConfig:
    """M-VAR's blocks at one end of the network, VAR's at the other."""
    inside = [i < blocks if end == "first" else i >= base.depth - blocks for i in range(base.depth)]
    return replace(base, attention=["intra" if new else "global" for new in inside], mamba=inside)


STUDY = Study(
    name="replace",
    title="Replacing blocks",
    expected="Better with every quarter that is replaced.",
    variants=_variants,
    baselines=(VAR, M_VAR),
)
