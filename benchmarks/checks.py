"""Whether everything is right on a GPU: each check returns what it found, and raises where something is wrong."""

import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from mvar.checkpoint import official
from mvar.checkpoint.placement import Dtype, to_device
from mvar.generator.config import GeneratorConfig
from mvar.model import Model, load
from mvar.ops.dispatch import NOISE
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.tokenizer.config import TokenizerConfig
from mvar.training.config import GeneratorTraining, TokenizerTraining
from mvar.training.generator.task import train as train_generator
from mvar.training.loop import Callback
from mvar.training.stopping import Stopped
from mvar.training.tokenizer.task import train as train_tokenizer
from tests.parity_cases import PARITY_CASES, load_case
from tests.processes import Ranks

MODEL = "fashion-mnist"
KERNELS = 25  # of each block and scale, at most
TOKENIZER = TokenizerConfig(
    channels=32, multipliers=(1, 1), res_blocks=1, vocab_size=64, latent_channels=8, sides=[1, 2, 4]
)
GENERATOR = GeneratorConfig(depth=2, width=64, heads=1, state_size=16)
STEPS = 4
Found = dict[str, Any]


def require(holds: bool, what: str) -> None:
    """Raise AssertionError, also where Python runs without assertions."""
    if not holds:
        raise AssertionError(what)


def kernels(device: torch.device) -> Found:
    """Each Triton kernel against PyTorch's operations, with gradients, as before its first use."""
    if device.type != "cuda":
        return {"left out": f"there are no kernels for {device.type}"}
    from mvar.ops.gpu.check import first_difference

    kinds = ((torch.float32, True), (torch.bfloat16, True), (NOISE, False))
    found = {str(dtype): first_difference(device, dtype, gradient) for dtype, gradient in kinds}
    require(not any(found.values()), str(found))
    return found


def parity(device: torch.device) -> Found:
    """Five tiny models of the official code: tokens identical, numbers within 1e-3 in float32."""
    worst = 0.0
    for name in PARITY_CASES:
        case = load_case(name)
        model = official.load(case.tokenizer, case.generator)
        generator = model.generator
        assert generator is not None
        to_device(model.tokenizer, generator, device, "float32")
        given = {key: tensor.to(device) for key, tensor in case.outputs.items()}
        with torch.no_grad():
            tokens = model.tokenizer.encode((given["image"] + 1) / 2)
            logits_BLV = generator(given["label"], given["teacher_forcing_input"])
        worst = max(worst, float((logits_BLV - given["teacher_forced_logits"]).abs().max()))
        require(worst < 1e-3, f"{name}: teacher-forced logits differ by {worst}")
        settings = SamplingSettings(guidance=case.settings["guidance"], top_k=1, top_p=1.0)
        drawn = Sampler(model.tokenizer, generator, 0, settings).sample(case.outputs["label"], [0, 1])
        for k, maps in enumerate(drawn.tokens or []):
            require(torch.equal(tokens[k], given[f"idx_{k}"]), f"{name}: tokens of scale {k}")
            expected = case.outputs[f"greedy_cfg_logits_{k}"].argmax(-1)
            require(torch.equal(maps, expected), f"{name}: greedy tokens of scale {k}")
    return {"cases": len(PARITY_CASES), "largest difference of logits": worst}


def tokens_as_on_the_cpu(device: torch.device) -> Found:
    """Share of equal tokens: all in float32; in bfloat16 it is only reported."""
    found: Found = {}
    labels = list(range(8))
    here = load(MODEL, "cpu", "float32").sample(labels, seed=3).tokens or []
    dtypes: tuple[Dtype, ...] = ("float32",) if device.type == "cpu" else ("float32", "bfloat16")
    for dtype in dtypes:
        there = load(MODEL, device, dtype).sample(labels, seed=3).tokens or []
        equal = sum(int((a == b).sum()) for a, b in zip(here, there, strict=True))
        found[dtype] = equal / sum(maps.numel() for maps in here)
    require(found["float32"] == 1.0, str(found))
    return found


