"""Lets a docstring describe several parameters in one entry, `train, test: labelled images.`

The readers of Google's style know one name an entry. This extension of griffe gives each name an
entry of its own before the docstring is read, so that a name without a parameter is still noticed.
"""

import re

import griffe

_SECTION = re.compile(r"(Args|Attributes):\s*$")
_ENTRY = re.compile(r"(?P<indent>\s+)(?P<names>\*{0,2}\w+(, \*{0,2}\w+)+):(?P<text>.*)$")


class GroupedParameters(griffe.Extension):
    """Splits the grouped entries of every docstring."""

    def on_object(self, *, obj, **_):
        """Griffe calls this for every object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = split_groups(obj.docstring.value)


def split_groups(docstring):
    """The docstring with an entry for each name.

    Args:
      docstring: without the indentation that all its lines have in common.

    Returns:
      The same where no entry has several names.
    """
    lines, indent, group = [], None, None
    for line in docstring.split("\n"):
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth == 0:
            lines += _split(group)
            group, indent = None, 0 if _SECTION.match(line) else None
        elif line.strip() and indent == 0:
            indent = depth  # of the section's first entry
        entry = _ENTRY.match(line) if indent else None
        if line.strip() and depth == indent:
            lines += _split(group)
            group = [line] if entry else None
        elif group is not None:
            group.append(line)
        if group is None:
            lines.append(line)
    return "\n".join(lines + _split(group))


def _split(group):
    """The lines of an entry once for each of its names; None has no lines."""
    if group is None:
        return []
    entry, rest = _ENTRY.match(group[0]), group[1:]
    blank = []
    while rest and not rest[-1].strip():
        blank.append(rest.pop())
    names = entry["names"].split(", ")
    return [
        line for name in names for line in (f"{entry['indent']}{name}:{entry['text']}", *rest)
    ] + blank
