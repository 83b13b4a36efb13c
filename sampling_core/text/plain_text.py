"""What others wrote, as part of a line that a person reads: one line, no control characters, no keys, not too long.

Names of fields and files, values, prompts, what a store, a server or a library says: an error, a log line or a line on
a terminal repeats it only through here. Markdown has signs of its own that must be taken from it: `tasks.ui.markdown`.
"""

from __future__ import annotations

import base64
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

HIDDEN = "…"
"""Stands for a key, and for what was cut off."""

MOST = 200
"""Characters of somebody else's text in a line, unless more is asked for."""

_LONGEST_LINE, _MOST_LINES = 1000, 200

_SHORTEST_KEY = 6
"""A shorter key is not looked for: it would be found in words that are none."""

_keys = set[str]()
"""Keys of this process, as they are and as they are sent. Errors of libraries may repeat them anywhere."""


def hide(keys: Iterable[str], addresses: Iterable[str] = ()) -> None:
    """From now on these keys, and the passwords in these URLs, never appear in what `redacted` returns."""
    passwords = [address.partition("://")[2].rpartition("@")[0].partition(":")[2] for address in addresses]
    # A library that takes such an address apart at the wrong place repeats a part of the password.
    parts = [part for password in passwords for part in re.split("[/?#:@]", password)]
    for key in [*map(str.strip, keys), *passwords, *parts]:
        if len(key) >= _SHORTEST_KEY:
            # As it is, in a URL, and as HTTP's basic authentication sends it.
            _keys.update((key, quote(key, safe=""), base64.b64encode(key.encode(errors="replace")).decode()))


def one_line(text: object, most: int = MOST) -> str:
    """Text of others in one line of at most `most` characters, blanks and line ends as single blanks."""
    return _cut(visible(_cut(_one_line(str(text)), most)), most)


def plain(text: object, most: int = MOST) -> str:
    """The same without keys: for what may have an address in it."""
    return one_line(redacted(str(text)), most)


def plain_path(path: object, most: int = MOST) -> str:
    """A path, or the dotted name of a field: of one that is too long the middle is cut out, its end says most."""
    text = redacted(str(path))
    if len(text) > most:
        text = f"{text[: most // 2]}{HIDDEN}{text[1 - most // 2 :]}"
    return _cut(visible(text), most)


def plain_name(name: str) -> str:
    """What somebody has called a file, a folder or a place, in quotes only where it would fall apart without."""
    text = plain_address(name) if _ADDRESS.match(name) else plain_path(name)
    return text if text and not any(map(str.isspace, text)) else f"'{text}'"


def plain_address(url: object) -> str:
    """A URL without user, password and the values of its query, whatever blanks are in these."""
    return _cut(visible(_address(_without_keys(str(url)))), MOST)


def plain_value(value: object, most: int = 80) -> str:
    """A value's repr, with text in quotes and numbers without; the value may be nested without end."""
    shortener = _RedactedRepr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = most
    try:
        return _cut(visible(_one_line(shortener.repr(value))), most)
    except ValueError:
        return "a very long number"


def plain_lines(text: str) -> str:
    """Several lines, such as a traceback: all but the first are indented, so that none passes for another message."""
    lines = [visible(_cut(line, _LONGEST_LINE)) for line in redacted(text).splitlines() or [""]]
    if len(lines) > _MOST_LINES:
        # A traceback begins where the program does, and ends with what went wrong.
        lines[_MOST_LINES // 2 : -_MOST_LINES // 2] = [HIDDEN]
    return "\n  ".join(lines)


def visible(text: str) -> str:
    """Text whose characters are all seen: what steers a terminal, turns writing around or takes no room is spelled.

    Those are control characters (C0, C1), bidirectional overrides, zero-width signs, line separators and halves of
    surrogate pairs. Joiners between letters of other scripts than Latin, and in emoji, belong there and stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(text, i) for i in range(len(text)))


_BLANKS = re.compile(r"[^\S\x1c-\x1f\x85\u2028\u2029]+")
"""Blanks of all kinds and line ends; information separators and line separators are spelled."""
_JOINERS = "\u200c\u200d"
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _one_line(text: str) -> str:
    return _BLANKS.sub(" ", text).strip()


def _spelled(text: str, i: int) -> str:
    letter, around = text[i], text[i - 1 : i] + text[i + 1 : i + 2]
    is_visible = unicodedata.category(letter) not in _UNSEEN
    if letter in _JOINERS and len(around) == 2 and not any(map(str.isascii, around)):
        is_visible = _UNSEEN.isdisjoint(map(unicodedata.category, around))
    return letter if is_visible else letter.encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + HIDDEN


class _RedactedRepr(reprlib.Repr):
    """Redacts keys before a value is cut: half a key would still be shown, and match no known key any more."""

    def repr_str(self, x: str, level: int) -> str:
        # A value that looks like an address is one, whatever blanks and quotes are in its password.
        return super().repr_str(_address(_without_keys(x)) if _ADDRESS.match(x) else redacted(x), level)

    def repr_instance(self, x: object, level: int) -> str:
        try:
            text = redacted(repr(x))
        except Exception:  # noqa: BLE001 - somebody's class; reprlib does the same
            text = f"<{type(x).__name__}>"
        return _cut(text, self.maxother)


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|[^\s:@]*:[^\s@]*@")
_CONTAINER = re.compile(r"(abfss?|az|adl|wasbs?)://[^:/]*@")
"""In Azure's URLs the container stands where others have a user."""
_NAMED_KEY = re.compile(
    r"(signature|credential|security-token|token|secret|passw(?:or)?d|api[_-]?key|accesskeyid|\bsig)=[^\s&,;'\")]+",
    re.IGNORECASE,
)
"""Part of a query, without the URL that it belongs to."""


def redacted(text: str) -> str:
    """Text without this process' keys, and without what may be keys in URLs: users, passwords, queries, fragments."""
    text = _without_keys(text)
    if "://" in text:
        # Not one expression for all of it: on a hostile text that would take time squared.
        text = "".join(_address(part) if "://" in part else part for part in re.split(r"(\s+)", text))
    return _NAMED_KEY.sub(rf"\1={HIDDEN}", text)


def _without_keys(text: str) -> str:
    # The longest first: one may be part of another.
    for key in sorted(_keys, key=len, reverse=True):
        text = text.replace(key, HIDDEN)
    return text


def _address(text: str) -> str:
    """A URL without user, password and the values of its query; scheme, host and path stay."""
    scheme, slashes, rest = text.partition("://") if "://" in text else ("", "", text)
    if _CONTAINER.match(text) is None:
        user, at_sign, place = rest.rpartition("@")
        # A password may have slashes in it, and so may a path have an @; only the one has a colon before it.
        if at_sign and (":" in user or not re.search(r"[/?#]", user)):
            rest = f"{HIDDEN}@{place}"
    place, *query = re.split(r"([?#&])", rest)
    return scheme + slashes + place + "".join(_without_value(part) for part in query)


def _without_value(part: str) -> str:
    name, equals, _ = part.partition("=")
    return part if part in "?#&" else f"{name}={HIDDEN}" if equals else HIDDEN
