"""Commands that study what settings do.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from mvar.sampling.config import TopK
from mvar.settings import Places, Positive, Seed, Several, Share


def study_list() -> None:
    """List the studies: what each measures."""
    for name, run in STUDIES.items():
        print(f"{name:>12}  {(run.__doc__ or '').splitlines()[0]}")


def study_run_sweep(
    model: str,
    data: str,
    judge: str,
    out: str,
    guidance: float | list[float] | None = None,
    unguided: Places | None = None,
    temperature: float | list[float] | None = None,
    last_temperature: Positive | None = None,
    top_k: TopK | None = None,
    top_p: float | list[float] | None = None,
    least_accuracy: Share | None = None,
    samples_per_class: Several = 100,
    seed: Seed = 1,
    device: str | None = None,
) -> None:
    """Sweep guidance, temperature and filters: distance, accuracy, precision and recall; choose a setting.

    Writes sweep.json after each setting, and goes on from it where it is there; then sweep.png.

    Args:
        model: packaged name, bundle or run folder, or owner/name of the Hugging Face hub.
        data: folder with train/<class>; settings are chosen on training images.
        judge: file of a classifier of these classes.
        out: folder to write into.
        guidance: strengths to try, each with every temperature.
        unguided: how many of the finest maps go without guidance, to try; each saves half of its map's work.
        temperature: of the first map, to try; it falls by a parabola to that of the last.
        last_temperature: of the last map.
        top_k: to try at the best setting without filters.
        top_p: to try at the best setting without filters.
        least_accuracy: share of samples that the judge shall take for their class.
        samples_per_class: drawn for each setting.
        seed: of the samples; give another to measure what was chosen.
        device: cpu, cuda, ...; a GPU where there is one by default.
    """
    from mvar.studies.sweep import Grid, sweep

    lists = {
        "guidance": guidance,
        "unguided": unguided,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    grid: dict[str, object] = {
        name: value if isinstance(value, list) else [value] for name, value in lists.items() if value is not None
    }
    numbers = {"last_temperature": last_temperature, "least_accuracy": least_accuracy}
    grid |= {name: value for name, value in numbers.items() if value is not None}
    sweep(model, data, judge, out, Grid(**grid), None, samples_per_class, seed, device)  # type: ignore[arg-type]


STUDIES = {"sweep": study_run_sweep}
