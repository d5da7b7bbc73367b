"""A study's work, divided among processes: data, times, learning rates, then the runs themselves.

Each step is a resumable job whose pieces are files, so a study that was stopped goes on, and studies share runs.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mvar.checkpoint.placement import find_device
from mvar.features.extractors import Extractor, find_extractor
from mvar.generator.config import GeneratorConfig
from mvar.job import Job, locked
from mvar.studies import page
from mvar.studies.comparing import records, timing
from mvar.studies.comparing.data import Prepared, prepare, require
from mvar.studies.comparing.place import Place
from mvar.studies.comparing.plan import DataSet, Run, Scale, Study, Variants
from mvar.studies.comparing.real import Real
from mvar.studies.comparing.run import carry_out, measured
from mvar.studies.distance import NAME as DISTANCE
from mvar.studies.distance import SIDE
from mvar.text import counted, listed
from mvar.training.config import GeneratorTraining
from mvar.training.generator.token_data import load_tokenizer
from mvar.training.parallel import Ranks, process_group

LOCK = "studies.lock"


@dataclass
class Work:
    """Where a study is done and with what.

    Attributes:
        folder: for data, token caches and training runs.
        reports: for records, which are small and are kept.
        place: this process among the others.
        images: the user's own, for scales whose data is not packaged.
        extractor: of the features in which samples are compared; by default EfficientNet-Lite0's.
    """

    folder: Path
    reports: Path
    place: Place = field(default_factory=Place)
    images: str | None = None
    extractor: Extractor | None = None
    _ranks: Ranks | None = None  # where processes share each run
    _prepared: dict[str, Prepared] = field(default_factory=dict)
    _real: dict[str, Real] = field(default_factory=dict)

    def carry_out(self, study: Study, scale: Scale, seeds: int | None = None) -> None:
        """Do all that is missing of a study; every process of several returns when its part is done.

        Raises:
            ValueError: another job is at work in the folder, or has left results that differ from this one's.
        """
        with self._locked():
            if not scale.spread:
                self._carry_out(study, scale, seeds)
                return
            minutes = scale.training.get("rank_timeout", GeneratorTraining.rank_timeout)
            with process_group(None, self.place.device, minutes) as self._ranks:  # torchrun allows no second one
                self._carry_out(study, scale, seeds)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within it, the first process keeps other jobs out of the folder: they would train beside its timings."""
        if self.place.rank > 0:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        out = f"out = {str(self.folder)!r}"
        with locked(self.folder / LOCK, f"{out}: another job runs studies in this folder; wait for it, or stop it"):
            yield

    def _carry_out(self, study: Study, scale: Scale, seeds: int | None) -> None:
        variants = study.variants(scale.model, scale)
        self.reports.mkdir(parents=True, exist_ok=True)
        if not study.losses_only and self.extractor is None:
            self.extractor = find_extractor("effnet-lite0", side=SIDE)
        for data in study.data_of(scale):
            require(data, self._folder_of_data(data))
        plan = self._plan(study, scale, seeds)
        self._say(plan)
        self._prepare(study, scale)
        self._times([*variants.values()], scale)
        if (timed := self._plan(study, scale, seeds)) != plan:
            self._say(timed)
        self._tune(variants, scale)
        runs = [
            run
            for data in study.data_of(scale)
            for model in variants.values()
            for run in records.runs(study, model, scale, data, self.reports, seeds)
        ]
        self._runs(sorted(runs, key=lambda run: run.seed), "runs", variants, wait=self.place.rank == 0)

    def _plan(self, study: Study, scale: Scale, seeds: int | None) -> str:
        """What a study is in all, whether it is there already or not; its minutes where times were measured."""
        tuning, compared, seconds = 0, 0, 0.0
        for model in study.variants(scale.model, scale).values():
            trials = len(records.trials(model, scale, self.reports))
            runs = sum(study.seeds_of(data, seeds) for data in study.data_of(scale))
            tuning, compared = tuning + trials, compared + runs
            if timing.path_of(model, scale, self.reports).exists():
                longest = max(records.marks(study, model, scale, self.reports).values())
                step = timing.read(model, scale, self.reports).step_seconds
                seconds += (trials * scale.steps + runs * longest) * (step or math.nan)
            else:
                seconds = math.nan
        minutes = "" if math.isnan(seconds) else f", about {_minutes(seconds)} of training steps by one process"
        both = f"{counted(tuning, 'run')} for learning rates and " if tuning else ""
        return f"{study.name}: {both}{counted(compared, 'run')} to compare{minutes}; existing results are kept"

    def trained(self, study: Study, scale: Scale, names: Sequence[str]) -> Iterator[tuple[str, Run, Path, Prepared]]:
        """Some variants of a study with the first seed, trained here where their weights are not there yet."""
        with self._locked():
            self._say(f"{listed(names)} of the {study.name} study, trained first where they are not there")
            self._prepare(study, scale)
            models = study.variants(scale.model, scale)
            named = {name: models[name] for name in names}
            self._times([*named.values()], scale)
            self._tune(named, scale)
            for name in names:
                for data in study.data_of(scale):
                    (run,) = records.runs(study, models[name], scale, data, self.reports, 1)
                    if len(measured(run, self._prepared[data.name], self.folder_of(run))) < len(run.marks):
                        self._make(run)
                    yield name, run, self.folder_of(run), self._prepared[data.name]

    def _prepare(self, study: Study, scale: Scale) -> None:
        """Get all data, and refuse records of other data before anything is trained."""
        distance = self.extractor.distance if self.extractor else DISTANCE
        for data in study.data_of(scale):
            prepared = prepare(data, self._folder_of_data(data), self.place, self.images)
            records.check(data, prepared.contents, distance, self.reports)
            self._prepared[data.name] = prepared

    def _tune(self, variants: Variants, scale: Scale) -> None:
        """Make the runs that choose learning rates, in rounds: which ones a round adds is decided by those before."""
        made = list[Run]()
        for further in range(records.FURTHER + 1):
            models = variants.values()
            trials = [run for model in models for run in records.trials(model, scale, self.reports, further)]
            if trials != made:
                self._runs(trials, "runs for learning rates", variants, wait=True)
            made = trials

    def _folder_of_data(self, data: DataSet) -> Path:
        return self.folder / "data" / data.name

    def folder_of(self, run: Run) -> Path:
        """Where a run is trained: a bundle in the end."""
        return self.folder / "runs" / run.name

    def _times(self, models: Sequence[GeneratorConfig], scale: Scale) -> None:
        """Measure sizes, and times on a CPU, by the first process while the others are quiet."""
        first = self._prepared[scale.data[0].name]
        timed = not scale.spread and find_device(self.place.device).type == "cpu"
        job = Job(
            folder=self.reports,
            pieces=models,
            noun="times",
            name=lambda model: timing.path_of(model, scale, self.reports).name,
            is_complete=lambda model: timing.is_complete(model, scale, self.reports, timed),
        )
        if self.place.rank == 0:
            timing.measure(models, scale, load_tokenizer(first.tokenizer, "cpu"), self.reports, timed)
        job.wait()

    def _runs(self, runs: Sequence[Run], noun: str, variants: Variants, wait: bool) -> None:
        distinct = list({run.name: run for run in runs}.values())
        job = Job(
            folder=self.reports,
            pieces=distinct,
            noun=noun,
            name=lambda run: run.name,
            is_complete=lambda run: records.path_of(run, self.reports).exists(),
        )
        missing = [run for run in distinct if not job.is_complete(run)]
        self._say(f"{noun}: {len(missing)} of {len(distinct)} are missing" if missing else f"{noun}: all are recorded")
        begun, all_work = time.monotonic(), self._work(missing)

        def make(run: Run) -> None:
            lacking = [other for other in distinct if not job.is_complete(other)]
            done = all_work - (work := self._work(lacking))
            left = f", about {_minutes((time.monotonic() - begun) * work / done)} left" if done else ""
            (variant, *_) = (name for name, model in variants.items() if model == run.model)
            next_one = f"{variant} on {run.data.name}, seed {run.seed}, rate {run.peak_rate:.2g}"
            text = f"{noun}: {len(distinct) - len(lacking)} of {len(distinct)} are recorded{left}; next {next_one}"
            if self._ranks is None or self.place.rank == 0:  # processes that share a run would all say the same
                print(text, file=sys.stderr, flush=True)
            self._make(run)

        if self._ranks is not None:  # all processes share each run, and see the same ones missing
            for run in self._ranks.on_main(lambda: missing):
                make(run)
        else:
            job.make_missing(make, self.place.share(len(distinct)))
        if wait:
            job.wait()

    def _work(self, runs: Sequence[Run]) -> float:
        """How much work some runs are: seconds of their steps where these were timed, else arithmetic."""
        times = [timing.read(run.model, run.scale, self.reports) for run in runs]
        return sum(run.marks[-1] * (its.step_seconds or its.step_flop) for run, its in zip(runs, times, strict=True))

    def _say(self, text: str) -> None:
        """Print a line once, however many processes there are."""
        if self.place.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def _make(self, run: Run) -> None:
        data, folder = run.data, self.folder_of(run)
        prepared, path = self._prepared[data.name], records.path_of(run, self.reports)
        measures = not run.scale.spread or self.place.rank == 0
        real = self._real_of(data, prepared) if run.sampled and measures else None
        record = carry_out(run, prepared, real, folder, self.place)
        if measures and not path.exists():  # one that is there may be another machine's, from which others follow
            page.write_json(path, record, exact=["config"])

    def _real_of(self, data: DataSet, prepared: Prepared) -> Real:
        if data.name not in self._real:
            self._real[data.name] = Real(data, prepared, self.extractor)
        return self._real[data.name]


def _minutes(seconds: float) -> str:
    return counted(math.ceil(seconds / 60), "minute")
