"""Programs of the clouds that only record their calls, for the launch scripts' tests."""

import json
import os
import pathlib
import subprocess
import sys

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
PROGRAMS = ("gcloud", "kubectl", "srun", "scontrol", "curl")
_PROGRAM = """#!{python} -IS
import json, pathlib, shutil, sys
folder = pathlib.Path({folder!r})
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
stdin = sys.stdin.read() if argv[-1] == "--filename=-" or "-" in argv else ""
with open(folder / "calls", "a") as file:
    file.write(json.dumps([argv, stdin]) + "\\n")
if argv[1:3] == ["storage", "cp"]:
    bucket = folder / "bucket"
    paths = [(pathlib.Path(word), word.startswith("gs://")) for word in argv[-2:]]
    source, target = (bucket / path.name if is_remote else path for path, is_remote in paths)
    if argv[-2] != "-" and not source.exists():
        sys.exit(1)
    target.write_text(stdin if argv[-2] == "-" else source.read_text())
if "scp" in argv:
    shutil.copy(next(word for word in argv if word.endswith(".tar.gz")), folder / "bucket")
for number, (text, answers) in enumerate(json.loads((folder / "answers").read_text())):
    if text in " ".join(argv):
        given = folder / f"given{{number}}"
        count = int(given.read_text()) if given.exists() else 0
        given.write_text(str(count + 1))
        answer = answers[min(count, len(answers) - 1)]
        if isinstance(answer, int):
            sys.exit(answer)
        stream = sys.stderr if answer.startswith("ERROR") else sys.stdout
        print(answer, file=stream)
        sys.exit(stream is sys.stderr)
"""


class Fakes:
    """A folder of programs on the PATH, what they were called with, and what they answer.

    Args:
      folder: an empty directory.
      answers: {part of a call: answers, one call after the other, the last of them repeated}; an
        answer is what is printed, an error that begins with ERROR, or an exit status. Of several
        parts the first that fits counts.
    """

    def __init__(self, folder, answers=None):
        self._folder = folder
        (folder / "bin").mkdir()
        (folder / "bucket").mkdir()
        (folder / "home").mkdir()
        for name in PROGRAMS:
            path = folder / "bin" / name
            path.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
            path.chmod(0o755)
        self.answer(answers or {})
        self.home, self.bucket = folder / "home", folder / "bucket"

    def answer(self, answers):
        """Sets what is answered from here on, and forgets the calls so far."""
        for path in [*self._folder.glob("given*"), self._folder / "calls"]:
            path.unlink(missing_ok=True)
        (self._folder / "answers").write_text(json.dumps(list(answers.items())))

    def environment(self, **variables):
        """Of a script: this folder's programs and home; nothing of the tester's own."""
        path = f"{self._folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.home), "LC_ALL": "C.UTF-8", **variables}

    def run(self, *command, stdin="", **variables):
        """Runs a command to its end; its output and errors are text."""
        return subprocess.run(
            list(map(str, command)),
            env=self.environment(**variables),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        """The calls so far, as lists of words."""
        return [argv for argv, _ in self._lines()]

    def inputs(self):
        """What the calls read, as text."""
        return [stdin for _, stdin in self._lines()]

    def _lines(self):
        path = self._folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def shellcheck(script):
    """What shellcheck complains of, as text."""
    program = pathlib.Path(sys.executable).with_name("shellcheck")
    command = [str(program) if program.exists() else "shellcheck", os.fspath(script)]
    return subprocess.run(command, capture_output=True, text=True).stdout
