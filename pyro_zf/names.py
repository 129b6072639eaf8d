"""Messages about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "there_are"]


def nearest(name: str, known: Iterable[str], form: str = "{}") -> str:
    """The end of a message about an unknown name: the closest known name, or nothing.

    Example:
        >>> nearest("gausian", ["gaussian", "mixture"])
        '; did you mean gaussian?'
        >>> nearest("x", ["gaussian", "mixture"])
        ''
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {form.format(near[0])}?" if near else ""


def there_are(name: str, known: Iterable[str]) -> str:
    """Message for an unknown name, with the known names and the closest one.

    Example:
        >>> there_are("gausian", ["gaussian", "mixture"])
        'gausian: must be one of gaussian, mixture; did you mean gaussian?'
    """
    names = list(known)
    return f"{name}: must be one of {', '.join(names)}{nearest(name, names)}"
