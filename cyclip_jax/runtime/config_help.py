"""Reads what the fields of a config mean from the source in which the defaults stand.

The source is read, never run. Every key needs a comment, behind it or on the lines above it.
"""

import ast
import dataclasses
import io
import os
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENTRY = "get_config"
NOT_SET = "not set"


class Undocumented(ValueError):
    """Keys without a comment, or a source that this reader does not understand."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Attributes:
      name: the key with its sections, such as "model.name".
      default: the default as it is written, or what a placeholder stands for.
      meaning: the comment.
    """

    name: str
    default: str
    meaning: str


@dataclasses.dataclass
class Section:
    """A group of keys.

    Attributes:
      name: "" for the top level, else such as "model".
      meaning: the comment on the section itself; it may be empty.
      keys: the section's keys.
    """

    name: str
    meaning: str = ""
    keys: list[Key] = dataclasses.field(default_factory=list)


def read_sections(text: str, path: str | os.PathLike[str] = "the defaults") -> list[Section]:
    """Reads every key of get_config() with its default and its comment.

    The function may set all keys itself, or take a section from another function of the file that
    makes a ConfigDict, sets keys and returns it. Either may call a function of the file that sets
    keys of the ConfigDict that it is given.

    Args:
      text: the source.
      path: where the source lies, for messages.

    Returns:
      The sections that have keys, the top level first.

    Raises:
      Undocumented: a key has no comment, or the file has no get_config().
    """
    reader = _Reader(text)
    if ENTRY not in reader.functions:
        raise Undocumented(f"{path} has no function {ENTRY}()")
    reader.read_function(reader.functions[ENTRY], Section(""))
    sections = [section for section in reader.sections if section.keys]
    missing = [
        f"{key.name} (line {reader.lines[key.name]})"
        for section in sections
        for key in section.keys
        if not key.meaning
    ]
    if missing:
        raise Undocumented(f"{path}: a comment must say what these keys mean: {', '.join(missing)}")
    if not sections:
        raise Undocumented(f"{path}: {ENTRY}() sets no key")
    return sections


