"""Train on the corpus of 2017, and compare the results with those published.

    python tests/figures_2017.py PATH/quatrains-2017.txt          to the end of run 12
    python tests/figures_2017.py PATH/quatrains-2017.txt --long   to the end of run 59

Exit with status 1 if a count or run 12 is outside its tolerance. The corpus is not in the project.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import quatrains

NAMES = ("quatrains", "tokens", "distinct words", "training samples", "validation samples")
COUNTS = (942, 33_626, 4_703, 30_154, 1_588)
METRICS = ("loss", "acc", "val_loss", "val_acc")
RUN_12, TOLERANCES = (21.8, 0.433, 10.8, 0.193), (1.5, 0.03, 0.6, 0.025)
# Only the direction is known for run 59, not a tolerance.
RUN_59, UNKNOWN = (12.5, 0.701, 13.1, 0.163), (float("inf"),) * 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--long", action="store_true", help="train 60 runs instead of 13")
    arguments = parser.parse_args()
    runs = 60 if arguments.long else 13
    with tempfile.TemporaryDirectory() as logs:
        lm = quatrains.train(corpus=arguments.corpus, runs=runs, glove="none", log_dir=logs)

    _, tokens, vocabulary, _ = lm.corpus
    halves = [len(targets) for _, targets, _ in quatrains.make_samples(lm.corpus, lm.settings)]
    counts = (len(tokens), sum(map(len, tokens)), len(vocabulary) - 1, *halves)
    rows = [*zip(NAMES, COUNTS, counts, (0,) * 5, strict=True)]
    compared = [(12, RUN_12, TOLERANCES), (59, RUN_59, UNKNOWN)]
    for run, published, tolerances in compared[: 1 + arguments.long]:
        last = (run + 1) * lm.settings.epochs_per_run - 1
        measured = [lm.model.history.history[name][last] for name in METRICS]
        names = [f"run {run}, {name}" for name in METRICS]
        rows += zip(names, published, measured, tolerances, strict=True)
    print("| | expected | measured |\n|---|---|---|")
    failed = False
    for name, expected, measured, tolerance in rows:
        holds = abs(measured - expected) <= tolerance
        failed |= not holds
        print(f"| {name} | {expected:,} | {round(measured, 3):,}{'' if holds else ' (!)'} |")
    return failed


if __name__ == "__main__":
    sys.exit(main())
