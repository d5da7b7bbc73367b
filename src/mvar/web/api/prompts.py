"""Which model, class and size a request means. Without torch."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from unicodedata import combining, normalize

from mvar.sampling.labels import label_ids, parse_label
from mvar.text import Names, clean, some
from mvar.web.api.errors import Problem
from mvar.web.messages import Card
from mvar.web.service import Service

ALIAS = re.compile(r"|default|auto|(dall-e|gpt-image|chatgpt-image)\b.*")  # what OpenAI's clients send by default
WORD = re.compile(r"[^\W_]+")
INDEX = re.compile(r"-?[0-9]{1,20}")
MOST_SOUGHT, MOST_WORDS = 40, 4  # characters and words of a prompt that are compared with the names, as this is slow
SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


def find_model(name: str, service: Service) -> str:
    """The name of a model that is served.

    Raises:
        Problem: 404 where there is none.
    """
    known = list(service.hosts)
    if name in known:
        return name
    if ALIAS.fullmatch(name):
        return known[0]
    raise Problem(404, f"model = {name!r}: not served; choose from {', '.join(known)}", "model", "model_not_found")


def check_size(size: str, card: Card) -> str:
    """The model's size as a response says it.

    Raises:
        Problem: not a valid size.
    """
    own = f"{card.size[1]}x{card.size[0]}"
    if size != "auto" and not SIZE.fullmatch(size):
        raise Problem(400, f"size = {size!r}: give auto, or width and height such as {own}", "size")
    return own


def find_class(prompt: str, classes: Sequence[str]) -> int | None:
    """The class that a prompt names: by index, by name, or the longest name whose words occur in it.

    Returns:
        its index; None for no class: the prompt is empty or -1, or the model has no classes.

    Raises:
        Problem: no class, or several.
    """
    if not classes or not (prompt := clean(prompt)) or prompt == "-1":
        return None
    try:
        if INDEX.fullmatch(prompt) or Names(classes).find(prompt):
            return label_ids([parse_label(prompt, classes)], classes, len(classes))[0]
    except ValueError as error:
        raise Problem(400, str(error).replace("labels has", "prompt ="), "prompt") from error
    words = _words(prompt)
    places = defaultdict[str, set[int]](set)
    for i, word in enumerate(words):
        for singular in _singulars(word):
            places[singular].add(i)
    found = [i for i, name in enumerate(classes) if _occurs(_words(name), places)]
    longest = max((len(classes[i]) for i in found), default=0)
    found = [i for i in found if len(classes[i]) == longest]
    if len(found) == 1:
        return found[0]
    if found:
        names = some([f"{classes[i]} ({i})" for i in found])
        raise Problem(400, f"prompt = {prompt!r}: names several classes: {names}; name one", "prompt")
    folded = {name.casefold(): name for name in classes}
    sought = [prompt.casefold()[:MOST_SOUGHT], *words[:MOST_WORDS]]
    close = [folded[match] for word in sought for match in get_close_matches(word, folded, n=3)]
    hint = f"close: {some(list(dict.fromkeys(close)))}" if close else f"known: {some(classes, 10)}"
    raise Problem(400, f"prompt = {prompt!r}: names no class; {hint}", "prompt")


def _words(text: str) -> list[str]:
    """In lower case and without accents."""
    return WORD.findall("".join(c for c in normalize("NFKD", text.casefold()) if not combining(c)))


def _occurs(name: Sequence[str], places: Mapping[str, set[int]]) -> bool:
    """Whether a name's words stand side by side, by the places of all words."""
    if not name or any(word not in places for word in name):
        return False
    return bool(set.intersection(*({i - j for i in places[word]} for j, word in enumerate(name))))


def _singulars(word: str) -> set[str]:
    """The word, and what it may be the plural of."""
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}
