"""The commands' names and lines, which are shown without importing them."""

from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One subcommand: its functions in `mvar.commands` as "module.function", and its line in the list of commands."""

    function: str
    help: str
    defaults: str | None = None  # what options start from, where that depends on others
    positional: bool = False  # whether what is required is given without an option's name


COMMANDS = {
    "data fashion-mnist": Command(
        "training.data_fashion_mnist",
        "Write Fashion-MNIST as image folders: 60,000 training and 10,000 validation images of 10 classes.",
    ),
    "data icons": Command(
        "training.data_icons",
        "Write icons as image folders: 21,108 black drawings of 360 things, split by designer.",
    ),
    "tokenize": Command(
        "training.tokenize",
        "Write the token maps of a folder of images as a cache that train generator reads.",
    ),
    "train tokenizer": Command(
        "training.train_tokenizer",
        "Train a tokenizer on a folder of images.",
        defaults="training.tokenizer_defaults",
    ),
    "train generator": Command(
        "training.train_generator",
        "Train a generator on a folder of images or a token cache, with a trained tokenizer.",
        defaults="training.generator_defaults",
    ),
    "sample": Command("drawing.sample", "Draw images and write them as a sheet, as single files, or as an .npz."),
    "sample-best": Command(
        "drawing.sample_best",
        "Draw several candidates for each image and keep those that a judge likes best (rejection sampling).",
    ),
    "sample-set": Command(
        "evaluation_set.sample_set",
        "Draw the images of an evaluation: a number of every class, as single files or as the .npz that suites read.",
    ),
    "edit": Command("editing.edit", "Repaint a part of an image: in-painting, out-painting, or another class."),
    "vary": Command("editing.vary", "Keep the coarse maps of an image and draw the finer ones again."),
    "score": Command("models.score", "Say how likely a model finds images: bits per token, for each scale."),
    "classify": Command("models.classify", "Name the class of images by Bayes' rule on the model's likelihoods."),
    "serve": Command("serving.serve", "Serve models: a page in the browser, and OpenAI's Images API over HTTP."),
    "evaluate": Command(
        "evaluation.evaluate_images",
        "Compare samples, or a tokenizer's reconstructions, with real images: Frechet distance, precision, recall, ...",
    ),
    "compare": Command(
        "evaluation.compare",
        "Put reports of mvar evaluate into one table; those of different protocols are refused.",
    ),
    "info": Command(
        "models.info",
        "Say what a model is: its parts, sizes, classes, sampling defaults and origin.",
        positional=True,
    ),
    "convert": Command(
        "models.convert",
        "Turn files of the official VAR and M-VAR code into a bundle, or a bundle into such files.",
    ),
    "reschedule": Command(
        "models.reschedule",
        "Write a model at another schedule of scales, and so for another image size, to be fine-tuned.",
    ),
    "join": Command(
        "models.join",
        "Write a model of one's tokenizer and another's generator, such as a decoder that was trained on by itself.",
    ),
    "bench sample": Command(
        "bench.bench_sample",
        "Measure what drawing an image takes on the CPU: by scale and part, against the machine's floor.",
    ),
    "bench growth": Command(
        "bench.bench_growth",
        "Measure how the time of a token grows with their number, of M-VAR and of VAR, on the CPU.",
    ),
    "bench features": Command(
        "bench.bench_features",
        "Measure how many images a second the networks of mvar evaluate take in, on the CPU, and of what peak that is.",
    ),
    "bench train": Command(
        "bench.bench_train",
        "Measure a generator's training step on the CPU: tokens a second, share of the machine's best, memory; "
        "and VAR's.",
    ),
    "study list": Command("study.study_list", "List the studies: what each measures."),
    "study report": Command("study.study_report", "Rebuild the page of all studies from the results of their runs."),
    "study run attention": Command(
        "study.study_run_attention",
        "Table 1: where the attention of a trained model looks, and what Mamba keeps.",
    ),
    "study run cost": Command(
        "study.study_run_cost", "Tables 2 and 4: parameters, arithmetic and time of the published sizes."
    ),
    "study run width-depth": Command(
        "study.study_run_width_depth",
        "Table 5: train VAR, M-VAR, and M-VAR with less width or depth, and compare them.",
    ),
    "study run mixers": Command(
        "study.study_run_mixers", "Table 6: train VAR, attention alone, Mamba alone and both, and compare them."
    ),
    "study run replace": Command(
        "study.study_run_replace",
        "Figure 5: replace a quarter, a half, ... of VAR's blocks, from either end, and compare.",
    ),
    "study run order": Command(
        "study.study_run_order", "Compare orders of a block's mixers, and Mamba in every second block."
    ),
    "study run scan": Command(
        "study.study_run_scan",
        "Compare how Mamba reads a map, sizes of its state, and attention to the last scale in its place.",
    ),
    "study run scaling": Command(
        "study.study_run_scaling", "Fit how the loss falls with parameters and compute, for M-VAR and VAR."
    ),
    "study run sweep": Command(
        "study.study_run_sweep",
        "Sweep guidance, temperature and filters: distance, accuracy, precision and recall; choose a setting.",
    ),
}
GROUPS = {
    "data": "Get real images.",
    "train": "Train on a folder of images.",
    "bench": "Measure speed and memory.",
    "study": "Run the paper's studies, or study sampling settings.",
    "study run": "Run a study.",
}
MOVED = {  # options that became commands
    ("sample", "--protocol"): "mvar sample-set draws the images of an evaluation",
    ("sample", "--counts-of"): "mvar sample-set draws as many of each class",
    **{
        ("sample", option): "mvar sample-best keeps the best of several candidates"
        for option in ("--judge", "--of", "--keep", "--fork-at")
    },
}


def imported(place: str) -> Any:
    """The function at "module.function" in `mvar.commands`."""
    module, _, function = place.partition(".")
    return getattr(import_module(f"mvar.commands.{module}"), function)
