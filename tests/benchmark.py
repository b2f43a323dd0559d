"""Measure the script against the obvious ways to write it, both sides in the same round.

    python tests/benchmark.py                          everything, about 15 minutes
    python tests/benchmark.py epoch sampling           some of it; --help lists what there is
    python tests/benchmark.py --rounds 5 epoch
    python tests/benchmark.py --against 6d2bf9c epoch  beside the script as of another commit, too

Prints the minimum and the median of each side and the ratio of the medians. Run by hand on a quiet
machine; nothing here is a test. What was measured, and what was tried, stands in benchmark.md.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import quatrains  # noqa: E402

CORPUS = ROOT / "data" / "quatrains.txt"


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(title, rounds, base, **sides):
    """Time all sides in every round, and print them beside the side named `base`."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            seconds[name].append(timed(work))
    print(f"\n{title} ({rounds} rounds)")
    middle = statistics.median(seconds[base])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"  {name:24} min {min(values):9.4f} s   median {median:9.4f} s   "
            f"{median / middle:8.4f} of {base}",
            flush=True,
        )
    return seconds


# ==== The literal port: the system of 2017 in the most obvious Keras 3 ====


class LiteralPort:
    def __init__(self, training, validation, counts, words):
        import keras

        self.words = words
        self.data = [
            (samples[0], np.eye(words, dtype=bool)[samples[1][:, 0]])
            for samples in (training, validation)
        ]
        self.class_weight = dict(enumerate(np.sqrt(counts)))
        penalty = keras.regularizers.L2(0.02)
        self.model = keras.Sequential(
            [
                keras.layers.Embedding(words, 300),
                keras.layers.GRU(
                    128,
                    dropout=0.5,
                    recurrent_dropout=0.5,
                    kernel_regularizer=penalty,
                    recurrent_regularizer=penalty,
                    bias_regularizer=penalty,
                ),
                keras.layers.Dense(words, activation="softmax"),
            ]
        )
        self.model.compile("rmsprop", "categorical_crossentropy", metrics=["acc"])

    def fit(self):
        (phrases, targets), validation = self.data
        self.model.fit(
            phrases,
            targets,
            batch_size=512,
            class_weight=self.class_weight,
            validation_data=validation,
            verbose=0,
        )

    def write(self, count):
        for _ in range(count):
            phrase = [0] * 4
            for _ in range(32):
                predicted = self.model.predict(np.array([phrase]), verbose=0)[0].astype(float)
                word = np.random.choice(self.words, p=predicted / predicted.sum())
                phrase = [*phrase[1:], word]
                if word == 0:
                    break


# ==== The floor: the matrix products of one step and nothing else ====


def bare_products(batch, steps, dim, units, words):
    """Forward, and both backward, of the GRU's inputs, its states, and the dense layer."""
    import tensorflow as tf

    def operands(rows, inner, outer):
        return tuple(map(tf.random.normal, ((rows, inner), (inner, outer), (rows, outer))))

    def products(x, weights, y):
        return [
            tf.matmul(x, weights),
            tf.matmul(x, y, transpose_a=True),
            tf.matmul(y, weights, transpose_b=True),
        ]

    inputs = operands(batch * steps, dim, 3 * units)
    states = operands(batch, units, 3 * units)
    dense = operands(batch, units, words)

    @tf.function
    def once():
        results = products(*inputs) + products(*dense)
        state, weights, y = states
        for _ in range(steps):
            # One step after the other, as in a GRU. All at once they get in each other's way on
            # two cores, which makes a floor 12 % too high.
            made = products(state, weights, y)
            results += made
            state = made[2]
        return [tf.reduce_sum(result[0]) for result in results]

    return once


# ==== The measurements ====


class Turns(quatrains.keras.callbacks.Callback):
    """Has `fit` train an epoch when it is told to, so that others can be timed between epochs."""

    def __init__(self):
        super().__init__()
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def on_epoch_begin(self, epoch, logs=None):
        self.go.acquire()

    def on_epoch_end(self, epoch, logs=None):
        self.done.release()

    def __call__(self):
        self.go.release()
        self.done.acquire()


def build(recipe="2017"):
    """A prophet, its samples, and a function that trains an epoch of it as the script does."""
    settings = quatrains.Settings(glove="none", seed=1, recipe=recipe, epochs_per_run=10**6)
    corpus = quatrains.index_corpus(quatrains.read_corpus(CORPUS), settings.whole_quatrains)
    rng = np.random.default_rng(1)
    embeddings = rng.normal(0, 0.4, (len(corpus.words), 300)).astype(np.float32)
    model = quatrains.build_model(embeddings, settings)
    prophet = quatrains.Prophet(settings, corpus, model, 1, Path(tempfile.mkdtemp()))
    turns, fit = Turns(), model.fit
    model.fit = lambda *data, callbacks, verbose, **given: fit(
        *data, callbacks=[turns, *callbacks], verbose=0, **given
    )
    threading.Thread(target=quatrains.train_runs, args=[prophet], daemon=True).start()
    return prophet, quatrains.make_samples(corpus, settings), turns


