"""Where models come from and go to: the package, folders, the Hugging Face hub; and the public official files."""

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin

from mvar.checkpoint.bundle import CARD, TAGS, Bundle
from mvar.checkpoint.placement import first_line
from mvar.files import write_text

BUNDLE_FILES = ["*.json", "*.safetensors", "README.md"]


def packaged_models() -> list[str]:
    """Names of the models that ship with the package."""
    root = packaged_root()
    return sorted(path.name for path in root.iterdir() if (path / "config.json").is_file()) if root.is_dir() else []


def packaged_root() -> Path:
    """The folder of the models that ship with the package."""
    return Path(str(resources.files("mvar"))) / "models"


def find(source: str | Path, **download: Any) -> Path:
    """The folder of a bundle: packaged under this name, a folder, or downloaded from the hub as owner/name.

    `download` are options of huggingface_hub's `snapshot_download`.
    """
    packaged = packaged_models()
    if source in packaged:
        return packaged_root() / source
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"model = {str(source)!r}: is a file; give a bundle folder, or load_official the .pth file")
    if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        parent, name = source.split("/")
        if Path(parent).is_dir():  # a mistyped path, no hub id
            raise ValueError(
                f"model = {source!r}: the folder {parent!r} here has no {name!r} in it; correct the path, "
                "or run in another folder if it is an id of the Hugging Face hub"
            )
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(source, allow_patterns=BUNDLE_FILES, **download))
        except Exception as error:  # the hub client raises errors of a dozen libraries
            raise ValueError(
                f"model = {source!r}: no local folder of this name, and not fetched from the Hugging Face hub "
                f"({first_line(error)}); packaged models: {', '.join(packaged) or 'none here'}"
            ) from error
    raise ValueError(
        f"model = {str(source)!r}: no such model; give a packaged name ({', '.join(packaged) or 'none here'}), "
        "a bundle or run folder, or owner/name of the Hugging Face hub"
    )


class HubModel(ModelHubMixin, library_name="mvar", tags=list(TAGS)):
    """What huggingface_hub's `save_pretrained` and `push_to_hub` do with a model: they write a bundle."""

    save: Callable[..., Path]
    bundle: Callable[[], Bundle]

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> str | None:
        """Write the model as a bundle; arguments are those of huggingface_hub's `save_pretrained`."""
        result = super().save_pretrained(save_directory, model_card_kwargs=model_card_kwargs, **options)
        if name := (model_card_kwargs or {}).get("name"):
            write_text(Path(save_directory) / CARD, self.bundle().card(name))
        return result

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model as huggingface_hub's `push_to_hub` does, with a card that names the repository."""
        return super().push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options)


# --- official files ---

VAR_REPO, OFFICIAL_TOKENIZER = "FoundationVision/var", "vae_ch160v4096z32.pth"
M_VAR_REPO = "OliverRen/M-VAR"
# A public model's repository and the depth in its file's name.
OFFICIAL = {
    **{f"d{depth}": (M_VAR_REPO, depth) for depth in (12, 16, 20, 24, 30, 32)},
    **{f"var-d{depth}": (VAR_REPO, depth) for depth in (16, 20, 24, 30, 36)},
}


def official_files(name: str) -> tuple[Path, Path]:
    """Download a public official model's tokenizer and generator: "d16", ... for M-VAR, "var-d16", ... for VAR."""
    if name not in OFFICIAL:
        raise ValueError(f"official = {name!r}: no public model of this name; known: {', '.join(OFFICIAL)}")
    from huggingface_hub import HfApi, constants, hf_hub_download

    repo, depth = OFFICIAL[name]
    generator = f"{'var_' if repo == VAR_REPO else ''}d{depth}.pth"
    try:
        published = HfApi().list_repo_files(repo)
        files = [file for file in published if re.search(rf"d{depth}(?!\d).*\.(pth|safetensors)$", file)]
        if len(files) == 1:
            return Path(hf_hub_download(VAR_REPO, OFFICIAL_TOKENIZER)), Path(hf_hub_download(repo, files[0]))
    except Exception as error:  # as above
        raise ValueError(
            f"official = {name!r}: not fetched from the Hugging Face hub ({first_line(error)}); get by other means\n"
            f"  {constants.ENDPOINT}/{VAR_REPO}/resolve/main/{OFFICIAL_TOKENIZER}\n"
            f"  {constants.ENDPOINT}/{repo}/resolve/main/{generator}\n"
            f"and run  mvar convert --tokenizer {OFFICIAL_TOKENIZER} --generator {generator} --out DIR"
        ) from error
    several = f"{repo} has {len(files)} files for depth {depth}, of {', '.join(published)}"
    raise ValueError(f"official = {name!r}: {several}; download the right one and give it by --generator")
