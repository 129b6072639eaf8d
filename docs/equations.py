"""Writes equations.md: where each equation of the two papers is. Run it after an edit of their files."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAPERS: dict[str, tuple[str, dict[int, str]]] = {
    "zforcing": (
        "Z-Forcing (Goyal, Sordoni et al. 2017)",
        {
            4: "forward network",
            5: "prior",
            6: "backward network",
            7: "posterior",
            8: "auxiliary network",
            9: "auxiliary cost",
            10: "objective, with the prediction of the input from the backward state",
        },
    ),
    "variational_bilstm": (
        "Variational Bi-LSTM (Shabanian et al. 2017)",
        {
            2: "lower bound: likelihood of the target given the latents",
            3: "posterior",
            4: "prior",
            5: "backward-state latent, and the cost that trains it",
            6: "reconstruction of the forward state",
        },
    ),
}


def page() -> str:
    """The page as text."""
    lines = [
        "# Equations",
        "",
        "Where each equation of the two papers is: its line in the docstring of the system's file, and "
        "its lines in the programs `model_steps` and `guide_steps`.",
    ]
    for module, (title, equations) in PAPERS.items():
        path = f"pyro_zf/models/{module}.py"
        source = (HERE.parent / path).read_text(encoding="utf-8").splitlines()
        lines += ["", f"## {title}", "", f"File: `{path}`", ""]
        lines += ["| equation | what | stated in line | model | guide |", "|---|---|---|---|---|"]
        for number, what in equations.items():
            places = {"docstring": [], "model_steps": [], "guide_steps": []}  # type: ignore[var-annotated]
            part = "docstring"
            for index, line in enumerate(source, start=1):
                if found := re.match(r"    def (\w+)", line):
                    part = found.group(1)
                elif line.startswith("from __future__"):
                    part = ""
                stated = rf"eq\. {number}\b|eq\. \d+ and {number}\b"
                written = rf"# .*eq\. {number}\b"
                if part in places and re.search(stated if part == "docstring" else written, line):
                    places[part].append(f"[{index}](../{path}#L{index})")
            cells = [places["docstring"][:1], places["model_steps"], places["guide_steps"]]
            lines.append(f"| {number} | {what} | " + " | ".join(map(", ".join, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "equations.md").write_text(page(), encoding="utf-8")
