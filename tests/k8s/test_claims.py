"""What documents claim of clusters carries one of four marks, and what a mark rests on exists."""

import re

from tests.k8s.rendering import ROOT

MARKS = {"run on processes", "admitted by a true API server", "schema-checked", "not run"}
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = RELIABILITY.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_document_begins_with_the_marks() -> None:
    table = RELIABILITY.split("\n## ")[0]
    assert set(re.findall(r"^\| \*(.+?)\* \|", table, flags=re.MULTILINE)) == MARKS


def test_each_claim_has_a_mark_and_what_was_done_names_its_proof() -> None:
    claims = [*rows("Kubernetes"), *rows("Jobs of a Ray cluster")]
    assert len(claims) > 10
    for what, mark, proof in claims:
        assert mark.strip("*") in MARKS, what
        assert proof or mark == "*not run*", what
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", RELIABILITY)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_nothing_is_said_to_run_on_kubernetes() -> None:
    saying = [file.name for file in DOCUMENTS if re.search(r"\bruns? on kubernetes\b", file.read_text(), re.IGNORECASE)]
    assert saying == []
