"""Measure the script against the obvious ways to write it, both sides in the same round.

    python tests/benchmark.py                          everything, about 25 minutes
    python tests/benchmark.py epoch sampling           some of it; --help lists what there is
    python tests/benchmark.py --rounds 5 epoch
    python tests/benchmark.py --against 6d2bf9c epoch  beside the script as of another commit, too

Prints the minimum and the median of each side and the ratio of the medians. Run by hand on a quiet
machine; nothing here is a test. What was measured, and what was tried, stands in benchmark.md.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import quatrains  # noqa: E402

DEFAULTS = quatrains.Settings(glove="none", seed=1)
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

    def fit(self, epochs=1, callbacks=()):
        (phrases, targets), validation = self.data
        self.model.fit(
            phrases,
            targets,
            batch_size=512,
            epochs=epochs,
            class_weight=self.class_weight,
            validation_data=validation,
            callbacks=list(callbacks),
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

    def run(self, logs):
        import keras

        self.fit(5, [keras.callbacks.TensorBoard(logs, histogram_freq=5)])
        self.write(5)


# ==== The floor: the matrix products of one step and nothing else ====


def bare_products(batch, steps, dim, units, words, gates):
    """Forward, and both backward, of the GRU's inputs, its states, and the dense layer.

    `gates` = 3 makes a product for each gate, as it must be where every gate has its own dropout
    masks; 1 makes one for all three, as it could be without dropout.
    """
    import tensorflow as tf

    def operands(rows, inner, outer):
        return tuple(map(tf.random.normal, ((rows, inner), (inner, outer), (rows, outer))))

    def products(x, weights, y):
        return [
            tf.matmul(x, weights),
            tf.matmul(x, y, transpose_a=True),
            tf.matmul(y, weights, transpose_b=True),
        ]

    width = 3 * units // gates
    inputs = [operands(batch * steps, dim, width) for _ in range(gates)]
    states = [operands(batch, units, width) for _ in range(gates)]
    dense = operands(batch, units, words)

    @tf.function
    def once():
        results = [made for given in (*inputs, dense) for made in products(*given)]
        state = states[0][0]
        for _ in range(steps):
            # One step after the other, as in a GRU. All at once they get in each other's way on
            # two cores, which makes a floor 12 % too high.
            made = [products(state, weights, y) for _, weights, y in states]
            results += [result for gate in made for result in gate]
            state = made[-1][2]
        return [tf.reduce_sum(result[0]) for result in results]

    return once


# ==== The measurements ====


def build(recipe="2017"):
    """A prophet, its samples, and a function that trains an epoch of it with its validation."""
    settings = quatrains.Settings(glove="none", seed=1, recipe=recipe)
    corpus = quatrains.index_corpus(quatrains.read_corpus(CORPUS), settings.whole_quatrains)
    samples = quatrains.make_samples(corpus, settings)
    rng = np.random.default_rng(1)
    embeddings = rng.normal(0, 0.4, (len(corpus.words), 300)).astype(np.float32)
    model = quatrains.build_model(embeddings, settings.phrase_len, settings)
    quatrains.check_model(model, len(corpus.words), settings.phrase_len)
    steps = -(-len(samples[0][1]) // settings.batch_size)
    callbacks = quatrains.keras.callbacks.CallbackList(
        add_history=True, add_progbar=True, model=model, verbose=0, epochs=10**6, steps=steps
    )
    callbacks.on_train_begin()
    train_epoch = quatrains.build_epoch(model, *samples, settings.batch_size, callbacks)
    numbers = itertools.count()

    def epoch():
        number = next(numbers)
        train_epoch(number, np.random.default_rng([1, number]))

    folder = Path(tempfile.mkdtemp()) / "training"
    folder.mkdir()
    return quatrains.Prophet(settings, corpus, model, folder, 1), samples, epoch


def prepare(against=None):
    """Everything a training stands on, at the default settings."""
    prophet, (training, validation), epoch = build()
    corpus, rng = prophet.corpus, np.random.default_rng(1)
    literal = LiteralPort(training, validation, corpus.counts, len(corpus.words))
    other = other_epoch(against, prophet.model.get_weights()[0]) if against else None
    return SimpleNamespace(**locals())


def other_epoch(commit, embeddings):
    """Build an epoch with the script as of another commit, from before this one's redesign."""
    text = subprocess.run(
        ["git", "show", f"{commit}:quatrains.py"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    path = Path(tempfile.mkdtemp()) / "other.py"
    path.write_bytes(text)
    spec = importlib.util.spec_from_file_location("other", path)
    script = sys.modules["other"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.load_tensorflow(use_gpu=False)
    settings = SimpleNamespace(**{name: getattr(script, name) for name in script.SETTINGS})
    rng = np.random.default_rng(1)
    if hasattr(script, "load_corpus"):
        corpus = script.load_corpus(CORPUS)
    else:
        corpus = script.index_corpus(script.read_corpus(CORPUS))
    # Before there were recipes, it was given the length of a phrase.
    shape = settings if hasattr(script, "RECIPES") else 4
    samples = script.make_samples(corpus, shape, rng)
    epoch = script.build_epoch(script.build_model(embeddings, 4, settings), *samples, 512)
    return lambda: epoch(rng)


def measure_epoch(rounds, world):
    words, size = len(world.corpus.words), len(world.training[1])
    steps = size / 512
    floor = bare_products(512, 4, 300, 128, words, gates=1)
    gate_by_gate = bare_products(512, 4, 300, 128, words, gates=3)
    sides = {
        "literal port": world.literal.fit,
        "ours": world.epoch,
        "floor": lambda: [floor() for _ in range(round(steps))],
        "floor gate by gate": lambda: [gate_by_gate() for _ in range(round(steps))],
    }
    if world.other:
        sides["the other commit"] = world.other
    for warm_up in sides.values():
        warm_up()
    print(f"\nAn epoch has {steps:.1f} steps of 512 samples; {words:,} words.")
    title = "1. A training epoch, with its validation"
    print_ratios(compare(title, rounds, "literal port", **sides))

    # Steps alone, in turns so short that what disturbs the machine disturbs both sides alike.
    train_on = quatrains.compile_training(world.prophet.model, world.training, 512)
    many = quatrains.STEPS_PER_CALL

    def ours():
        train_on(world.rng.permutation(size)[: many * 512].astype(np.int32))
        return world.prophet.model.get_metrics_result()

    ours()
    sides = {"ours": ours, "floor": lambda: [floor() for _ in range(many)]}
    print_ratios(compare(f"   {many} training steps", 10 * rounds, "floor", **sides))


def measure_recipes(rounds, _):
    sides = {recipe: build(recipe)[2] for recipe in quatrains.RECIPES}
    for recipe, epoch in sides.items():
        print(f"  {recipe}: the first epoch takes {timed(epoch):.1f} s", flush=True)
    compare("   An epoch of each recipe, with its validation", rounds, "2017", **sides)


def print_ratios(seconds):
    for name in ("floor", "floor gate by gate", "the other commit"):
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


def measure_run(rounds, world):
    folder, prophet = Path(tempfile.mkdtemp()), world.prophet
    numbers = itertools.count()
    logs = quatrains.Logs(prophet.folder)
    logs.set_model(prophet.model)

    def ours():
        run = next(numbers)
        for epoch in range(5):
            world.epoch()
            logs.on_epoch_end(5 * run + epoch, {"loss": 1.0, "val_loss": 1.0})
        written = prophet.write(5)
        quatrains.report_quotes(written, prophet.quoted)
        logs.log_run(5 * run + 5, written, prophet)
        quatrains.save_checkpoint(prophet)

    world.literal.fit(), ours()
    literal = {"literal port": lambda: world.literal.run(str(folder / str(next(numbers))))}
    compare("3. A whole run with its logs", rounds, "literal port", **literal, ours=ours)


def measure_glove(rounds, _):
    folder = Path(tempfile.mkdtemp())
    text, archive = folder / "glove.6B.300d.txt", folder / "glove.6B.zip"
    words = quatrains.index_corpus(quatrains.read_corpus(CORPUS)).words
    rng = np.random.default_rng(1)
    names = [f"word{number}" for number in range(400_000)]
    for place, word in zip(rng.permutation(400_000), words[1:4501], strict=False):
        names[place] = word
    numbers = [" ".join(f"{x:.5g}" for x in row) for row in rng.normal(0, 0.4, (2000, 300))]
    with text.open("w", encoding="utf-8") as file:
        file.writelines(f"{name} {numbers[7919 * i % 2000]}\n" for i, name in enumerate(names))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(text, text.name)
    sizes = [file.stat().st_size / 1e6 for file in (text, archive)]
    print("\n4. GloVe: {:,.0f} MB of text, {:,.0f} MB of zip".format(*sizes))

    def drain(file):
        with file:
            while file.read(2**20):
                pass

    def usual_loop():
        vectors = {}
        with text.open(encoding="utf-8") as file:
            for line in file:
                values = line.split()
                vectors[values[0]] = np.asarray(values[1:], dtype="float32")

    def read(path):
        assert len(quatrains.read_glove(path, words, 300)) == 4500

    sides = {
        "usual loop": usual_loop,
        "ours": lambda: read(text),
        "bytes": lambda: drain(text.open("rb")),
    }
    compare("   As text", rounds, "usual loop", **sides)

    def inflate():
        with zipfile.ZipFile(archive) as packed:
            drain(packed.open(text.name))

    compare("   Out of the zip", rounds, "inflate", inflate=inflate, ours=lambda: read(archive))
    text.unlink(), archive.unlink()


STEPS_TO_START = """
import sys, time
start = time.perf_counter()
def lap(name):
    global start
    print(name, time.perf_counter() - start); start = time.perf_counter()
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/tests")
import quatrains as q
lap("import of the script and of TensorFlow")
import benchmark
lap("import of this benchmark")
corpus = q.index_corpus(q.read_corpus(benchmark.CORPUS))
q.make_samples(corpus, benchmark.DEFAULTS)
q.learn_capitals(corpus.texts)
lap("data")
epoch = benchmark.build()[2]
lap("model")
epoch()
lap("first epoch")
"""


def measure_start(rounds, _):
    laps = {}
    for _ in range(rounds):
        command = [sys.executable, "-c", STEPS_TO_START, str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            name, _, value = line.rpartition(" ")
            laps.setdefault(name, []).append(float(value))
    print(f"\n5. From the command to the first training step ({rounds} rounds)")
    for name, values in laps.items():
        print(f"  {name:24} min {min(values):9.4f} s   median {statistics.median(values):9.4f} s")

    def script(option):
        command = [sys.executable, str(ROOT / "quatrains.py"), option]
        return lambda: subprocess.run(command, capture_output=True, check=False)

    answers = {"--help": script("--help"), "a wrong argument": script("--nonsense")}
    compare("   Answers without TensorFlow", rounds, "--help", **answers)


def train_once(corpus, epochs):
    """Train in a process of its own; return what it printed and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as logs:
        options = f"--runs 1 --glove none --epochs-per-run {epochs} --corpus {corpus} --logs {logs}"
        command = [sys.executable, str(ROOT / "quatrains.py"), *options.split()]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, printed
    return printed, usage.ru_maxrss / 1024


def measure_growth(_, __):
    print("\n6. Peak memory of the whole job, and the time of an epoch after the first")
    folder = Path(tempfile.mkdtemp())
    texts = [text for _, text in quatrains.read_corpus(CORPUS)]
    for name, times, epochs, split in (
        ("the bundled corpus", 1, 4, 1),
        ("10 times the corpus", 10, 2, 1),
        ("100 times the corpus", 100, 2, 1),
        ("twice the vocabulary", 1, 4, 2),
        ("4 times the vocabulary", 1, 4, 4),
    ):
        path = folder / "corpus.txt"
        changed = []
        for number, text in enumerate(texts * times):
            # Words of every second, third, ... quatrain get a mark, which makes them other words.
            tokens = (
                token + "'" * (token.isalpha() and number % split) for token in text.split(" ")
            )
            changed.append(" ".join(tokens))
        path.write_text("\n\n".join(changed), encoding="utf-8")
        printed, memory = train_once(path, epochs)
        lines = [line for line in printed.splitlines() if "ms/step" in line or "s/step" in line]
        seconds = min(float(line.split(" - ")[1][:-1]) for line in lines[1:])
        counts = next(line for line in printed.splitlines() if line.startswith("Corpus"))
        print(
            f"  {name:24} {seconds:8.1f} s an epoch   {memory:8.0f} MB   {counts.split(' has ')[1]}"
        )


MEASUREMENTS = {
    "epoch": measure_epoch,
    "recipes": measure_recipes,
    "sampling": measure_sampling,
    "run": measure_run,
    "glove": measure_glove,
    "start": measure_start,
    "growth": measure_growth,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=list(MEASUREMENTS), choices=list(MEASUREMENTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="COMMIT", help="measure its epoch, too")
    given = parser.parse_args()
    in_process = {"epoch", "sampling", "run"} & set(given.what)
    world = prepare(given.against) if in_process else None
    for name in given.what:
        MEASUREMENTS[name](given.rounds, world)


if __name__ == "__main__":
    main()
