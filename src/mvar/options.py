"""What a command is given, as one list of words: the options of YAML files, then those that were typed.

A file's options stand before the typed ones in the form in which they would be typed, so that a value means the same in
both places and what is typed wins.
"""

import json
import os
import re
import stat
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mvar.settings import raise_problems
from mvar.text import join_names

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 2**20, 10_000, 16  # of a YAML file
NAMES = ("labels", "reports", "against")  # text that holds names with commas between them: a YAML list joins them
DECISIVE = ("preset", "init_from")  # the other options of a training run start from them
NULL = "null"


class Option(NamedTuple):
    """One option of a command.

    Attributes:
        type: as its function declares it; None where it holds others, as model does model.depth.
        default: None where there is none.
    """

    type: Any
    default: Any = None


def gathered(options: Mapping[str, Option], typed: Sequence[str]) -> list[str]:
    """The words of a command with --name=value for all that has a value, those of YAML files first.

    Args:
        options: what the command knows, by name.
        typed: what follows the command's name.

    Returns:
        Of what is given several times, the last alone.

    Raises:
        ValueError: a line for each thing that is wrong with a file, or two files or words that contradict each other.
    """
    typed = _joined(typed, ["config", *options])
    files = ["config", *(name for name, option in options.items() if option.type is None)]
    words = [word for name in files for path in values_of(typed, name) for word in _of_file(path, name, options)]
    words += [word for word in typed if word.partition("=")[0][2:] not in files or "=" not in word]
    for name in DECISIVE if len(files) > 1 else ():  # a training run
        if len(given := dict.fromkeys(value for value in values_of(words, name) if value != NULL)) > 1:
            raise ValueError(f"{told(name, ' and '.join(given))}: other options start from it; give one of them")
    last = {word.partition("=")[0]: word for word in words}
    return [word for word in words if (name := word.partition("=")[0])[2:] not in options or word is last[name]]


def values_of(words: Iterable[str], name: str) -> list[str]:
    """What an option was given, in order."""
    return [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]


def bracketed(word: str, options: Mapping[str, Option]) -> str:
    """Values with commas in brackets, where the option takes a list: --box=[4,4,8,8], --sides=[1,2,[3,4]]."""
    name, equals, value = word.partition("=")
    kinds = kinds_of(options[name[2:]].type) if name[2:] in options else []
    lists = [kind for kind in kinds if _is_list(kind)]
    outside = re.sub(r"\[[^\[\]]*\]", "", value)
    many = "," in outside and not outside.lstrip().startswith("[")
    one = lists == kinds and not value.lstrip().startswith("[") and value.strip() not in ("", "~", NULL)
    return f"{name}{equals}[{value}]" if equals and lists and (many or one) else word


def told(name: str, value: object) -> str:
    """An option with its value, as a message begins, in one line."""
    return f"{name} = {' '.join(str(value).split())}"


def close(names: Iterable[str], known: Iterable[str], before: str = "") -> str:
    """The known options nearest to these, as the end of a message; empty where nothing is near.

    Args:
        before: what each begins with where it is typed.
    """
    near = [before + option for name in names for option in get_close_matches(name, list(known), n=1)]
    return f"; close: {', '.join(near)}" if near else ""


# --- words ---


def _joined(typed: Sequence[str], options: Collection[str]) -> list[str]:
    """--per_class=3 for --per-class 3, --labels=-1,0 for --labels -1,0."""
    words: list[str] = []
    for word in typed:
        if option := re.match(r"--[a-z][\w.+-]*", word):
            words.append("--" + option[0][2:].replace("-", "_") + word[option.end() :])
        elif words and words[-1].startswith("--") and words[-1][2:] in options and word not in ("-h", "--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


# --- types ---


def kinds_of(hint: Any) -> list[Any]:
    """The types that a declared type allows, None apart."""
    if get_origin(hint) is Annotated:
        return kinds_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for member in get_args(hint) for kind in kinds_of(member)]
    return [] if hint is type(None) else [hint]


def expected(hint: Any) -> str:
    """What values of a declared type are, in the words of a user."""
    return " or ".join(dict.fromkeys(map(_words, kinds_of(hint))))


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if not _is_list(kind):
        return _SINGLE.get(kind, "text")
    inner = kinds_of(get_args(kind)[0])
    if get_origin(inner[0]) is Literal:
        some = f"some {_words(inner[0]).removeprefix('one ')}"
    else:
        some = _MANY.get(inner[0], "values")
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        some = f"{len(get_args(kind))} {some}"
    pair = ", [height,width] for a pair" if any(map(_is_list, inner)) else ""
    return f"{some} with commas between them{pair}"


def _is_list(kind: Any) -> bool:
    return isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Sequence)


_SINGLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_MANY = {int: "whole numbers", float: "numbers", bool: "some of true, false"}


# --- YAML ---


