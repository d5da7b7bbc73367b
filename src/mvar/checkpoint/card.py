"""The model card of a bundle: plain facts, written from its config."""

from collections.abc import Mapping, Sequence
from typing import Any

TAGS = ["image-generation", "autoregressive", "m-var", "vq-vae"]  # by which the hub finds models
_MAX_CLASSES = 20  # a longer list is shortened; classes.json has it all


def model_card(name: str, config: Mapping[str, Any], classes: Sequence[str]) -> str:
    """The text of README.md for the `config` in config.json, headed by what the Hugging Face hub wants to know."""
    facts = model_facts(config, classes)
    if config["generator"]:
        usage = f'import mvar\n\nmodel = mvar.load("{name}")\nmodel.sample(labels={[0] if classes else [-1]}).images[0]'
        what = "A scale-wise autoregressive image generator (M-VAR) with its tokenizer."
    else:
        usage = f'import mvar\n\ntokens = mvar.load("{name}").tokenizer.encode(pixels)  # RGB, (B, 3, H, W) in [0, 1]'
        what = "A multi-scale image tokenizer (VQ-VAE), without a generator."
    cells = {key: value.replace("|", "\\|").replace("\n", " ") for key, value in facts.items()}
    table = "\n".join(f"| {key} | {cell} |" for key, cell in cells.items())
    metadata = ["library_name: mvar", "pipeline_tag: unconditional-image-generation", "tags:"]
    header = "\n".join(["---", *metadata, *(f"- {tag}" for tag in TAGS), "---"])
    return f"{header}\n\n# {name}\n\n{what}\n\n| | |\n|---|---|\n{table}\n\n```python\n{usage}\n```\n"


def model_facts(config: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """What a model is, by name: sizes, classes, sampling defaults, origin; arguments as for `model_card`."""
    tokenizer, generator = config["tokenizer"], config["generator"]
    side = tokenizer["sides"][-1]
    h, w = side if isinstance(side, (list, tuple)) else (side, side)
    pixels = 2 ** (len(tokenizer["multipliers"]) - 1)
    facts = {
        "Images": f"{w * pixels} × {h * pixels} pixels",
        "Token maps": " ".join(str(side) for side in tokenizer["sides"]),
        "Codebook": f"{tokenizer['vocab_size']} codes of {tokenizer['latent_channels']} channels",
    }
    if generator:
        facts["Generator"] = f"depth {generator['depth']}, width {generator['width']}, {generator['heads']} heads"
        mamba = (
            generator["mamba"] if isinstance(generator["mamba"], list) else [generator["mamba"]] * generator["depth"]
        )
        facts["Mixers"] = f"attention {generator['attention']}, Mamba-2 in {sum(mamba)} of {len(mamba)} blocks"
        more = ", ..." if len(classes) > _MAX_CLASSES else ""
        names = f"{len(classes)}: {', '.join(classes[:_MAX_CLASSES])}{more}"
        facts["Classes"] = names if classes else "none (unconditional)"
    facts |= {f"Sampling: {key.replace('_', '-')}": str(value) for key, value in config["defaults"].items()}
    facts |= {str(key).replace("_", " ").capitalize(): str(value) for key, value in config["provenance"].items()}
    return facts
