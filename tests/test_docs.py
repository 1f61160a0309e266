"""What the documents name exists."""

import re

from tests.runs import ROOT

ROWS = re.findall(r"\| P `(\S+?)(?: -k (.+?))?` \|", (ROOT / "docs" / "faults.md").read_text())


def test_every_row_of_the_fault_table_is_made_by_tests():
    assert len(ROWS) > 20
    for path, expression in ROWS:
        tests = re.findall(r"def (test_\w+)", (ROOT / path).read_text())
        for word in expression.strip('"').split(" or "):
            assert any(word in name for name in tests), (path, word)


def test_links_between_documents_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
