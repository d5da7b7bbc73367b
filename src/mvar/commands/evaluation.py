"""Commands that measure how good images are.

torch and what needs it are imported inside the functions, so that `mvar --help` is quick.
"""

from typing import Literal

from mvar.settings import Count, Many, Seed

PATIENCE = 600.0  # minutes that a process waits for the others, whose features may take hours


def evaluate_images(
    reference: str,
    samples: str | None = None,
    model: str | None = None,
    features: Literal["effnet-lite0", "inception"] = "effnet-lite0",
    weights: str | None = None,
    pipeline: Literal["adm", "pytorch-fid"] = "adm",
    floor: str | None = None,
    limit: Many | None = None,
    out: str | None = None,
    cache: str | None = None,
    batch_size: Count = 64,
    allow_jpeg: bool = False,
    seed: Seed = 0,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Compare samples, or a tokenizer's reconstructions, with real images: Frechet distance, precision, recall, ...

    With Inception's weights the distance is FID, beside sFID, KID and the Inception score. Without them it is
    FD-EffNetLite0, in features that a package brings along. torchrun spreads the images over processes.

    Args:
        reference: real images: folder or .npz, or an .npz with their statistics mu, sigma (mu_s, sigma_s).
        samples: folder of PNG or WebP files, or .npz with arr_0, as mvar sample writes them.
        model: in place of samples, whose tokenizer then restores the reference: bundle, run folder or packaged name.
        features: the network whose features are compared.
        weights: file of Inception's weights, as pt_inception-2015-12-05-6726825d.pth.
        pipeline: how images come to Inception: as in the first FIDs and the ADM suite, or as in pytorch-fid.
        floor: other real images, such as the training set, to show how low a distance can get; the two halves of the
            reference are compared without them.
        limit: at most so many images of each set, evenly spaced.
        out: folder to write report.json to.
        cache: folder that keeps features for the next time.
        batch_size: images that the network sees at once.
        allow_jpeg: take samples that are JPEGs or lossy WebPs, whose artefacts move the result.
        seed: of the subsets and of the bootstrap.
        device: cpu, cuda, ...; a GPU where there is one by default.
        dtype: of the network.
    """
    if (samples is None) == (model is None):
        raise ValueError("samples, model: give one of them, --samples for images or --model to measure its tokenizer")
    from mvar.checkpoint import hub
    from mvar.evaluation.report import NAME, table
    from mvar.evaluation.runner import evaluate
    from mvar.model import load
    from mvar.sampling.protocol import hashes
    from mvar.training.parallel import process_group

    with process_group(None, device, PATIENCE) as ranks:
        report = evaluate(
            samples if samples is not None else load(str(model), ranks.device, "float32"),
            reference,
            out=out,
            origin={} if model is None else {"model": model, "sha256": hashes(hub.find(model))},
            processes=ranks,
            features=features,
            weights=weights,
            pipeline=pipeline,
            floor=floor,
            limit=limit,
            cache=cache,
            batch_size=batch_size,
            allow_jpeg=allow_jpeg,
            seed=seed,
            device=str(ranks.device),
            dtype=dtype,
        )
        if ranks.main:
            print(table(report))
            if out is not None:
                print(f"\nwrote {out}/{NAME}")


def compare(reports: str, out: str | None = None) -> None:
    """Put reports of mvar evaluate into one table; those of different protocols are refused.

    Args:
        reports: files or folders, between commas.
        out: Markdown file to write the table to.
    """
    from mvar.evaluation.report import compare as compared
    from mvar.evaluation.report import read
    from mvar.files import writable_file, write_text
    from mvar.text import split_names

    text = compared({path: read(path) for path in split_names(reports, "reports")})
    if out is not None:
        writable_file(out, "out")
        write_text(out, text + "\n")
    print(text)
