"""Filters and pages of the describing calls, stricter than moto's: an unknown filter is an error, as in AWS."""

import fnmatch
from typing import Any, Callable, Iterable

from errors import CloudError

Reader = Callable[[Any], Any]


def filtered(
    items: Iterable[Any],
    filters: list[dict[str, Any]],
    readers: dict[str, Reader],
    tags: Callable[[Any], dict[str, str]],
) -> list[Any]:
    """Those that fit every filter; values may hold `*` and `?`."""
    chosen = list(items)
    for wanted in filters or []:
        name, values = wanted.get("Name", ""), wanted.get("Values") or []
        reader = _reader(name, readers, tags)
        chosen = [item for item in chosen if _fits(reader(item), values)]
    return chosen


def _reader(name: str, readers: dict[str, Reader], tags: Callable[[Any], dict[str, str]]) -> Reader:
    if name.startswith("tag:"):
        return lambda item: tags(item).get(name[4:])
    if name == "tag-key":
        return lambda item: list(tags(item))
    if name == "tag-value":
        return lambda item: list(tags(item).values())
    if name not in readers:
        raise CloudError("InvalidParameterValue", f"The filter '{name}' is invalid")
    return readers[name]


def _fits(found: Any, values: list[str]) -> bool:
    candidates = found if isinstance(found, (list, tuple, set)) else [found]
    return any(
        candidate is not None
        and (str(candidate) == value or fnmatch.fnmatchcase(str(candidate), _pattern(value)))
        for candidate in candidates
        for value in values
    )


def _pattern(value: str) -> str:
    return value.replace("[", "[[]")


def page(items: list[Any], token: str | None, size: int | None, most: int) -> tuple[list[Any], str | None]:
    """A page and the token of the next one, which is a place in the list: what comes or goes in between shifts it."""
    size = min(size or most, most)
    try:
        start = int(token.removeprefix("page-")) if token else 0
    except ValueError as error:
        raise CloudError("InvalidNextToken", f"The token '{token}' is invalid") from error
    end = start + size
    return items[start:end], (f"page-{end}" if end < len(items) else None)


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
