"""Results as a table: for people at the end of a campaign, and for the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .playbooks_cells import TURNS
from .playbooks_faults import FAULTS

BEGIN, END = "<!-- playbooks: begin -->", "<!-- playbooks: end -->"

Result = dict[str, Any]


def read(file: Path) -> list[Result]:
    """The newest result of each cell; a last line that was cut off is left out."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[result["seed"], result["number"]] = result
    return list(found.values())


def table(results: list[Result]) -> str:
    """Operation by fault, in Markdown. Cells whose fault met nothing are counted apart."""
    happened = [result for result in results if result["outcome"] in ("good", "wrong")]
    head = "| operation | fault | cells | good | lost rows | revived rows | false messages |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|"]
    for operation in dict.fromkeys(TURNS):
        for fault in FAULTS:
            these = [each for each in happened if (each["operation"], each["fault"]) == (operation, fault)]
            if these:
                lines.append(f"| {operation} | {fault} | {_counts(these)} |")
    lines.append(f"| **all** | | {_counts(happened)} |")
    return "\n".join(lines)


def _counts(results: list[Result]) -> str:
    good = sum(result["outcome"] == "good" for result in results)
    sums = [sum(result[name] for result in results) for name in ("lost", "revived", "false")]
    return " | ".join(map(str, [len(results), good, *sums]))


def summary(results: list[Result]) -> str:
    """One paragraph."""
    counted = {
        name: sum(result["outcome"] == name for result in results) for name in ("good", "wrong", "missed", "broken")
    }
    where = {(result["start"], result["title"], result["occurrence"]) for result in results}
    seeds = sorted({result["seed"] for result in results})
    unknown = sorted({claim for result in results for claim in result["unknown"]})
    told = f"{counted['good'] + counted['wrong']} cells of the seeds {', '.join(map(str, seeds))} at {len(where)} "
    told += (
        f"different tasks: {counted['good']} good, {counted['wrong']} not. In {counted['missed']} more the fault met"
    )
    told += (
        f" nothing (the run had ended, or no module ran); {counted['broken']} broke for a reason of the campaign's own."
    )
    return told + (f" Claims that no check knows: {'; '.join(unknown)}." if unknown else "")


def document(file: Path, results: list[Result], command: str) -> None:
    """Put the table into its place in a page."""
    text = file.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    made = f"{BEGIN}\nMade by `{command}`.\n\n{summary(results)}\n\n{table(results)}\n{END}"
    file.write_text(head + made + tail)
