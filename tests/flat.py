"""Train many short runs in one process, and see whether memory, files and time stay flat.

    python tests/flat.py              200 runs on the bundled corpus, about five minutes
    python tests/flat.py --runs 50

Prints memory, open files and the median time of a run along the way; fails when the last run holds
over 5 % more memory than the 20th, or more open files.
"""

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import quatrains  # noqa: E402


def memory():
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    measured = []
    save_checkpoint = quatrains.save_checkpoint

    def measure_and_save(*given):
        save_checkpoint(*given)
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        measured.append((time.perf_counter(), memory(), files))

    quatrains.save_checkpoint = measure_and_save
    with tempfile.TemporaryDirectory() as logs, contextlib.redirect_stdout(io.StringIO()):
        small = {"embedding_dim": 50, "gru_dim": 32, "glove": "none", "logs": logs}
        corpus = str(ROOT / "data" / "quatrains.txt")
        quatrains.train(quatrains.Settings(runs=runs, epochs_per_run=1, corpus=corpus, **small))
    times = [after[0] - before[0] for before, after in itertools.pairwise(measured)]
    for end in range(20, runs + 1, 20):
        _, megabytes, files = measured[end - 1]
        print(
            f"run {end:4}: {megabytes:7.1f} MB   {files} open files   "
            f"{statistics.median(times[end - 20 : end - 1]):.3f} s a run"
        )
    growth = measured[-1][1] / measured[19][1] - 1
    print(f"memory since run 20: {growth:+.1%}")
    if growth > 0.05 or measured[-1][2] > measured[19][2]:
        sys.exit("not flat")


if __name__ == "__main__":
    main()
