"""What the manual needs besides mkdocs: the tables of the configuration, and code that breaks well.

The tables of docs/configuration.md are made from the source in which the defaults stand.

The source is read, never run, so that the page can be built without JAX (see
cyclip_jax/runtime/config_help.py). A key without a comment ends the build with its name and line.
"""

import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # mkdocs may have been started anywhere

from cyclip_jax.runtime.config_help import (  # noqa: E402
    ENTRY,
    NOT_SET,
    Undocumented,
    is_config_dict,
    read_sections,
    sentence,
)

DEFAULTS = "cyclip_jax/defaults.py"
FUNCTIONS = ("cyclip_jax/data/parts.py", "cyclip_jax/evals/settings.py")
DEFAULTS_MARKER = "<!-- the defaults -->"
EVALUATIONS_MARKER = "<!-- the evaluations -->"
# Their tables need the room of the table of contents.
WIDE_PAGES = ("faults.md", "quickstart.md", "results.md")
LONGEST_WORD = 30  # characters of code that fit into a line on a phone


def on_page_markdown(markdown, page, config, files):
    """Replaces the markers of a page by tables; mkdocs calls this for every page."""
    del config, files
    if page.file.src_uri in WIDE_PAGES:
        page.meta["hide"] = ["toc"]
    if DEFAULTS_MARKER in markdown or EVALUATIONS_MARKER in markdown:
        path = defaults_path()
        text = path.read_text(encoding="utf-8")
        markdown = markdown.replace(DEFAULTS_MARKER, defaults_table(text, path))
        functions = "".join((ROOT / path).read_text(encoding="utf-8") for path in FUNCTIONS)
        markdown = markdown.replace(EVALUATIONS_MARKER, evaluations_table(functions))
    return markdown


def on_page_content(html, page, config, files):
    """Keeps words of code whole, as `--workdir`: browsers would break them behind a hyphen."""
    del page, config, files
    html = re.sub(r"<td.*?</td>", lambda cell: _whole_words(cell[0]), html, flags=re.DOTALL)
    return _whole_words(html, LONGEST_WORD)


def _whole_words(html, longest=None):
    """Inline code with each word in a span; longer words than `longest` may still break."""

    def mark(code):
        words = re.sub(r"&\w+;", "x", code[1]).split(" ")
        marked = [
            f'<span class="word">{word}</span>'
            if longest is None or len(plain) <= longest
            else word
            for word, plain in zip(code[1].split(" "), words, strict=True)
        ]
        return f"<code>{' '.join(marked)}</code>"

    return re.sub(r"<code>([^<\n]+)</code>", mark, html)


def defaults_path(root=ROOT):
    """The file in which the defaults stand."""
    path = root / DEFAULTS
    if not path.exists() or f"def {ENTRY}(" not in path.read_text(encoding="utf-8"):
        raise Undocumented(f"{DEFAULTS} has no function {ENTRY}()")
    return path


def defaults_table(text, path="the defaults"):
    """The defaults as Markdown: a heading and a table for each section."""
    parts = []
    for section in read_sections(text, path):
        title = f"`{section.name}`" if section.name else "The run"
        anchor = section.name.replace(".", "-") or "run"
        rows = ["| key | default | meaning |", "|---|---|---|"]
        rows += [
            f"| `{key.name}` | {_code(key.default)} | {_escaped(key.meaning)} |"
            for key in section.keys
        ]
        intro = [_escaped(sentence(section.meaning))] if section.meaning else []
        parts.append("\n\n".join([f"### {title} {{ #{anchor} }}", *intro, "\n".join(rows)]))
    return "\n\n".join(parts)


def evaluations_table(text):
    """The functions that give an evaluation's or a mixture's settings, as a Markdown table.

    They are the public ones that take further settings by keyword and make a ConfigDict.
    """
    rows = ["| function | what it returns |", "|---|---|"]
    for function in ast.parse(text).body:
        if isinstance(function, ast.FunctionDef) and function.name != ENTRY:
            makes = any(map(is_config_dict, ast.walk(function)))
            if function.name.startswith("_") or not makes or function.args.kwarg is None:
                continue
            summary = (ast.get_docstring(function) or "").split("\n\n")[0].replace("\n", " ")
            signature = f"{function.name}({ast.unparse(function.args)})"
            rows.append(f"| {_code(signature)} | {_escaped(summary)} |")
    return "\n".join(rows)


def _code(text):
    """A default in a table's cell; what is not set is no code."""
    return text if text.startswith(NOT_SET) else "`{}`".format(text.replace("|", "\\|"))


def _escaped(text):
    """A comment as Markdown: it is prose, in which nothing is markup."""
    for character in ("\\", "*", "<", "[", "|"):
        text = text.replace(character, "\\" + character if character != "<" else "&lt;")
    return text