class _Reader:
    """Walks through the functions of a source."""

    def __init__(self, text):
        tree = ast.parse(text)
        self.text = text
        self.functions = {
            node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)
        }
        self.imports = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        self.above, self.beside = _comments(text)
        self.sections, self.lines = [], {}

    def read_function(self, function, section):
        """Reads the statements of a function whose returned ConfigDict is `section`."""
        self.sections.append(section)
        returned = next(
            (
                node.value.id
                for node in ast.walk(function)
                if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
            ),
            None,
        )
        self.read_statements(function, {returned: section} if returned else {}, section)

    def read_statements(self, function, names, section):
        """Reads a function in which ConfigDicts have these names."""
        for node in function.body:
            if isinstance(node, ast.Return) and is_config_dict(node.value):
                self.read_arguments(node.value, section)
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                node = ast.copy_location(ast.Assign([node.target], node.value), node)
            if isinstance(node, ast.Assign):
                self.read_assignment(node, names)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self.read_call(node.value, names)

    def read_call(self, call, names):
        """One `_add_keys(a)`, where the function of this file sets keys of its argument."""
        function = self.functions.get(call.func.id) if isinstance(call.func, ast.Name) else None
        given = [names.get(arg.id) for arg in call.args if isinstance(arg, ast.Name)]
        if function is not None and len(given) == 1 and given[0] is not None:
            (argument,) = function.args.args
            self.read_statements(function, {argument.arg: given[0]}, given[0])

    def read_assignment(self, node, names):
        """One `a.b = c = value`: a key, or a section, which then has the other names too."""
        locals_ = [target.id for target in node.targets if isinstance(target, ast.Name)]
        keys = [key for key in map(_dotted, node.targets) if key and key[0] in names]
        if not keys:
            # The ConfigDict that is returned, or a local value of no interest.
            if any(name in names for name in locals_) and is_config_dict(node.value):
                self.read_arguments(node.value, names[locals_[0]])
            return
        section = names[keys[0][0]]
        name = _joined(section, *keys[0][1:])
        function = self.section_function(node.value)
        filled = is_config_dict(node.value) and (node.value.args or node.value.keywords)
        if function is None and not (is_config_dict(node.value) and (locals_ or filled)):
            owner = self.section_of(keys[0], section)
            self.add(owner, name, node.value, self.comment(node))
            return
        inner = Section(name, self.comment(node))
        names.update(dict.fromkeys(locals_, inner))
        if function is not None:
            inner.meaning = inner.meaning or (ast.get_docstring(function) or "").split("\n\n")[0]
            self.read_function(function, inner)
        else:
            self.sections.append(inner)
            self.read_arguments(node.value, inner)

    def section_of(self, dotted, section):
        """The section of `config.model.name`, where config is the top level."""
        if len(dotted) == 2:
            return section
        name = _joined(section, *dotted[1:-1])
        for known in self.sections:
            if known.name == name:
                return known
        self.sections.append(Section(name))
        return self.sections[-1]

    def section_function(self, value):
        """The function of this file that a call takes a whole section from, or None."""
        if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
            return None
        function = self.functions.get(value.func.id)
        if function is None:
            return None
        arguments = function.args
        if len(arguments.args) > 1 or arguments.kwarg or arguments.vararg:
            return None
        makes = any(
            is_config_dict(node.value)
            for node in function.body
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Return) and node.value is not None
        )
        return function if makes else None

    def read_arguments(self, call, section):
        """The keys of ConfigDict({"a": 1}) and ConfigDict(dict(a=1))."""
        for argument in call.args:
            if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Name):
                self.read_arguments(argument, section)
            elif isinstance(argument, ast.Dict):
                for key, value in zip(argument.keys, argument.values, strict=True):
                    if isinstance(key, ast.Constant):
                        self.read_entry(key.value, value, key, section)
        for keyword in call.keywords:
            if keyword.arg:
                self.read_entry(keyword.arg, keyword.value, keyword, section)

    def read_entry(self, key, value, node, section):
        """One entry of a ConfigDict that is written as a dict."""
        name = _joined(section, key)
        comment = self.comment(node)
        function = self.section_function(value)
        if function is not None:
            self.read_function(function, Section(name, comment))
        elif is_config_dict(value) and (value.args or value.keywords):
            self.sections.append(Section(name, comment))
            self.read_arguments(value, self.sections[-1])
        else:
            self.add(section, name, value, comment)

    def add(self, section, name, value, meaning):
        """Enters a key."""
        section.keys.append(Key(name, self.default(value), meaning))
        self.lines[name] = value.lineno

    def comment(self, node):
        """What stands above a statement and beside its lines."""
        above, line = [], node.lineno - 1
        while line in self.above:
            above.insert(0, self.above[line])
            line -= 1
        beside = [
            comments[line]
            for line in range(node.lineno, node.end_lineno + 1)
            for comments in (self.beside, self.above)
            if line in comments
        ]
        if not above or not beside:
            return " ".join(above + beside)
        return f"{sentence(' '.join(above))} {' '.join(beside)}"

    def default(self, value):
        """A default as a reader sees it."""
        if _called(value) == "placeholder":
            kind = ast.unparse(value.args[0]) if value.args else "object"
            return NOT_SET if kind == "object" else f"{NOT_SET} ({kind})"
        if is_config_dict(value):
            return "{}"
        if isinstance(value, ast.Name) and value.id in self.imports:
            return _constant(*self.imports[value.id]) or value.id
        return ast.get_source_segment(self.text, value) or ast.unparse(value)


def _joined(section, *names):
    """The full name of what a section holds."""
    return ".".join([section.name, *names] if section.name else names)


def _comments(text):
    """({line: comment that has the line to itself}, {line: comment behind code})."""
    above, beside = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            is_alone = not token.line[: token.start[1]].strip()
            comment = token.string.lstrip("#").strip()
            (above if is_alone else beside)[token.start[0]] = comment
    return above, beside


def _dotted(target):
    """["config", "model", "name"] of config.model.name; [] where it is nothing of the kind."""
    parts = []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    return [target.id, *parts] if parts and isinstance(target, ast.Name) else []


def _called(value):
    """The last name of what is called: "ConfigDict" of ml_collections.ConfigDict()."""
    function = value.func if isinstance(value, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def is_config_dict(value: ast.expr | None) -> bool:
    """Whether an expression makes a ConfigDict."""
    return _called(value) == "ConfigDict"


def _constant(module, name):
    """How a constant is written in another module of the package; None where it cannot be told."""
    path = ROOT / (module or "").replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            for node in ast.parse(candidate.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id == name for target in node.targets
                ):
                    return ast.unparse(node.value)
    return None


def sentence(text: str) -> str:
    """The text, with a full stop where it does not end with a mark of its own."""
    return text if not text or text[-1] in ".!?" else f"{text}."
