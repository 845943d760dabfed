"""What docstrings need to read well on the site: doctests as code, and comments of fields as their text."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.M)
_FIELD_COMMENT = re.compile(r"^\s*\w+\s*:[^#]*#\s*(.+)$")


class SiteDocstrings(griffe.Extension):
    """Fence doctests, and document the fields of named tuples with the comments beside them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turn each block of a docstring that starts with `>>>` into a fenced one."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Give a field without a docstring the comment at the end of its line."""
        comment = _FIELD_COMMENT.match(attr.source.splitlines()[-1]) if attr.source else None
        if comment and attr.docstring is None:
            text = comment[1][:1].upper() + comment[1][1:]
            attr.docstring = griffe.Docstring(text, parent=attr, lineno=attr.lineno)