def prepare(against=None):
    """Everything a training stands on, at the default settings."""
    prophet, (training, validation), epoch = build()
    corpus, rng = prophet.corpus, np.random.default_rng(1)
    literal = LiteralPort(training, validation, corpus.counts, len(corpus.words))
    other = other_epoch(against, prophet.model.get_weights()[0]) if against else None
    return SimpleNamespace(**locals())


def other_epoch(commit, embeddings):
    """Build an epoch with the script as of another commit, of the time before `fit`."""
    command = ["git", "show", f"{commit}:quatrains.py"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    path = Path(tempfile.mkdtemp()) / "other.py"
    path.write_bytes(text)
    spec = importlib.util.spec_from_file_location("other", path)
    script = sys.modules["other"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.load_tensorflow(use_gpu=False)
    settings = SimpleNamespace(**{name: getattr(script, name) for name in script.SETTINGS})
    rng = np.random.default_rng(1)
    samples = script.make_samples(script.load_corpus(CORPUS), 4, rng)
    epoch = script.build_epoch(script.build_model(embeddings, 4, settings), *samples, 512)
    return lambda: epoch(rng)


def measure_epoch(rounds, world):
    words, size = len(world.corpus.words), len(world.training[1])
    steps = size / 512
    floor = bare_products(512, 4, 300, 128, words)
    sides = {
        "literal port": world.literal.fit,
        "ours": world.epoch,
        "floor": lambda: [floor() for _ in range(round(steps))],
    }
    if world.other:
        sides["the other commit"] = world.other
    for warm_up in sides.values():
        warm_up()
    print(f"\nAn epoch has {steps:.1f} steps of 512 samples; {words:,} words.")
    title = "1. A training epoch, with its validation"
    print_ratios(compare(title, rounds, "literal port", **sides))

    # Steps alone, in turns so short that what disturbs the machine disturbs both sides alike.
    train = quatrains.compile_training(world.prophet.model, world.training, 512)
    many = world.prophet.model.steps_per_execution

    def ours():
        numbers = world.rng.permutation(size)[: many * 512].astype(np.int32)
        return train(iter([quatrains.tf.constant(numbers)]))

    ours()
    sides = {"ours": ours, "floor": lambda: [floor() for _ in range(many)]}
    print_ratios(compare(f"   {many} training steps", 10 * rounds, "floor", **sides))


def measure_recipes(rounds, _):
    sides = {recipe: build(recipe)[2] for recipe in quatrains.RECIPES}
    for recipe, epoch in sides.items():
        print(f"  {recipe}: the first epoch takes {timed(epoch):.1f} s", flush=True)
    compare("   An epoch of each recipe, with its validation", rounds, "2017", **sides)


def print_ratios(seconds):
    for name in ("floor", "the other commit"):
        if name not in seconds:
            continue
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        print(f"  ours / {name}: {statistics.median(ratios):.2f} median of the rounds")


def measure_sampling(rounds, world):
    def draw(count):
        return world.prophet.write(count, seed=1)

    world.epoch()
    draw(5), draw(1000), world.literal.write(1)
    sides = {"predict a word": lambda: world.literal.write(5), "ours": lambda: draw(5)}
    five = compare("2. Writing 5 quatrains", rounds, "predict a word", **sides)
    many = compare("   Writing 1,000 quatrains in one go", rounds, "ours", ours=lambda: draw(1000))
    middle = {name: statistics.median(values) / 5 for name, values in five.items()}
    each = statistics.median(many["ours"]) / 1000
    print(f"  5 quatrains: {middle['predict a word'] / middle['ours']:.0f} times faster")
    print(f"  1,000 quatrains: {middle['predict a word'] / each:.0f} times faster a quatrain")
    verse, _, epoch = build("verse")
    epoch(), verse.write(5)
    sides = {f"{n} drafts": lambda n=n: verse.write(5, seed=1, drafts=n) for n in (1, 16, 64)}
    compare("   Writing 5 quatrains with recipe verse", rounds, "16 drafts", **sides)


def measure_start(rounds, _):
    def script(*options):
        command = [sys.executable, str(ROOT / "quatrains.py"), *options]
        return lambda: subprocess.run(command, capture_output=True, check=False)

    with tempfile.TemporaryDirectory() as logs:
        answers = {
            "--help": script("--help"),
            "a wrong argument": script("--nonsense"),
            "one epoch": script("--runs=1", "--epochs-per-run=1", "--glove=none", "--logs", logs),
        }
        compare("3. From the command to its end", rounds, "--help", **answers)


MEASUREMENTS = {
    "epoch": measure_epoch,
    "recipes": measure_recipes,
    "sampling": measure_sampling,
    "start": measure_start,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=list(MEASUREMENTS), choices=list(MEASUREMENTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="COMMIT", help="measure its epoch, too")
    given = parser.parse_args()
    in_process = {"epoch", "sampling"} & set(given.what)
    world = prepare(given.against) if in_process else None
    for name in given.what:
        MEASUREMENTS[name](given.rounds, world)


if __name__ == "__main__":
    main()
