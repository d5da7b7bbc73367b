"""The fields of requests, in OpenAI's names where these exist. Unknown fields are refused; null means left out."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_type_hints

from docstring_parser import parse
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)

from mvar.sampling.config import SamplingSettings
from mvar.settings import Place, Seed, Switch, Whole, text
from mvar.web.api.errors import Problem
from mvar.web.messages import FEW_MAPS

MOST_IMAGES = 10  # of a request
MOST_TEXT = 4000  # characters of a field
NAMES = {"guidance": "guidance_scale"}  # in requests, where it is not the setting's own
Text = Annotated[str, Field(max_length=MOST_TEXT)]
Format = Literal["png", "jpeg", "webp"]
IGNORED = "Accepted for OpenAI's clients; has no effect."


class Parameters(BaseModel):
    """The fields of a request; what is wrong with one of them is a `Problem`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, values: Any, handler: ModelWrapValidatorHandler["Parameters"]) -> "Parameters":
        if not isinstance(values, Mapping):
            raise Problem(400, "body: send a JSON object", None, "invalid_body")
        try:
            return handler({name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
        name = str(found["loc"][0]) if found["loc"] else None
        if found["type"] == "extra_forbidden":
            close = get_close_matches(str(name), cls.model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(cls.model_fields)}"
            raise Problem(400, f"{name}: no such parameter; {hint}", name, "unknown_parameter")
        if found["type"] == "missing":
            raise Problem(400, f"{name}: is missing", name, "missing_parameter")
        raise Problem(400, f"{name} = {found['input']!r}: {text(found)}", name)


def _sampling() -> type[Parameters]:
    """The sampling settings as fields, each None where the model's own holds."""
    helps = {
        one.arg_name: " ".join((one.description or "").split()) for one in parse(SamplingSettings.__doc__ or "").params
    }
    hints, found = get_type_hints(SamplingSettings, include_extras=True), {}
    for field in fields(SamplingSettings):
        hint = hints[field.name]
        rules = [rule.text for rule in getattr(hint, "__metadata__", ())]
        about = f"{helps[field.name]} {'; '.join(rules)}".strip()
        found[NAMES.get(field.name, field.name)] = (hint, Field(default=None, description=about))
    return create_model("Sampling", __base__=Parameters, **found)  # type: ignore[call-overload]


Sampling: Any = _sampling()


class Drawn(Sampling):
    """Fields of all requests that draw images."""

    model: Text = Field("", description="A name of /v1/models; left out, or one of OpenAI's, it is the first of them.")
    n: Annotated[int, Whole(1, MOST_IMAGES)] = Field(1, description=f"How many images: 1 to {MOST_IMAGES}.")
    seed: Seed | None = Field(
        None, description="The same seed gives the same images; chosen and returned where left out."
    )
    speed: Literal["full", "fast"] = Field("full", description="fast: no guidance at the finest scale.")
    size: Text = Field("auto", description="auto or WxH. Images have the model's size, which the response says.")
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="url: for generations only.")
    output_format: Format = "png"
    output_compression: Annotated[int, Whole(0, 100)] = Field(100, description="Quality of jpeg and webp; 0 to 100.")
    stream: Switch = Field(False, description="Send unfinished images as events, then the finished ones.")
    partial_images: Place | None = Field(None, description="How many unfinished images; one a scale where left out.")
    user: Text = Field("", description=IGNORED)
    quality: Text = Field("auto", description=IGNORED)
    background: Text = Field("auto", description=IGNORED)
    moderation: Text = Field("auto", description=IGNORED)

    def settings(self) -> dict[str, Any]:
        """The sampling settings that were given."""
        values = {field.name: getattr(self, NAMES.get(field.name, field.name)) for field in fields(SamplingSettings)}
        return {name: value for name, value in values.items() if value is not None}


class Generation(Drawn):
    """Draw images of a class."""

    prompt: Text = Field(description="A class's name or index, or a sentence with a class's name; -1 for no class.")
    style: Text = Field("", description=IGNORED)


class Edit(Drawn):
    """Repaint a part of an image."""

    prompt: Text = Field("", description="As for generations; left out, the surroundings decide.")
    paste: Switch = Field(True, description="Keep the image's size, and all pixels more than 4 from the mask exactly.")
    input_fidelity: Text = Field("", description=IGNORED)


class Variation(Drawn):
    """Keep the coarse token maps of an image and draw the finer ones again."""

    prompt: Text = Field("", description="As for generations; left out, the image has no class.")
    from_scale: Place | None = Field(None, description="How many maps are kept; half of them where left out.")


class Scoring(Parameters):
    """Say how likely a model finds an image."""

    model: Text = ""
    prompt: Text = Field("", description="The image's class, as for generations; left out, it has none.")


class Classifying(Parameters):
    """Name the class of an image."""

    model: Text = ""
    scales: Annotated[int, Whole(1, 64)] | None = Field(
        None,
        description=f"How many token maps are used, from the coarsest; at most {FEW_MAPS} by default.",
    )
    top: Annotated[int, Whole(1, 1000)] = Field(5, description="How many classes the response names.")


def from_form(kind: type[Parameters], texts: Mapping[str, str]) -> Any:
    """The fields of a form, whose numbers and switches are text."""
    values: dict[str, Any] = {}
    for name, value in texts.items():
        hint = kind.model_fields[name].annotation if name in kind.model_fields else str
        values[name] = value
        if hint is not str:
            with suppress(ValueError, RecursionError):
                values[name] = json.loads(value)
    return kind.model_validate(values)


def described(kind: type[Parameters], **files: str) -> dict[str, Any]:
    """The OpenAPI of a form with these fields, and files with these descriptions; the first is required."""
    schema = kind.model_json_schema()
    schema["properties"] |= {
        name: {"type": "string", "format": "binary", "description": about} for name, about in files.items()
    }
    schema["required"] = [next(iter(files)), *schema.get("required", [])]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