def invariants(device: torch.device) -> Found:
    """Incremental equals parallel; an image does not depend on its batch; editing, variation, score and classes run."""
    model, labels = load(MODEL, device, "float32"), list(range(6))
    out = model.sample(labels, seed=1)
    alone = model.sample(labels[4], seed=1, index=[4])
    sampler = model.sampler(1)
    stepwise = sampler.start(torch.tensor(labels), range(6))
    for _ in range(sampler.scales - 1):
        stepwise = sampler.draw(stepwise)
    at_once = sampler.follow(sampler.start(torch.tensor(labels), range(6)), stepwise.tokens)
    apart = max(
        float((a.ssm_BhPN - b.ssm_BhPN).abs().max())
        for a, b in zip(*([block.mamba for block in c.state.blocks] for c in (stepwise, at_once)), strict=True)
        if a is not None and b is not None
    )
    require(apart < 1e-2, f"states after all scales but one differ by {apart}")
    pairs = list(zip(alone.tokens or [], out.tokens or [], strict=True))
    same = sum(int((a[0] == b[4]).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    require(same > 0.99, f"an image drawn alone shares {same} of its tokens with the same one in a batch")
    image = out.images[0]
    box = [image.width // 4, image.height // 4, image.width // 2, image.height // 2]
    edited = model.edit(image, box=box, label=labels[0], n=2)
    varied = model.vary(image, labels[0], from_scale=2, n=3)
    best = model.sample_best(labels[:2], of=4)
    bits = model.score(out.images, labels).bits_per_token
    right = sum(a == b for a, b in zip(model.classify(out.images).ids, labels, strict=True))
    for pixels in (edited.pixels, varied.pixels, best.pixels):
        require(bool(pixels.isfinite().all()), "pixels that are not finite")
    return {"states apart": apart, "alone as in a batch": same, "bits per token": float(bits.mean()), "right": right}


def look(k: int, K: int, preview: Callable[[], torch.Tensor]) -> None:
    """Decode what is drawn so far."""
    preview()


def recordings(device: torch.device) -> Found:
    """CUDA graphs give the tokens that are drawn without them, with other labels and seeds, watched and continued."""
    if device.type != "cuda":
        return {"left out": "recorded on CUDA only"}
    model = load(MODEL, device, "float32")
    drawings: dict[str, Callable[[Model, int], Any]] = {
        "samples": lambda model, i: model.sample([i, 3, 5], seed=i),
        "watched samples": lambda model, i: model.sample([i, 3, 5], seed=i, on_scale=look),
        "variations": lambda model, i: model.vary(image, 2, from_scale=2, n=3, seed=i),
        "best of four": lambda model, i: model.sample_best([i, 2], of=4, fork_at=2, seed=i),
        "a batch that is filled up": lambda model, i: model.sample([i, 3, 5, 7, 9], seed=i),
    }
    image, found, used = model.sample(2).images[0], {}, 0
    for name, draw in drawings.items():
        for i in range(3):  # the second time is recorded, the third replayed
            with patch.dict(os.environ, MVAR_GRAPHS="off"):
                expected = draw(model, i).tokens
            pairs = zip(draw(model, i).tokens, expected, strict=True)
            require(all(torch.equal(a, b) for a, b in pairs), f"{name} {i} differ")
        require(not model._graphs.failed, "recording failed; see the warning above")
        require(len(model._graphs) > used, f"{name} were not recorded")
        used = len(model._graphs)
        found[name] = "equal"
    return {**found, "recordings": used}


def kernel_counts(device: torch.device, preset_model: Callable[[str], Model], preset: str) -> Found:
    """Kernels of each block and scale by the profiler, against the bound of the guard; and waits of the host."""
    if device.type != "cuda":
        return {"left out": "counted on CUDA only"}
    model = preset_model(preset)
    sampler = model.sampler(0, guidance=1.5, top_k=900, top_p=0.96)
    canvas = sampler.draw(sampler.draw(sampler.start(torch.tensor([0]), [0])))
    sampler.draw(canvas)
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        sampler.draw(canvas)
    events = profile.key_averages()
    kernels = {e.key: e.count for e in events if str(e.device_type).endswith("CUDA") and e.self_device_time_total > 0}
    launched = sum(kernels.values())
    # The profiler itself synchronises the device when it ends.
    waits = sum(e.count for e in events if e.key in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    depth = len(sampler.generator.each_block())
    often = sorted(((count, name[:80]) for name, count in kernels.items()), reverse=True)[:10]
    found = {"kernels of a scale": launched, "a block": launched / depth, "waits": waits, "most frequent": often}
    require(launched / depth <= KERNELS + 50 / depth, str(found))
    require(waits == 0, str(found))
    return found


def out_of_memory(device: torch.device) -> Found:
    """A batch that cannot fit is refused in one line before anything is drawn."""
    try:
        load(MODEL, device, "float32").fitting_batch_size(10**6)
    except ValueError as error:
        return {"line": str(error)}
    raise AssertionError("a batch of a million images was not refused")


# --- training ---


def trainings(device: torch.device, kinds: Sequence[str]) -> Found:
    """Losses as on the CPU, exact resuming, and one rank of these kinds, which must train as no rank does."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _write_images(root / "images")
        ours = theirs = _losses(root, "here", device)
        if device.type != "cpu":
            theirs = _losses(root, "there", "cpu")
        apart = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        require(apart < 1e-2, f"losses {ours}, on the CPU {theirs}")
        stopped = _generator_run(root, "stopped", device)
        _train(stopped, stop_after=2)
        resumed = _train(replace(stopped, resume=True))
        require(abs(resumed[-1] - ours[-1]) < 1e-4, f"resumed {resumed[-1]}, unbroken {ours[-1]}")
        again = "equal" if resumed[-1] == ours[-1] else abs(resumed[-1] - ours[-1])  # not all kernels are deterministic
        found: Found = {"losses": ours, "largest difference to the CPU's": apart, "resumed": again}
        few = _train(replace(_generator_run(root, "checkpointing", device), activation_checkpointing=True))
        require(abs(few[-1] - ours[-1]) < 1e-3, f"with activation checkpointing {few[-1]}, without {ours[-1]}")
        for kind in kinds:
            found[kind] = _one_rank(kind, root, device)
            require(abs(found[kind] - ours[-1]) < 1e-3, f"{kind}: {found[kind]}, alone {ours[-1]}")
        return found


def compiled(device: torch.device) -> Found:
    """`compile: true` trains, with the same losses within rounding."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _write_images(root / "images")
        plain = _losses(root, "here", device)[-STEPS:]
        fused = _train(replace(_generator_run(root, "compiled", device), compile=True))
        apart = max(abs(a - b) for a, b in zip(plain, fused, strict=True))
        require(apart < 1e-2, f"losses {plain}, compiled {fused}")
        return {"largest difference": apart}


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for i in range(8):
            array = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / label / f"{i}.png")


def _common(root: Path, name: str, device: torch.device | str) -> Found:
    run: Found = {"steps": STEPS, "batch_size": 4, "val_images": 2, "log_every": 1, "validate_every": STEPS}
    run |= {"checkpoint_every": 2, "data": str(root / "images"), "out": str(root / name)}
    return {**run, "device": str(device), "dtype": "float32"}


def _generator_run(root: Path, name: str, device: torch.device | str, tokenizer: str = "here") -> GeneratorTraining:
    common = _common(root, name, device)
    return GeneratorTraining(**common, model=GENERATOR, tokenizer=str(root / tokenizer), preview_per_class=1)


def _losses(root: Path, name: str, device: torch.device | str) -> list[float]:
    """Of a tokenizer's and of its generator's run, step by step."""
    common = _common(root, name, device)
    first = _train(TokenizerTraining(**common, model=TOKENIZER, perceptual=0.0, adversarial=0.0))
    return first + _train(_generator_run(root, f"{name}-generator", device, name))


def _train(config: TokenizerTraining | GeneratorTraining, stop_after: int | None = None) -> list[float]:
    """The losses that a run recorded."""
    callbacks: list[Callback] = [] if stop_after is None else [lambda step, record: step >= stop_after]
    with redirect_stderr(io.StringIO()):
        try:
            if isinstance(config, TokenizerTraining):
                train_tokenizer(config, callbacks)
            else:
                train_generator(config, callbacks)
        except Stopped:
            if stop_after is None:
                raise
    return _recorded(Path(config.out))


def _recorded(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _one_rank(kind: str, root: Path, device: torch.device) -> float:
    """The last loss of a run of one rank, in a process of its own."""
    program = (
        "import json; from benchmarks.checks import GENERATOR; from mvar.training.config import GeneratorTraining; "
        "from mvar.training.generator.task import train; "
        "train(GeneratorTraining(model=GENERATOR, **json.loads(sys.argv[1])))"
    )
    given = {**_common(root, kind, device), "tokenizer": str(root / "here"), "preview_per_class": 1, "parallel": kind}
    Ranks(1, program, [json.dumps(given)], root).finish()
    return _recorded(root / kind)[-1]
