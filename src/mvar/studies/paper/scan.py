"""Left open by the paper: in which order Mamba reads a map, how large its state is, and whether it needs to look far.

    torchrun --nproc-per-node 2 -m mvar study run scan

It is 196 minutes of training steps on one core of an AMD EPYC.

The paper reads every map row by row (raster) with a state of 64, and does not compare other ways. Here rows also take
turns in direction (snake); or each map is read in both directions, which needs a second pass but no parameters; or
attention over this and the last scale ("recent", as HMAR, Kumbong et al. 2025) stands in Mamba's place.
"""

from dataclasses import replace

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import M_VAR, Scale, Study, Variants

SIZES = (16, 32, 128)  # of the state


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    return {
        M_VAR: base,
        "snake": replace(base, scan="snake"),
        "both directions": replace(base, scan="bidirectional"),
        "recent attention instead of Mamba": replace(base, attention="recent", mamba=False),
        **{f"state of {size}": replace(base, state_size=size) for size in SIZES},
    }


STUDY = Study(
    name="scan",
    title="How Mamba reads a map",
    expected="Both directions help where attention inside a scale is weak; here that attention already sees the map.",
    variants=_variants,
)
