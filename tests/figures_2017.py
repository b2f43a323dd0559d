"""Train on the corpus of 2017 and print what comes out beside what was published.

    python tests/figures_2017.py PATH/quatrains-2017.txt          to the end of run 12
    python tests/figures_2017.py PATH/quatrains-2017.txt --long   to the end of run 59

Exit status 1 when a count differs or the row of run 12 strays further than its tolerances. That
corpus is not part of this project, so this is run by hand.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "quatrains.py"
COUNTS = {"quatrains": 942, "tokens": 33_626, "distinct words": 4_704}
SPLIT = (30_154, 1_588)
NAMES = ("loss", "acc", "val_loss", "val_acc")
PUBLISHED = {12: (21.8, 0.433, 10.8, 0.193), 59: (12.5, 0.701, 13.1, 0.163)}
TOLERANCES = (1.5, 0.03, 0.6, 0.025)


def train(corpus, runs):
    """Run the script at its defaults, from random vectors, and return what it printed."""
    with tempfile.TemporaryDirectory() as logs:
        options = ["--corpus", corpus, "--runs", str(runs), "--glove", "none", "--logs", logs]
        command = [sys.executable, str(SCRIPT), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as run:
            lines = []
            for line in run.stdout:
                lines.append(line)
                if line.startswith("Run ") or "val_loss" in line:
                    print(line.rstrip(), file=sys.stderr, flush=True)
        if run.returncode:
            sys.exit(run.returncode)
    return "".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--long", action="store_true", help="train 60 runs instead of 13")
    given = parser.parse_args()
    printed = train(given.corpus, 60 if given.long else 13)

    rows = []
    for name, expected in COUNTS.items():
        measured = int(re.search(rf"(\d[\d,]*) {name}", printed)[1].replace(",", ""))
        rows.append((name, f"{expected:,}", f"{measured:,}", measured == expected))
    split = re.search(r"Train on (\d+) samples, validate on (\d+)", printed).groups()
    shown = [" + ".join(f"{int(part):,}" for part in parts) for parts in (SPLIT, split)]
    rows.append(("samples", *shown, shown[0] == shown[1]))
    runs = re.split(r"^Run (\d+)$", printed, flags=re.M)
    for run, published in PUBLISHED.items():
        if str(run) not in runs[1::2]:
            continue
        epochs = runs[runs.index(str(run)) + 1]
        for name, figure, tolerance in zip(NAMES, published, TOLERANCES, strict=True):
            measured = float(re.findall(rf"- {name}: ([\d.]+)", epochs)[-1])
            # Of run 59 only the direction is known, not how far it may stray.
            holds = run != 12 or abs(measured - figure) <= tolerance
            rows.append((f"run {run}, {name}", str(figure), f"{measured:.4g}", holds))
    print("| | expected | measured |\n|---|---|---|")
    for name, expected, measured, holds in rows:
        print(f"| {name} | {expected} | {measured}{'' if holds else ' (!)'} |")
    return 0 if all(holds for *_, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
