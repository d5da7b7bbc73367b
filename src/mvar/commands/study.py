"""Commands that study what settings do.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from mvar.settings import Seed, Several
from mvar.studies.grid import Grid


def study_list() -> None:
    """List the studies: what each measures."""
    for name, run in STUDIES.items():
        print(f"{name:>12}  {(run.__doc__ or '').splitlines()[0]}")


def study_run_sweep(
    model: str,
    data: str,
    judge: str,
    out: str,
    grid: Grid,
    samples_per_class: Several = 100,
    seed: Seed = 1,
    device: str | None = None,
) -> None:
    """Sweep guidance, temperature and filters: distance, accuracy, precision and recall; choose a setting.

    Writes sweep.json after each setting and resumes from it if it is there; then sweep.png.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        data: folder with train/<class>; settings are chosen on training images.
        judge: file of a classifier of these classes.
        out: folder to write into.
        grid: the settings to try.
        samples_per_class: drawn for each setting.
        seed: of the samples; give another to measure what was chosen.
        device: cpu, cuda, ...; a GPU where there is one by default.
    """
    from mvar.studies.sweep import sweep

    sweep(model, data, judge, out, grid, None, samples_per_class, seed, device)


STUDIES = {"sweep": study_run_sweep}
