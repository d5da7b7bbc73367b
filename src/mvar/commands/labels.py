"""Classes as the options --labels and --label name them: see `mvar.sampling.labels`."""

from typing import TYPE_CHECKING

from mvar.sampling import labels

if TYPE_CHECKING:
    from mvar.model import Model


def parse_labels(text: str | None, model: "Model") -> list[labels.Label]:
    """Labels of --labels; see `mvar.sampling.labels.parse_labels`."""
    return labels.parse_labels(text, model.classes)


def parse_label(text: str | None, model: "Model") -> labels.Label:
    """The label of --label; see `mvar.sampling.labels.parse_label`."""
    return labels.parse_label(text, model.classes)