class Loader(yaml.SafeLoader):
    """YAML that cannot take more time or memory than its length: no aliases, no tags, bounds on depth and number.

    Raises:
        yaml.MarkedYAMLError: with the line of what is wrong.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._depth += 1
        self._count += 1
        problem = None
        if event.anchor is not None:
            problem = f"has the anchor or alias {event.anchor}, which are not read; write the value out"
        elif event.tag is not None:
            problem = f"has the tag {event.tag}, which is not read; write the value alone"
        elif self._depth > MOST_DEPTH:
            problem = f"is nested deeper than {MOST_DEPTH} levels"
        elif self._count > MOST_VALUES:
            problem = f"has more than {MOST_VALUES:,} values"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


# Numbers as people write them: 1e-3 is one, 1:30 and 010 are not, a date is text.
Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"(?i:true|false|yes|no|on|off)", list("tTfFyYnNoO")),
    ("int", r"[-+]?(0|[1-9](_?[0-9]){0,99}|0x[0-9a-fA-F]{1,50})", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", list("-+.0123456789")),
    ("float", r"[-+]?\.(?i:inf)|\.(?i:nan)", list("-+.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value, 0))


def _of_file(path: str, option: str, options: Mapping[str, Option]) -> list[str]:
    """The options of a YAML file as they would be typed.

    Args:
        option: that named the file: config, or a group whose options the file holds.

    Raises:
        ValueError: a line for each thing that is wrong, with the file's name.
    """
    named = " ".join(f"--{option} {path}".split())
    prefix = "" if option == "config" else f"{option}."
    words: dict[str, str] = {}
    problems = []
    for name, node in _items(_top(path, named), prefix, options):
        try:
            if name in words:
                raise ValueError(f"{name} is given twice; leave one out")
            words[name] = _word(name, node, options)
        except ValueError as error:
            problems.append(f"{named}: {error}")
    raise_problems(problems)
    return list(filter(None, words.values()))


def _top(path: str, named: str) -> MappingNode:
    """What a YAML file holds."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever, a device never end
            raise ValueError(f"{named}: is no file; give a YAML file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ValueError(f"{named}: no such file") from error
    except OSError as error:
        raise ValueError(f"{named}: cannot be read ({error.strerror}); give a YAML file") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{named}: is larger than {MOST_BYTES:,} bytes; give a file with options")
    try:
        node = yaml.compose(content.decode("utf-8-sig"), Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(
            f"{named}: {line}{', '.join(filter(None, (error.context, error.problem)))}; correct the file"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{named}: is no YAML ({' '.join(str(error).split())}); give a YAML file") from error
    if not isinstance(node, MappingNode):
        held = "a list" if isinstance(node, SequenceNode) else "nothing" if node is None or not node.value else "text"
        raise ValueError(f"{named}: holds {held}, expected options by name")
    return node


def _items(node: MappingNode, prefix: str, options: Mapping[str, Option]) -> Iterator[tuple[str, Node]]:
    """The options under a mapping, groups before what they hold."""
    for key, value in node.value:
        name = prefix + (key.value.replace("-", "_") if isinstance(key, ScalarNode) else _text(key))
        yield name, value
        if isinstance(value, MappingNode) and name in options and options[name].type is None:
            yield from _items(value, f"{name}.", options)


def _word(name: str, node: Node, options: Mapping[str, Option]) -> str:
    """An option of a file as it would be typed; empty where it holds others or has no value yet.

    Raises:
        ValueError: one line with the name, the value and the fix.
    """
    text = _text(node)
    if name not in options:
        raise ValueError(f"{told(name, text)}: no such option{close([name], options)}")
    hint, default = options[name]
    if hint is None:
        if isinstance(node, MappingNode):
            return ""
        raise ValueError(f"{told(name, text)}: give its options by name, as in {{vocab_size: 1024}}")
    if name in NAMES and isinstance(node, SequenceNode) and all(isinstance(item, ScalarNode) for item in node.value):
        text = join_names(item.value for item in node.value)
    elif hint is str and text == NULL and default is None:  # as --print-config writes what was not given
        return ""
    elif kinds_of(hint) == [str] and (not isinstance(node, ScalarNode) or (hint is str and text == NULL)):
        raise ValueError(f"{told(name, text)}: give text")
    if _nameless(text):
        raise ValueError(f"{name} = {text!r}: holds a character that no file or class can have in its name")
    return f"--{name}={text}"


def _text(node: Node) -> str:
    """A value as it would be typed."""
    if isinstance(node, SequenceNode):
        return f"[{', '.join(map(_item, node.value))}]"
    if isinstance(node, MappingNode):
        return f"{{{', '.join(f'{_text(key)}: {_item(value)}' for key, value in node.value)}}}"
    return NULL if node.tag == "tag:yaml.org,2002:null" else str(node.value)


def _item(node: Node) -> str:
    """A value inside a list: text in quotes, as it may hold commas and brackets."""
    return json.dumps(node.value, ensure_ascii=False) if node.tag == "tag:yaml.org,2002:str" else _text(node)


def _nameless(text: str) -> bool:
    try:
        return b"\0" in os.fsencode(text)
    except UnicodeEncodeError:
        return True
