"""Results as a table, JSON, CSV and LaTeX."""

import csv
import json
import math
import re

import pytest

from cyclip_jax import evaluate
from cyclip_jax.evals.metric import FURTHER_SHARE, SHARE, About, Unit, count
from cyclip_jax.evals.written import ENDINGS, FORMATS, as_csv, as_json, as_latex, as_table, in_latex

RESULTS = {
    "pets_100%": {
        "images": count(24),
        "top1": SHARE.metric(0.25, (0.2, 0.3), 0.01),
        "top5": FURTHER_SHARE.metric(0.5, (math.nan, math.nan)),
        "median_rank": About(Unit.RANK, "less").metric(3.0, (2.0, 4.0)),
    },
    "sts": {
        "spearman": About(better="more").metric(-0.5, (-0.75, -0.25)),
        "gap": About().metric(math.nan),
    },
}


def test_the_table_has_a_line_for_each_metric_and_names_an_evaluation_once():
    assert as_table(RESULTS).splitlines() == [
        "                               value   95 % interval  chance",
        "pets_100%  top1 ↑              25.0%    [20.0, 30.0]   1.00%",
        "           top5 ↑              50.0%",
        "           median_rank ↓       3.000          [2, 4]",
        "           images                 24",
        "sts        spearman ↑        -0.5000  [-0.75, -0.25]",
        "           gap            not finite",
        "↑ more is better, ↓ less is better",
    ]


def test_json_has_every_number_and_null_for_what_is_not_finite():
    content = json.loads(as_json(RESULTS))
    assert content["pets_100%"]["top1"] == {
        "value": 0.25,
        "interval": [0.2, 0.3],
        "chance": 0.01,
        "unit": "share",
        "better": "more",
    }
    assert content["pets_100%"]["top5"]["interval"] is None
    assert content["sts"]["gap"]["value"] is None
    assert {name: set(own) for name, own in content.items()} == {
        n: set(o) for n, o in RESULTS.items()
    }


def test_csv_has_a_row_for_each_metric_with_all_digits():
    rows = list(csv.DictReader(as_csv(RESULTS).splitlines()))
    assert [row["metric"] for row in rows] == [
        "top1",
        "top5",
        "median_rank",
        "images",
        "spearman",
        "gap",
    ]
    third = SHARE.metric(1 / 3, (0.1, 2 / 3), 0.1)
    (row,) = csv.DictReader(as_csv({"a,b": {"top1": third}}).splitlines())
    assert (row["evaluation"], float(row["value"]), float(row["ci_high"])) == ("a,b", 1 / 3, 2 / 3)
    assert (rows[-1]["value"], rows[-1]["ci_low"], rows[-1]["better"]) == ("", "", "")


def cells_of(line):
    """The cells of a row of LaTeX; an escaped & divides nothing."""
    return re.split(r"(?<!\\)&", line.removesuffix(r"\\"))


def test_latex_needs_booktabs_alone_and_has_five_cells_in_each_row():
    names = {f"a{c}b": {f"[{c}] x": SHARE.metric(0.5, (0.4, 0.6), 0.1)} for c in r"\&%$#_{}~^<>|[]"}
    lines = as_latex(RESULTS | names).splitlines()
    assert lines[0].startswith("%") and lines[1] == r"\begin{tabular}{llrrr}"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [line for line in lines[3:-2] if line != r"\midrule"]
    assert len(rows) == 1 + 6 + len(names)
    for row in rows:
        assert row.endswith(r" \\") and len(cells_of(row)) == 5, row
        plain = re.sub(r"\\[&%$#_{}]|\$(\\uparrow|\\downarrow|-)\$|\\text[a-z]+\{\}", "", row[:-2])
        plain = plain.replace("{[}", "").replace(r"95\,", "")
        assert not set(plain.replace("&", "")) & set("\\%$#_{}~^<>|"), row
        assert not row.startswith("[")  # which would be an argument of the line's end before it
    assert r"pets\_100\% & top1 $\uparrow$ & 25.0\% & [20.0, 30.0] & 1.00\% \\" in lines
    assert r"sts & spearman $\uparrow$ & $-$0.5000 & [$-$0.75, $-$0.25] &  \\" in lines


def test_a_line_break_in_a_name_ends_no_row_of_latex():
    assert in_latex("a\nb\\\\") == r"a b\textbackslash{}\textbackslash{}"


@pytest.mark.parametrize("form", FORMATS)
def test_no_results_are_written_too(form):
    assert isinstance(FORMATS[form]({}), str)


def test_the_command_offers_the_formats_that_there_are():
    assert tuple(FORMATS) == evaluate._FORMATS
    assert set(ENDINGS.values()) == set(FORMATS)
