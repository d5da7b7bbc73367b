"""How every setting is written: once, as a field of a frozen dataclass whose type says which values it takes.

    @settings
    class Noise:
        seed: Seed = 0
        strength: Annotated[float, Real(0, 1)] = 0.5

    Noise(seed=-1, strength=2.0)   # ValueError: seed = -1: must lie in 0 to ..., strength = 2.0: must lie in [0, 1]

pydantic does the checking, so that a service can use the same classes. All that is wrong with the fields is reported at
once, a line each: "field = value: what is wrong; how to fix it".
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, GetCoreSchemaHandler, ValidationError, validate_call
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import CoreSchema, core_schema

Class = TypeVar("Class", bound=type)


class Wrong(ValueError):
    """What is wrong with one number of a setting, which may be a list."""

    def __init__(self, value: object, text: str) -> None:
        super().__init__(text)
        self.value = value


class Rule:
    """What a type says of the values of a setting, before pydantic converts them.

    Attributes:
        text: the same in words.
    """

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.checked, handler(source))

    def checked(self, value: Any) -> Any:
        """The value, or `Wrong`."""
        raise NotImplementedError


class Whole(Rule):
    """Takes whole numbers in [least, most], and lists of them; True, 32.0 and "32" are none."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self.text = f"must lie in {least} to {most:,}"

    def checked(self, value: Any) -> Any:
        for number in _each(value):
            if not is_integer(number):
                raise Wrong(number, "must be an integer")
            if not self.least <= number <= self.most:
                raise Wrong(number, self.text)
        return int(value) if is_integer(value) else value


class Real(Rule):
    """Takes finite numbers in an interval, and lists of them; `text` says which in a message."""

    def __init__(
        self, least: float = -math.inf, most: float = math.inf, *, open: str = "", text: str | None = None
    ) -> None:
        """Args:
        least, most: bounds.
        open: "(" where the least is outside, ")" where the most is.
        text: in place of the one that follows from the bounds.
        """
        self.least, self.most, self.open = least, most, open
        if text is not None:
            self.text = text
        elif math.isinf(most):
            self.text = f"must be above {least:g}" if "(" in open else f"must be {least:g} or more"
        else:
            self.text = f"must lie in {'(' if '(' in open else '['}{least:g}, {most:g}{')' if ')' in open else ']'}"

    def checked(self, value: Any) -> Any:
        for number in _each(value):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise Wrong(number, "must be a number")
            if not abs(number) < math.inf:  # NaN too
                raise Wrong(number, "must be a finite number")
            above = self.least < number if "(" in self.open else self.least <= number
            below = number < self.most if ")" in self.open else number <= self.most
            if not (above and below):
                raise Wrong(number, self.text)
        return value


class TrueOrFalse(Rule):
    """Takes booleans alone, and lists of them."""

    text = "must be true or false"

    def checked(self, value: Any) -> Any:
        for one in _each(value):
            if not isinstance(one, bool):
                raise Wrong(one, self.text)
        return value


MANY = 10**9
Switch = Annotated[bool, TrueOrFalse()]
Seed = Annotated[int, Whole(0, 2**63 - 1)]
Count = Annotated[int, Whole(1, 1_000_000)]
Several = Annotated[int, Whole(2, 1_000_000)]
Counts = Annotated[int | list[int], Whole(1, 1_000_000)]
Candidates = Annotated[int, Whole(1, 100_000)]
Many = Annotated[int, Whole(1, MANY)]
Place = Annotated[int, Whole(0, 63)]  # of a scale, or a number of scales
Places = Annotated[int | list[int], Whole(0, 63)]
Pixels = Annotated[list[int], Whole(0, 1_000_000)]
Size = Annotated[int, Whole(8, 1024)]  # of a square image
Feather = Annotated[int, Whole(0, 100_000)]
ResizeFactor = Annotated[float, Real(1, 4)]  # size of an image before it is cropped over the size after it
Augmentation = Literal["shift", "scale", "flip"]  # what else changes in each epoch; see mvar.data.views
Share = Annotated[float, Real(0, 1)]
PartialShare = Annotated[float, Real(0, 1, open=")")]
Weight = Annotated[float, Real(0)]
Positive = Annotated[float, Real(0, open="(")]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: Class) -> Class:
    """A frozen dataclass with keyword arguments, whose fields are checked against their types.

    What `__post_init__` finds wrong with several fields together it raises as a ValueError, a line for each problem.
    """
    made: Any = checked_dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    init = made.__init__

    @functools.wraps(init)
    def checked_init(self: Any, **values: Any) -> None:
        try:
            init(self, **values)
        except ValidationError as error:
            raise ValueError("\n".join(_problems(made, error))) from None

    made.__init__ = checked_init
    return made


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its arguments checked against their types as those of settings are."""
    call = validate_call(function)

    @functools.wraps(function)
    def checked_call(*args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except ValidationError as error:
            raise ValueError("\n".join(_problems(type(None), error))) from None

    return checked_call


def check(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError where a value is given that its type, such as `Count`, does not take."""
    for rule in kind.__metadata__:
        try:
            rule.checked(value)
        except Wrong as wrong:
            raise ValueError(f"{name} = {wrong.value!r}: {wrong}") from None


def _problems(cls: type, error: ValidationError) -> list[str]:
    """A line for each field that is wrong, of a union's kinds the first."""
    found: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        name = _name(cls, problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        if name in found:
            continue
        if isinstance(cause, Wrong):
            found[name] = [f"{name} = {cause.value!r}: {text(problem)}"]
        elif cause is not None:  # of __post_init__
            found[name] = [f"{name}.{line}" if name else line for line in str(cause).splitlines()]
        elif problem["type"] == "unexpected_keyword_argument":
            found[name] = [f"{name}: no such setting"]
        elif problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            found[name] = [f"{name}: is missing"]
        else:
            found[name] = [f"{name} = {problem['input']!r}: {text(problem)}"]
    return [line for lines in found.values() for line in lines]


def text(problem: Mapping[str, Any]) -> str:
    """What is wrong, in words, by one of pydantic's errors."""
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Wrong):
        return str(cause)
    texts = {
        "literal_error": "choose from {}".format(problem.get("ctx", {}).get("expected", "").replace("'", "")),
        "int_type": "must be an integer",
        "float_type": "must be a number",
        "string_type": "give text",
        "list_type": "give a list",
        "tuple_type": "give a list",
    }
    return texts.get(problem["type"], problem["msg"][:1].lower() + problem["msg"][1:])


def _name(cls: Any, place: Iterable[str | int]) -> str:
    """The field's name, after those of the settings that it belongs to; what follows is a place in a list or a type."""
    names = []
    for part in place:
        names.append(str(part))
        field = getattr(cls, "__pydantic_fields__", {}).get(part)
        if field is None or not dataclasses.is_dataclass(field.annotation):
            break
        cls = field.annotation
    return ".".join(names)


def _each(value: Any) -> Iterator[Any]:
    """The numbers of a setting: of lists all, of a value that was left out none."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _each(part)
    elif value is not None:
        yield value


def is_integer(value: object) -> bool:
    """Whether a value is an integer, numpy's too; True, 32.0 and "32" are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one ValueError that lists every problem on its own line; do nothing when there are none."""
    if lines := list(problems):
        raise ValueError("\n".join(lines))


def ordered(augment: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """Each augmentation once, in a fixed order."""
    return tuple(part for part in get_args(Augmentation) if part in augment)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given: None stands for one that was left out."""
    return {name: value for name, value in options.items() if value is not None}
