"""Train many short runs in one process, and check that memory and open files stay flat.

    python tests/flat.py [RUNS]       200 runs on the bundled corpus, about five minutes

Exit with status 1 if the last run uses over 5% more memory than the 20th, or more open files.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import quatrains  # noqa: E402


def main(runs):
    measured, save_checkpoint = [], quatrains.save_checkpoint

    def save_and_measure(lm):
        save_checkpoint(lm)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        measured.append((pages * 4096 / 2**20, len([*Path("/proc/self/fd").iterdir()])))
        if len(measured) % 20 == 0:
            print("run {}: {:.1f} MB, {} open files".format(len(measured), *measured[-1]), file=out)

    out, quatrains.save_checkpoint = sys.stdout, save_and_measure
    small = {"embedding_dim": 50, "gru_dim": 32, "epochs_per_run": 1, "glove": "none"}
    small["corpus"] = str(ROOT / "data" / "quatrains.txt")
    with tempfile.TemporaryDirectory() as logs, contextlib.redirect_stdout(io.StringIO()):
        quatrains.train(**small, runs=runs, log_dir=logs)
    (before, files), (after, more) = measured[19], measured[-1]
    if after > 1.05 * before or more > files:
        sys.exit("not flat")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ["200"]))
