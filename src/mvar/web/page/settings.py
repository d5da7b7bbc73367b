"""The inputs that tabs share: model, class, seed, and the settings of sampling, folded away."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from mvar.options.fields import Option, options_of
from mvar.options.values import kinds_of, read
from mvar.sampling.config import SamplingSettings
from mvar.web.api.errors import Problem
from mvar.web.api.prompts import find_class
from mvar.web.messages import Card
from mvar.web.page.asking import Asked

NO_CLASS = -1
MOST_SEED = 2**53 - 1  # above, a browser's numbers are not exact
NEW_SEED = "() => Math.floor(Math.random() * 2 ** 32)"


def _sampling(settings: SamplingSettings) -> None: ...


OPTIONS = options_of(_sampling)  # ranges, choices and help: the command's own


class Controls:
    """Model, class, seed and settings of a drawing.

    Attributes:
        components: whose values `asked` takes, in this order.
    """

    def __init__(self, cards: Mapping[str, Card]) -> None:
        self.cards, first = cards, next(iter(cards.values()))
        self.model = model_choice(cards)
        self.label = class_choice(first)
        with gr.Row(equal_height=True):
            self.seed = seed_choice()
        self.settings = Settings(first)
        self.components = [self.model, self.label, self.seed, *self.settings.components]
        self.model.change(
            lambda name: [class_update(cards[name]), *self.settings.updates(cards[name])],
            self.model,
            [self.label, *self.settings.components],
            show_progress="hidden",
            api_visibility="private",
        )

    def asked(self, values: Sequence[Any]) -> Asked:
        """What these values ask for.

        Raises:
            ValueError: a line for each setting that is wrong.
        """
        model, label, seed, *settings = values
        card = self.cards[model]
        return asked(card, chosen_class(card, label), seed, settings)


class Settings:
    """The settings of sampling, folded away."""

    def __init__(self, card: Card, title: str = "Settings", open: bool = False) -> None:
        with gr.Accordion(title, open=open):
            self.components = [_control(option, card.defaults[name]) for name, option in OPTIONS.items()]

    def updates(self, card: Card) -> list[Any]:
        """The values of another model."""
        return [gr.update(value=_shown(option, card.defaults[name])) for name, option in OPTIONS.items()]


def asked(card: Card, label: int | None, seed: float | None, settings: Sequence[Any]) -> Asked:
    """What these values of controls ask a model for; raises ValueError with a line for each that is wrong."""
    if seed is None or not (0 <= seed <= MOST_SEED and seed == int(seed)):
        given = "is empty" if seed is None else f"is {seed:g}"
        raise ValueError(f"seed {given}: give a whole number from 0 to {MOST_SEED:,}, or press New seed")
    found = {}
    for (name, option), value in zip(OPTIONS.items(), settings, strict=True):
        found[name] = read(option, value.strip() if isinstance(value, str) else value)
    SamplingSettings(**found).check(len(card.shapes))
    own = {n: value for n, value in found.items() if _shown(OPTIONS[n], value) != _shown(OPTIONS[n], card.defaults[n])}
    return Asked(model=card.name, label=label, seed=int(seed), settings=own)


def model_choice(cards: Mapping[str, Card], label: str = "Model", value: str | None = None) -> gr.Dropdown:
    """A choice among the models, at first of the first; hidden where there is one."""
    names = list(cards)
    return gr.Dropdown(names, value=value or names[0], label=label, visible=len(names) > 1, filterable=False)


def class_choice(card: Card, label: str = "Class") -> gr.Dropdown:
    """A choice among a model's classes, which typing narrows down; `chosen_class` says what its value means."""
    return gr.Dropdown(label=label, info="Type part of a name to search.", allow_custom_value=True, **_classes(card))


def chosen_class(card: Card, value: int | str | None) -> int | None:
    """The index of a class that was chosen, or typed and not chosen; None for no class.

    Raises:
        ValueError: what was typed names no class, or several.
    """
    if isinstance(value, int):
        if value != NO_CLASS and not 0 <= value < len(card.classes):  # chosen before the model was
            raise ValueError("class: is of another model; choose it again")
        return None if value == NO_CLASS else value
    try:
        return find_class(value or "", card.classes)
    except Problem as problem:
        raise ValueError(problem.detail.replace("prompt", "class", 1)) from None


def class_update(card: Card) -> Any:
    """Of a choice among classes, for another model."""
    return gr.update(**_classes(card))


def _classes(card: Card) -> dict[str, Any]:
    any_ = bool(card.classes)
    return {"choices": class_choices(card), "value": 0 if any_ else NO_CLASS, "interactive": any_}


def class_choices(card: Card) -> list[tuple[str, int]]:
    """(name, index) of each class, and of none."""
    twice = {name for name in card.classes if card.classes.count(name) > 1} if card.classes else set()
    names = [f"{name} ({i})" if name in twice else name for i, name in enumerate(card.classes)]
    return [*((name, i) for i, name in enumerate(names)), ("no class", NO_CLASS)]


def seed_choice() -> gr.Number:
    """A seed, and a button for another one."""
    seed = gr.Number(value=0, label="Seed", scale=3, min_width=120)
    button = gr.Button("New seed", scale=1, min_width=100, size="md")
    button.click(None, None, seed, js=NEW_SEED, api_visibility="private")
    return seed


def class_name(card: Card, label: int | None) -> str:
    """The name of a class index, "no class" for None."""
    return "no class" if label is None else card.classes[label]


def _control(option: Option, value: Any) -> Any:
    kinds = kinds_of(option.hint)
    common: dict[str, Any] = {"label": option.name.replace("_", " "), "info": option.help}
    if kinds == [bool]:
        return gr.Checkbox(value, **common)
    if get_origin(kinds[0]) is Literal:
        return gr.Radio(list(get_args(kinds[0])), value=value, **common)
    return gr.Textbox(_shown(option, value), max_lines=1, **common)


def _shown(option: Option, value: Any) -> Any:
    """A value as a control holds it: a number, or one for each scale, as text."""
    if isinstance(value, (list, tuple)):
        alike = len(set(value)) == 1 and option.name != "guidance"  # one strength would grow, a list is used as it is
        return ",".join(_shown(option, number) for number in (value[:1] if alike else value))
    return f"{value:.15g}" if isinstance(value, float) else value if isinstance(value, (bool, str)) else str(value)
