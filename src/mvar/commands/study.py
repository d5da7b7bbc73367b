"""Commands that run the paper's studies, and a sweep of sampling settings.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mvar.files import writable_folder
from mvar.settings import Count, Many, Seed, Several
from mvar.studies.comparing.plan import M_VAR, SCALES, VAR, Scale
from mvar.studies.grid import Grid

ScaleName: Any = Literal[tuple(SCALES)]  # Any keeps type checkers from reading names that are known at run time only
PackagedName: Any = Literal[tuple(name for name, scale in SCALES.items() if all(data.command for data in scale.data))]
Features = Literal["effnet-lite0", "inception"]
COMPARISONS = {  # studies that train generators: their files in `mvar.studies.paper`
    "width-depth": "Table 5: train VAR, M-VAR, and M-VAR with less width or depth, and compare them.",
    "mixers": "Table 6: train VAR, attention alone, Mamba alone and both, and compare them.",
    "replace": "Figure 5: replace a quarter, a half, ... of VAR's blocks, from either end, and compare.",
    "order": "Compare orders of a block's mixers, and Mamba in every second block.",
    "scan": "Compare how Mamba reads a map, sizes of its state, and attention to the last scale in its place.",
    "scaling": "Fit how the loss falls with parameters and compute, for M-VAR and VAR.",
}


def study_list() -> None:
    """List the studies: what each measures."""
    for name, line in STUDIES.items():
        print(f"{name:>12}  {line}")


def _comparison(name: str) -> Callable[..., None]:
    def command(
        scale: ScaleName = "small",
        seeds: Count | None = None,
        out: str = "studies",
        reports: str | None = None,
        data: str | None = None,
        tokenizer: str | None = None,
        features: Features = "effnet-lite0",
        weights: str | None = None,
        device: str | None = None,
    ) -> None:
        from mvar.features.extractors import find_extractor
        from mvar.studies.comparing import report
        from mvar.studies.comparing.place import Place
        from mvar.studies.comparing.work import Work
        from mvar.studies.distance import SIDE

        chosen, place = _scale(scale, data, tokenizer), Place.of_torchrun(device)
        extractor = None
        if chosen.data[0].size > SIDE or features != "effnet-lite0":
            extractor = find_extractor(features, weights, place.device)
        folder = _results(out, reports, scale)
        work = Work(writable_folder(out, "out"), folder, place, data, extractor)
        module = _module(name)
        work.carry_out(module.STUDY, chosen, seeds)
        if place.rank == 0:
            print(report.results(module.STUDY, chosen, work.reports, seeds))
            page = f"--scale {scale} --page studies.md" if scale != "small" else "--page studies.md"
            print(f"wrote {folder}; for a page: mvar study report --reports {folder.parent} {page}", file=sys.stderr)

    command.__name__ = command.__qualname__ = f"study_run_{name.replace('-', '_')}"
    command.__doc__ = f"""{COMPARISONS[name]}

    Resumes where it was stopped. Under torchrun every process has runs of its own: torchrun --nproc-per-node 2 -m mvar
    study run {name}.

    Args:
        scale: toy shows how a study goes, in 6 minutes of one core; small takes hours on two; medium needs a GPU; paper
            needs ImageNet and a cluster, whose processes share each run.
        seeds: runs of each variant; by default the data set's.
        out: folder for data, token caches and training runs.
        reports: folder for the results, a small file for each run, which other studies use too; by default in out.
        data: folder with train/<class> and val/<class>, for scales whose images are not packaged.
        tokenizer: its bundle or run folder, for these.
        features: network in whose features samples are compared.
        weights: file of inception's weights.
        device: cpu, cuda, ...; a GPU where there is one by default.
    """
    return command


def _scale(name: str, data: str | None, tokenizer: str | None) -> Scale:
    """The scale, with the user's own tokenizer where its data is the user's own."""
    scale = SCALES[name]
    own = [given.name for given in scale.data if given.command is None]
    for option, value in {"data": data, "tokenizer": tokenizer}.items():
        if own and value is None:
            raise ValueError(f"{option} = None: --scale {name} trains on {', '.join(own)}; give --{option}")
        if not own and value is not None:
            raise ValueError(f"{option} = {value!r}: --scale {name} gets its own images; leave --{option} out")
    if tokenizer is None:
        return scale
    return replace(scale, data=tuple(replace(given, tokenizer=tokenizer) for given in scale.data))


def _results(out: str, reports: str | None, scale: str = "") -> Path:
    """The folder for results."""
    return writable_folder(Path(reports or f"{out}/reports", scale), "reports" if reports else "out")


def _module(name: str) -> ModuleType:
    return import_module(f"mvar.studies.paper.{name.replace('-', '_')}")


study_run_width_depth = _comparison("width-depth")
study_run_mixers = _comparison("mixers")
study_run_replace = _comparison("replace")
study_run_order = _comparison("order")
study_run_scan = _comparison("scan")
study_run_scaling = _comparison("scaling")


def study_run_attention(
    model: str | None = None,
    data: str | None = None,
    images: Many = 256,
    scale: PackagedName = "small",
    out: str = "studies",
    reports: str | None = None,
    device: str | None = None,
) -> None:
    """Table 1: where the attention of a trained model looks, and what Mamba keeps.

    Writes attention-MODEL.json and .png.

    Args:
        model: packaged name, bundle or run folder; by default the VAR and the M-VAR of the mixers study, which are
            trained first where they are not there.
        data: folder of its images, or a token cache.
        images: of the validation split.
        scale: of the mixers study.
        out: folder of that study.
        reports: folder for the results; by default in out.
        device: cpu, cuda, ...; a GPU where there is one by default.
    """
    from mvar.studies.comparing.place import Place
    from mvar.studies.comparing.work import Work
    from mvar.studies.paper import attention, mixers

    place = Place.of_torchrun(device)
    folder = _results(out, reports)
    if (model is None) != (data is None):
        raise ValueError(f"model = {model!r}, data = {data!r}: give both, or neither")
    if model is not None and data is not None:
        attention.run(model, data, images, folder, device)
        return
    if place.rank > 0:  # one process does it all
        return
    work = Work(Path(out), folder / scale, Place(device=device))
    for name, run, bundle, prepared in work.trained(mixers.STUDY, SCALES[scale], (VAR, M_VAR)):
        shown, steps = f"{name} on {run.data.name}", run.marks[-1]
        attention.run(str(bundle), str(prepared.tokens), images, folder, device, shown, steps)


def study_run_cost(
    rounds: Count = 7,
    cases: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    out: str = "studies",
    reports: str | None = None,
) -> None:
    """Tables 2 and 4: parameters, arithmetic and time of the published sizes.

    Random weights, on the CPU. Writes cost.json and cost.png.

    Args:
        rounds: timed, of all models, after one to warm up.
        cases: generator presets between commas, to measure these only.
        dtype: of the weights in use.
        out: folder of studies.
        reports: folder for the results; by default in out.
    """
    from mvar.studies.comparing.place import Place
    from mvar.studies.paper import cost
    from mvar.text import split_names

    if Place.of_torchrun(None).rank > 0:  # processes would disturb each other's times
        return
    names = None if cases is None else split_names(cases, "cases")
    cost.run(rounds, _results(out, reports), dtype, names)


def study_report(
    reports: str = "studies/reports",
    page: str = "studies/studies.md",
    scale: ScaleName = "small",
    seeds: Count | None = None,
) -> None:
    """Rebuild the page of all studies from the results of their runs.

    Args:
        reports: folder of the results; figures are drawn into it.
        page: Markdown file; where it exists, what is between its two marker lines is replaced.
        scale: at which runs were made.
        seeds: runs of each variant; by default the data set's.
    """
    from mvar.studies.comparing import report
    from mvar.studies.paper import attention, cost

    if not Path(reports).is_dir():
        raise ValueError(f"reports = {reports!r}: is no folder; give the one that mvar study run wrote into")
    others = [name for name in SCALES if (Path(reports) / name).is_dir()]
    if others and scale not in others:
        raise ValueError(
            f"scale = {scale!r}: reports = {reports!r} has only {', '.join(others)}; give --scale {others[0]}"
        )
    single = [path for name in (f"{cost.NAME}.json", f"{attention.NAME}-*.json") for path in Path(reports).glob(name)]
    if not others and not single:
        raise ValueError(f"reports = {reports!r}: has no results; give the folder that mvar study run wrote into")
    modules = [_module(name) for name in ("attention", "cost", *COMPARISONS)]
    report.write_page(Path(page), Path(reports), modules, SCALES[scale], seeds)
    print(f"wrote {page}")


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


STUDIES = {
    "attention": "Table 1: where the attention of a trained model looks, and what Mamba keeps.",
    "cost": "Tables 2 and 4: parameters, arithmetic and time of the published sizes.",
    **COMPARISONS,
    "sweep": "Sweep guidance, temperature and filters: distance, accuracy, precision and recall; choose a setting.",
}
