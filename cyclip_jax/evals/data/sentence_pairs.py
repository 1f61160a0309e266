"""Pairs of sentences that people scored: SentEval's files, any table, or documents."""

import dataclasses
import math
from collections.abc import Iterable

from etils import epath

from cyclip_jax.data.tables import Table
from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors

# The parts of each year's data (Gao et al. 2021, appendix B); 2013 is without SMT, which has a
# licence of its own.
_SUBSETS = {
    "sts12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "sts13": ("FNWN", "headlines", "OnWN"),
    "sts14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "sts15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "sts16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
_SICK = {"test": "SICK_test_annotated.txt", "dev": "SICK_trial.txt"}


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """N pairs of sentences with the scores that people gave them.

    Attributes:
      first, second: the sentences.
      scores: more is more similar.
      subsets: the part of the data that each pair is from.
    """

    first: list[str]
    second: list[str]
    scores: list[float]
    subsets: list[str]


def read_senteval(folder: str, split: str, *, config_key: str) -> dict[str, SentencePairs]:
    """The tasks that SentEval's folder has: sts12 to sts16, stsb and sickr.

    Args:
      folder: with the folders STS and SICK.
      split: "test", or "dev", which only stsb and sickr have.
      config_key: of the folder, for messages.

    Returns:
      {task: SentencePairs}; tasks that are not there are left out, and so are pairs without score.

    Raises:
      UserError: there is no task, or something is wrong with a file.
    """
    tasks = {}
    for task, subsets in _SUBSETS.items() if split == "test" else ():
        year = epath.Path(folder) / "STS" / f"STS{task[3:]}-en-test"
        if year.exists():
            rows = [row for subset in subsets for row in _rows_of_subset(year, subset)]
            tasks[task] = _pairs(rows, str(year))
    benchmark = _benchmark_file(folder, split)
    if benchmark.exists():
        tasks["stsb"] = _pairs(_rows_of_benchmark(benchmark), str(benchmark))
    sick = epath.Path(folder) / "SICK" / _SICK[split]
    if sick.exists():
        rows = _fields(sick, columns=(1, 2, 3), first_line=2)
        tasks["sickr"] = _pairs([(*row, "sick") for row in rows], str(sick))
    if not tasks:
        raise UserError(
            f"{folder} has no task of the split {split!r}, such as STS/STS12-en-test, "
            f"STS/STSBenchmark/sts-{split}.csv or SICK/{_SICK[split]}; set {config_key} to a "
            "folder laid out as SentEval's data/downstream"
        )
    return tasks


def read_whole_benchmark(folder: str) -> SentencePairs | None:
    """STS-B with all its splits that SentEval's folder has; None where it has none."""
    files = [_benchmark_file(folder, split) for split in ("train", "dev", "test")]
    rows = [row for file in files if file.exists() for row in _rows_of_benchmark(file)]
    return _pairs(rows, str(files[0].parent)) if rows else None


def read_table(
    path: str,
    *,
    delimiter: str,
    sentence1_key: str,
    sentence2_key: str,
    score_key: str,
    config_key: str,
) -> SentencePairs:
    """The pairs of a table; rows without score are left out.

    Args:
      path: a CSV or TSV file. Lines at its top that begin with # are comments, and the last of them
        may name the columns.
      delimiter: the character between columns.
      sentence1_key, sentence2_key, score_key: names of the columns.
      config_key: of the evaluation, for messages.

    Raises:
      UserError: a column is not there, or something is wrong with a row.
    """
    table = Table(path, delimiter, f"{config_key}.delimiter")
    table.skip_comments("#")
    keys = {
        "sentence1_key": sentence1_key,
        "sentence2_key": sentence2_key,
        "score_key": score_key,
    }
    columns = [table.position(name, f"{config_key}.{key}") for key, name in keys.items()]
    rows = []
    for row in table.rows():
        if row.fault is not None:
            raise UserError(f"{path}: {row.fault.reason} ({row.fault.detail}); mend the row")
        first, second, score = (row.fields[column] for column in columns)
        if score.strip():
            rows.append((first, second, _number(score, path, row.line), "table"))
    return _pairs(rows, path)


def read_documents(path: str, similarities: str) -> SentencePairs:
    """All pairs of documents that people compared, as Lee et al. 2005 had it done.

    Args:
      path: a document a line. A file that is not UTF-8 is Latin-1, as Lee's is.
      similarities: a file with a row of N numbers for each of the N documents, of which those above
        the diagonal count.

    Raises:
      UserError: something is wrong with a file.
    """
    documents = [line for line in _lines(path, is_latin1_too=True) if line.strip()]
    n = len(documents)
    matrix = [(number, line.split()) for number, line in _numbered(similarities) if line.strip()]
    if len(matrix) != n:
        raise UserError(
            f"{similarities} has {len(matrix)} rows, and {path} has {n} documents; give files of "
            "the same documents"
        )
    rows = []
    for j, (line, fields) in enumerate(matrix):
        if len(fields) != n:
            raise UserError(
                f"{similarities}, line {line}: the row has {len(fields)} numbers, and {path} has "
                f"{n} documents"
            )
        for k in range(j + 1, n):
            score = _number(fields[k], similarities, line)
            rows.append((documents[j], documents[k], score, "documents"))
    return _pairs(rows, path)


def _pairs(rows, where):
    """SentencePairs of (first, second, score, subset); UserError where nothing can be ordered."""
    if len({score for _, _, score, _ in rows}) < 2:
        raise UserError(f"{where} needs at least two pairs of sentences with different scores")
    return SentencePairs(*map(list, zip(*rows, strict=True)))


def _rows_of_subset(year, subset):
    inputs, golds = (year / f"STS.{kind}.{subset}.txt" for kind in ("input", "gs"))
    pairs, scores = _lines(inputs), _lines(golds)
    if len(pairs) != len(scores):
        raise UserError(
            f"{inputs} has {len(pairs)} lines and {golds} has {len(scores)}; each pair needs a "
            "line in both, which is blank in the latter where it has no score"
        )
    for line, (pair, score) in enumerate(zip(pairs, scores, strict=True), start=1):
        if score.strip():
            first, second, *_ = _split(pair, inputs, line, least=2)
            yield first, second, _number(score, golds, line), subset


def _benchmark_file(folder, split):
    return epath.Path(folder) / "STS" / "STSBenchmark" / f"sts-{split}.csv"


def _rows_of_benchmark(file):
    return [(*row, "stsb") for row in _fields(file, columns=(5, 6, 4), first_line=1)]


def _fields(file, *, columns, first_line) -> Iterable[tuple[str, str, float]]:
    """Two sentences and a score of each line that is not blank; there is no quoting."""
    for number, line in _numbered(file):
        if number >= first_line and line.strip():
            fields = _split(line, file, number, least=max(columns) + 1)
            first, second, score = (fields[column] for column in columns)
            yield first, second, _number(score, file, number)


def _split(line, path, number, *, least):
    fields = line.split("\t")
    if len(fields) < least:
        raise UserError(
            f"{path}, line {number}: there are {len(fields)} fields with tabs between them, and "
            f"{least} are needed; mend the line"
        )
    return fields


def _number(text, path, line):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{path}, line {line}: the score {text[:40]!r} is no finite number")
    return number


def _numbered(path):
    return enumerate(_lines(path), start=1)


def _lines(path, *, is_latin1_too=False):
    """The lines of a text without their ends, LF or CR LF."""
    try:
        content = epath.Path(path).read_bytes()
    except file_errors() as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not is_latin1_too:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path}, line {line} is not UTF-8; convert the file, e.g. with "
                "iconv -f LATIN1 -t UTF-8 < FILE > NEW"
            ) from error
        text = content.decode("latin-1")
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
