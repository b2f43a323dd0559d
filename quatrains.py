# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "tensorflow>=2.21,<2.22",
#     "keras>=3.12,<3.16",
#     "numpy>=2.0,<3",
#     "tensorboard>=2.21,<2.22",
# ]
# ///
"""Learn to write new prophecies in the manner of Nostradamus.

    python quatrains.py                          train, and write five quatrains after every run
    python quatrains.py --resume                 go on where the last training was stopped
    python quatrains.py --generate 20            write twenty, without training
    python quatrains.py --help                   every setting, with its default
    tensorboard --port 8080 --logdir=logs        watch it

A port to TensorFlow and Keras 3 of a system published in 2017, told in the order in which things
happen. To change the model, edit `build_model`.
"""

import argparse
import contextlib
import importlib.util
import inspect
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# ==== Settings: edit them and run again, or give them on the command line (--gru-dim 256) ====
# --help shows this block as it stands. The layers of the model stand in `build_model`.


@dataclass(init=False)
class Settings:
    """The settings of a training and of what it writes."""

    # True trains on /gpu:0, False on /cpu:0.
    use_gpu: bool = False
    # "2017" trains as published. "verse" learns whole quatrains: what RECIPES in quatrains.py has
    # for it wins over the settings here, and the command line wins over both.
    recipe: str = "2017"
    # What the training's folder in `logs` is called, after its date; empty: like its recipe.
    name: str = ""

    # Numbers in the vector of a word. GloVe has 50, 100, 200 and 300; without it, any size does.
    embedding_dim: int = 300
    # Units of the GRU. More of them learn faster, and quote the corpus sooner.
    gru_dim: int = 128
    # Part of the GRU's inputs and state that a step hides, or it soon knows the corpus by heart.
    dropout: float = 0.5
    # L2 penalty on the GRU's weights, which the losses include. More makes the output tamer.
    regularization: float = 0.02
    # Part of the GRU's output that a step hides from the dense layer.
    dense_dropout: float = 0.0
    # Tokens that the model sees before it guesses the next one.
    phrase_len: int = 4
    # True learns quatrains whole, with their openings and the ends of their lines; False learns
    # only what follows a whole phrase, as published, and guesses lines afterwards.
    whole_quatrains: bool = False
    # True weighs a sample by the square root of its target's count, False weighs all alike.
    weighted: bool = True

    # Samples a training step.
    batch_size: int = 512
    # Step size of RMSprop. High, because the model is small and somebody is watching.
    learning_rate: float = 0.003
    # Runs of a training: some epochs each, and then some quatrains. Stop it any time.
    runs: int = 1000
    # Epochs a run.
    epochs_per_run: int = 5
    # True goes on with the training in `logs` that was saved last.
    resume: bool = False
    # None, or a number that makes the training repeat exactly on the same machine.
    seed: int | None = None

    # Quatrains written after each run.
    quatrains_per_run: int = 5
    # Most words of a quatrain. Punctuation counts, and so do the ends of lines.
    max_words: int = 32
    # True prints the bare tokens, a quatrain a line; False restores lines, capitals and spacing.
    raw: bool = False
    # Below 1 the likely words get likelier and the verse tamer, above 1 it gets wilder.
    temperature: float = 1.0
    # Draws only from the likeliest words that have this share of all probability; 1 from all.
    top_p: float = 1.0
    # Words that every quatrain begins with.
    opening: str = ""
    # Quatrains drawn for each that is written; the best is kept.
    drafts: int = 1
    # Longest run of words that a quatrain may quote from the corpus before others are preferred.
    max_quote: int = 8
    # 0 trains. Any other number writes so many quatrains with the training saved last instead.
    generate: int = 0

    # Text to learn from: quatrains parted by blank lines or, in a file without them, one a line.
    corpus: str = "data/quatrains.txt"
    # Word vectors to start from: "none" starts every word at random; "auto" takes glove.6B.zip or
    # glove.6B.<embedding_dim>d.txt in data/, or else fetches the zip; or the path of such a file.
    glove: str = "auto"
    # The folder that TensorBoard reads; each training has its own in it, with its checkpoint. To
    # resume an earlier training, or to write with it, name that one.
    logs: str = "logs"

    def __init__(self, **given: Any):
        """Take the file's values, then the recipe's, then those given; InputError if illegal."""
        recipe = RECIPES.get(given.get("recipe", self.recipe), {})
        values = asdict(self) | recipe | given
        for name, value in values.items():
            check_setting(name, value)
        vars(self).update(values)
        self.given = given


# What a recipe sets. An entry more is a recipe more.
RECIPES = {
    "2017": {},
    "verse": dict(
        regularization=0.0,
        dense_dropout=0.5,
        phrase_len=16,
        whole_quatrains=True,
        weighted=False,
        max_words=64,
        temperature=0.8,
        drafts=16,
    ),
}
# Other counts are at least 1, and other numbers at least 0.
LEAST = {"generate": 0, "temperature": 1e-6, "top_p": 1e-6}
MOST = {"dropout": 0.99, "dense_dropout": 0.99, "top_p": 1}
# What may change when a training is resumed. All else is what makes it the training that it is.
CHANGEABLE = """
    use_gpu name runs resume logs generate
    quatrains_per_run max_words raw temperature top_p opening drafts max_quote
""".split()


class InputError(Exception):
    """A mistake that the user can mend; its text names the setting or file and the way out."""

    def _render_traceback_(self):  # What IPython shows of it.
        return [f"quatrains: {self}"]


def check_setting(name: str, value: Any):
    """Raise InputError where there is no such setting, or its value is illegal."""
    kind = Settings.__annotations__.get(name)
    if not kind:
        raise InputError(f"{name} is no setting: take it out, --help lists all")
    legal = isinstance(value, kind) or (kind is float and type(value) is int)
    wanted = inspect.formatannotation(kind)
    if name == "recipe":
        legal, wanted = value in RECIPES, f"one of {', '.join(RECIPES)}"
    elif type(value) in (int, float):
        low = LEAST.get(name, 1 if kind is int else 0)
        high = MOST.get(name, 2**32 - 1)
        legal = legal and low <= value <= high
        wanted = f"{wanted} from {low} to {high}"
    if not legal:
        raise InputError(f"{name} = {value!r} will not do: it must be {wanted}")


# ==== Command line: read before the imports, which take seconds ====

IN_SESSION = "ipykernel" in sys.modules  # In a notebook and its like.


def read_command_line(arguments: list) -> Settings:
    """Read settings such as `--gru-dim 256`; InputError says what is illegal."""
    parser = argparse.ArgumentParser(
        usage="quatrains.py [--gru-dim 256] [--use-gpu] [--no-weighted] and so on",
        description=inspect.getsource(Settings).partition("    def ")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    for name, kind in Settings.__annotations__.items():
        how = {"type": int if name == "seed" else kind}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS, **how)
    return Settings(**vars(parser.parse_args(arguments)))


@contextlib.contextmanager
def plain_endings():
    """Let a mistake, Ctrl-C or the system end the program in one line and with an exit status; in a
    session it shows that line, and stays."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        message, status = str(error), 2
        if isinstance(error, KeyboardInterrupt):
            message, status = "stopped", 130
        elif isinstance(error, OSError | MemoryError) or "tensorflow" in type(error).__module__:
            # A full disk, no memory, no rights: TensorFlow has errors of its own for these.
            reason = message.partition("\n")[0]
            message = f"broke off ({reason}): make room, or mend what else it names"
        elif not isinstance(error, InputError):
            raise
        if IN_SESSION:
            raise InputError(message) from None
        print(f"quatrains: {message}", file=sys.stderr)
        sys.stdout = None  # What it still holds may be what could not be written.
        sys.exit(status)


def require_packages():
    """See that the packages are there: a session installs them, else InputError says how."""
    needed = ("numpy", "tensorflow", "keras", "tensorboard")
    missing = ", ".join(name for name in needed if not importlib.util.find_spec(name))
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "-r", "requirements.txt"]
    if IN_SESSION:
        print(f"{missing} not installed: installing requirements.txt, which takes minutes.")
        if subprocess.run(command, check=False).returncode == 0:
            importlib.invalidate_caches()
            return
    raise InputError(f"{missing} not installed: type `{' '.join(command)}` in the script's folder")


if __name__ == "__main__":
    if not IN_SESSION:
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # A reader may have read enough.
        # Each line at once, also into a file; letters that a terminal lacks as question marks.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    with plain_endings():
        # In a notebook's cell sys.argv is the kernel's own; %run, like a shell, gives a file its.
        SETTINGS = read_command_line(sys.argv[1:]) if "__file__" in globals() else Settings()
        require_packages()

# ==== TensorFlow and its device ====

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # Or it takes the whole card.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # What TensorFlow says in spite of that.
try:
    import keras
    import numpy as np
    import tensorflow as tf
    from numpy.random import Generator
    from tensorboard.plugins.hparams import api as hparams

    GPUS = tf.config.list_physical_devices("GPU")
except KeyboardInterrupt:
    sys.exit(130)
finally:
    os.dup2(stderr, 2)
tf.get_logger().setLevel("ERROR")  # In a session it warns of each new training's graphs.


def prepare_device(settings: Settings) -> str:
    """Name the device to train on; InputError where a GPU is wanted and not seen."""
    if not settings.use_gpu:
        return "/cpu:0"
    if not GPUS:
        raise InputError(
            "use_gpu = True, but TensorFlow sees no GPU: "
            'install its driver and "tensorflow[and-cuda]", or set use_gpu = False'
        )
    if settings.seed is not None:  # A CPU needs no telling.
        tf.config.experimental.enable_op_determinism()
    return "/gpu:0"


# ==== Corpus: quatrains, tokens, vocabulary ====

BREAK = "<BREAK>"
PUNCTUATION = ".,;!?"
SENTENCE_ENDS = ".!?"
# What the tokenizer of 2017 dropped, and typeset texts' quotation marks, dashes and dots. So no
# word looks like the end of a line, <LINE1>.
DROPPED = '"#$%&()*+/:<=>@[\\]^_{|}~`\xab\xbb\u2018\u201a\u201c\u201d\u201e\u2013\u2014\u2026'
TOKEN = re.compile(rf"[{PUNCTUATION}]|[^\s{re.escape(PUNCTUATION + DROPPED)}]+")
WORD = re.compile(f"[^<{PUNCTUATION}]")  # Matches no token that is punctuation or ends a line.
COMMENT = re.compile(r"^#.*\n?", re.MULTILINE)
HEADING = re.compile(r"^#.*\b([IVXLCDM]+|\d+)$", re.MULTILINE)  # Starts a new count.


class Corpus(NamedTuple):
    """The quatrains of a corpus, as numbers with texts and as tokens; its words by index, and how
    often each occurs."""

    quatrains: list
    tokens: list
    words: list[str]
    counts: np.ndarray


def read_corpus(path: Path) -> list:
    """Read the quatrains of a UTF-8 text file, each with its number; InputError if it has none."""
    quatrains, reason = [], "has no words in it"
    try:
        quatrains = split_quatrains(clean(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        reason = f"cannot be read ({error.strerror}), seen from {Path.cwd()}"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (see byte {error.start}; iconv converts it)"
    if not quatrains:
        raise InputError(f"corpus {path} {reason}: set corpus to a text file in UTF-8")
    return quatrains


def clean(text: str) -> str:
    """Bring a text to one spelling, NFC, without what cannot be seen and spaces around lines. A
    U+2019 between letters is an apostrophe, else a quotation mark; a U+200B parts words."""
    text = re.sub(r"[^\S\n]|\u200b", " ", text)
    # The joiners cannot be seen either, but some scripts are spelt with them.
    text = "".join(c for c in text if c.isprintable() or c in "\n\u200c\u200d")
    text = unicodedata.normalize("NFC", text)
    return re.sub(r"(?<!\w)\u2019|\u2019(?!\w)|^ +| +$", "", text, flags=re.MULTILINE)


def split_quatrains(text: str) -> list:
    """Part a cleaned text into its stanzas, or lines if none is blank, each with its number."""
    gap = "\n\n" if "\n\n" in COMMENT.sub("", text).strip() else "\n"
    # What stands before the first heading has none.
    pieces = ["", *HEADING.split(text)]
    quatrains = []
    for heading, piece in zip(pieces[::2], pieces[1::2], strict=True):
        stanzas = filter(tokenize, COMMENT.sub("", piece).split(gap))
        for number, stanza in enumerate(stanzas, 1):
            quatrains.append((f"{heading}.{number}".lstrip("."), stanza.strip()))
    return quatrains


def tokenize(text: str, line_ends: bool = False) -> list[str]:
    """Split a cleaned text into lower-case tokens, `. , ; ! ?` being tokens of their own, and with
    `line_ends` also the ends of all lines but the last, by their number."""
    lines = list(filter(None, map(TOKEN.findall, text.lower().split("\n"))))
    tokens = []
    for number, line in enumerate(lines, 1):
        tokens += line
        if line_ends and number < len(lines):
            tokens.append(f"<LINE{number}>")
    return tokens


def index_corpus(quatrains: list, line_ends: bool = False) -> Corpus:
    """Number the words by falling frequency, from 1; 0 is the break, which counts once (int64)."""
    tokens = [tokenize(text, line_ends) for _, text in quatrains]
    ranked = Counter(word for row in tokens for word in row).most_common()
    words, counts = zip((BREAK, 1), *ranked, strict=True)
    return Corpus(quatrains, tokens, list(words), np.array(counts))


# ==== Samples: what the model is shown, and what it should answer ====


def cut_phrases(corpus: Corpus, phrase_len: int, whole: bool) -> np.ndarray:
    """Cut every window of `phrase_len` tokens and the one after them out of each quatrain (int32,
    samples x phrase_len + 1). With a break before and after it, n tokens give n + 2 - phrase_len
    windows; `whole` puts a phrase of breaks before it, so that they give n + 1. The windows come
    in an order at random, in which each target has its place by the corpus alone."""
    index = {word: number for number, word in enumerate(corpus.words)}
    breaks = [0] * phrase_len
    row = [*breaks]
    for tokens in corpus.tokens:
        row += [index[token] for token in tokens] + breaks
    windows = np.lib.stride_tricks.sliding_window_view(np.array(row, np.int32), phrase_len + 1)
    # Of the breaks after a quatrain the first is a target.
    windows = windows[(windows[:, -2:] > 0).any(1)]
    windows = np.random.default_rng(0).permutation(windows)
    if not whole:
        windows = windows[(windows[:, :-1] == 0).sum(1) < 2]
    return windows


def make_samples(corpus: Corpus, settings: Settings) -> list[tuple]:
    """Cut a corpus into samples, 95 % to train on and 5 % to validate with: each phrases (int32,
    samples x phrase_len), targets (int32, samples x 1) and weights (float32, samples): the square
    root of the target's count, or 1. InputError when 5 % would be less than one."""
    windows = cut_phrases(corpus, settings.phrase_len, settings.whole_quatrains)
    if len(windows) < 20:
        raise InputError(
            f"the corpus gives {len(windows)} samples, too few: set corpus to a longer one"
        )
    weights = np.ones(len(corpus.words))
    if settings.weighted:
        weights = np.sqrt(corpus.counts)
    targets = windows[:, -1]
    samples = windows[:, :-1], targets[:, None], weights[targets].astype(np.float32)
    size = int(0.95 * len(windows))
    return [tuple(array[part] for array in samples) for part in (slice(size), slice(size, None))]


# ==== The model: all of it stands here; edit it, and everything follows ====


def build_model(embeddings: np.ndarray, settings: Settings) -> keras.Model:
    """Build and compile the model of 2017, Embedding -> GRU -> Dense softmax, and what recipes add.
    Takes the embedding to start from (words x dim). Any Keras model will do that maps phrases
    (int32, batch x phrase_len) to the probabilities of the next word (float, batch x words); its
    loss and metrics are given targets as numbers of words (int32, batch x 1)."""
    words, dim = embeddings.shape
    penalty = keras.regularizers.L2(settings.regularization)
    model = keras.Sequential(name="quatrains")
    model.add(keras.Input((settings.phrase_len,), dtype="int32", name="words"))
    embedding = keras.layers.Embedding(words, dim)
    model.add(embedding)
    model.add(
        keras.layers.GRU(
            settings.gru_dim,
            dropout=settings.dropout,
            recurrent_dropout=settings.dropout,
            kernel_regularizer=penalty,
            recurrent_regularizer=penalty,
            bias_regularizer=penalty,
            # A loop over a few words costs more than the words; over many, unrolling does.
            unroll=settings.phrase_len <= 8,
            use_cudnn=False,  # It knows no recurrent dropout, and XLA does not know it.
            name="GRU",
        )
    )
    if settings.dense_dropout:
        model.add(keras.layers.Dropout(settings.dense_dropout))
    model.add(keras.layers.Dense(words, activation="softmax"))
    embedding.set_weights([embeddings])
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=[
            keras.metrics.MeanMetricWrapper(sparse_categorical_accuracy, name="acc"),
        ],
        jit_compile=True,  # By itself Keras leaves XLA out on a CPU.
        steps_per_execution=8,  # Each call copies the weights; more save nothing.
    )
    return model


def make_callbacks(settings: Settings) -> list:
    """Return callbacks of Keras's, which act as under `fit`; epochs count through all runs."""
    return []


def sparse_categorical_accuracy(targets, predicted):
    """How often the likeliest word is the right one. Keras's own takes an argmax, slow in XLA; of
    the same name, so that plain Keras loads a checkpoint with its own."""
    # A softmax's output carries its logits in Keras; the loss needs their maximum, too.
    logits = getattr(predicted, "_keras_logits", predicted)
    chosen = tf.gather(logits, targets, batch_dims=1)
    return tf.cast(chosen[:, 0] >= tf.reduce_max(logits, -1), tf.float32)


def check_model(model: keras.Model, words: int, phrase_len: int):
    """Try a model on two phrases; InputError when it is not what `build_model` promises."""
    # A checkpoint of what Keras cannot make anew, such as a Lambda, could be written but not read.
    with keras.saving.custom_object_scope(globals()):
        type(model).from_config(model.get_config())
    phrases = np.zeros((2, phrase_len), np.int32)
    chances = np.array(model(phrases), np.float32)
    sums = chances.sum(-1)
    if chances.shape != (2, words) or chances.min() < 0 or not np.allclose(sums, 1, atol=0.02):
        raise InputError(
            f"build_model: two phrases must give (2, {words}) probabilities, each row with the sum "
            f"1, and give {chances.shape} from {chances.min():.3g} with the sum {sums.max():.3g}"
        )
    model.test_step((phrases, phrases[:, :1]))  # Builds what it measures.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


# ==== Training: runs of some epochs, and some quatrains after each ====


def train(settings: Settings) -> "Prophet":
    """Train and write as the settings say, to the end or, in a session, to an interrupt. Returns
    what writes quatrains with the model. InputError for what the settings cannot have."""
    with tf.device(prepare_device(settings)):
        if settings.resume:
            prophet = load_checkpoint(find_checkpoint(Path(settings.logs)), settings)
            print(f"Going on after run {prophet.runs - 1} of {prophet.folder}.")
        else:
            prophet = begin_training(settings)
        with locked(prophet.folder):
            try:
                train_runs(prophet)
            except KeyboardInterrupt:
                if not IN_SESSION:
                    raise
            finally:
                report_end(prophet.folder)
        return prophet


def begin_training(settings: Settings) -> "Prophet":
    """Read the corpus, build the model and, where nothing is amiss, make a folder."""
    corpus = index_corpus(read_corpus(Path(settings.corpus)), settings.whole_quatrains)
    make_samples(corpus, settings)  # To hear of a corpus that is too short before GloVe is fetched.
    seed = settings.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    embeddings = start_embeddings(corpus.words, settings, np.random.default_rng(seed))
    keras.utils.clear_session()  # Or a session's second model would have an `embedding_1`.
    keras.utils.set_random_seed(seed)
    model = build_model(embeddings, settings)
    prophet = Prophet(settings, corpus, model, seed)
    prophet.folder = make_folder(settings)
    return prophet


def report_end(folder: Path):
    """Say what is kept of a training when it ends; a folder without a checkpoint is removed."""
    path = folder / "checkpoint.keras"
    if path.exists():
        print(f"\n{path} holds the training up to its last whole run.")
        print("Go on with resume = True (--resume), write with generate = 20 (--generate 20).")
    else:
        shutil.rmtree(folder)
        print("\nNothing is kept, for the first run had not ended.")


def train_runs(prophet: "Prophet"):
    """Train from the run that a prophet is at, by Keras's `fit`."""
    settings, corpus, model = prophet.settings, prophet.corpus, prophet.model
    training, validation = make_samples(corpus, settings)
    sizes = f"Train on {len(training[1])} samples, validate on {len(validation[1])} samples"
    print(settings)
    print(
        f"Corpus: {settings.corpus} has {len(corpus.quatrains):,} quatrains, "
        f"{corpus.counts[1:].sum():,} tokens, {len(corpus.words) - 1:,} distinct words."
    )
    model.summary()
    model.train_function = compile_training(model, training, settings.batch_size)
    size = model.steps_per_execution * settings.batch_size
    first, last = prophet.runs * settings.epochs_per_run, settings.runs * settings.epochs_per_run

    @tf.autograph.experimental.do_not_convert
    def draw_order(epoch):
        numbers = tf.range(len(training[1]))
        order = tf.random.experimental.stateless_shuffle(numbers, [prophet.seed, epoch])
        return tf.data.Dataset.from_tensor_slices(order).batch(size)

    runs = Runs(prophet, sizes)
    model.fit(
        tf.data.Dataset.range(first, last).flat_map(draw_order),
        steps_per_epoch=math.ceil(len(training[1]) / settings.batch_size),
        initial_epoch=first,
        epochs=last,
        validation_data=validation[:2],
        validation_batch_size=settings.batch_size,
        callbacks=[runs, *make_callbacks(settings)],
        verbose=1 if IN_SESSION or os.isatty(1) else 2,  # Bars where they can move.
        shuffle=False,
    )
    runs.end_run()  # After EarlyStopping has put the best weights back.


class Runs(keras.callbacks.Callback):
    """Ends each run where the next one begins: writes, logs, and saves. Stands first, so that what
    the user's own callbacks do for the next epoch is not saved with the last one."""

    def __init__(self, prophet: "Prophet", sizes: str):
        super().__init__()
        self.prophet, self.sizes = prophet, sizes
        # Kept, because two files of the same second in a folder would be read out of order.
        self.writers = {}
        for place in ("", "train", "validation"):
            self.writers[place] = tf.summary.create_file_writer(str(prophet.folder / place))

    def on_train_begin(self, logs=None):
        """Log what is trained."""
        self.prophet.history = self.model.history
        if not self.prophet.runs:
            log_training(self.writers[""], self.prophet)

    def on_epoch_begin(self, epoch, logs=None):
        """Begin a run, or go on with it, by dropouts that repeat exactly."""
        run, trained = divmod(epoch, self.prophet.settings.epochs_per_run)
        if run > self.prophet.runs:
            self.end_run()
        if not trained:
            print(f"\nRun {run}\n{self.sizes}")
        # Keras does not save on what the masks of its dropouts hang, so it is drawn anew.
        rng = np.random.default_rng([self.prophet.seed, epoch, 2])
        for variable in self.model.non_trainable_variables:
            if variable.name == "seed_generator_state":
                variable.assign(rng.integers(2**32, size=2, dtype=np.uint32))

    def on_epoch_end(self, epoch, logs=None):
        """Log the figures, unless there are none any more."""
        if not np.isfinite(logs.get("val_loss", 0)):
            raise InputError("val_loss is no number any more: lower learning_rate, and train again")
        log_epoch(self.writers, self.model, epoch, logs)

    def end_run(self):
        """Write quatrains, log them, and save the training."""
        prophet, settings = self.prophet, self.prophet.settings
        prophet.runs += 1
        written = prophet.write(settings.quatrains_per_run, seed=[prophet.seed, prophet.runs, 1])
        print()
        print(*written, sep="\n" if settings.raw else "\n\n")
        print(f"\n{report_quotes(written)}")
        log_run(self.writers, prophet, written)
        save_checkpoint(prophet)


def compile_training(model: keras.Model, samples: tuple, batch_size: int):
    """Compile what `fit` calls for each item of its data, which is numbers of samples: some of the
    model's own training steps, with XLA where its `compile` lets it."""
    data = [tf.constant(array) for array in samples]
    apply_gradients = model.optimizer.apply_gradients

    def apply_dense(pairs):
        # As in 2017: Keras 3 squares apart the parts of a word that a batch has twice.
        apply_gradients([(g if g is None else tf.convert_to_tensor(g), v) for g, v in pairs])

    # AutoGraph is off in all graphs: it reads the source again, which may have been edited.
    @tf.function(autograph=False)
    def train_step(numbers):
        with (
            mock.patch.object(model.optimizer, "apply_gradients", apply_dense),
            mock.patch.object(tf.nn.experimental, "stateless_dropout", hash_dropout),
        ):
            model.train_step(tuple(tf.gather(array, numbers) for array in data))

    @tf.function(jit_compile=model.jit_compile, autograph=False)
    def train_steps(batches, steps):
        def advance(step):
            train_step(batches[step])
            return step + 1

        tf.while_loop(lambda step: step < steps, advance, [0])

    def train_function(iterator):
        numbers = next(iterator).numpy()
        steps, rest = divmod(len(numbers), batch_size)
        if steps:
            # Of one shape, so that it is compiled once; only so many steps of it are taken.
            batches = np.resize(numbers, (model.steps_per_execution, batch_size))
            train_steps(batches, np.int32(steps))
        if rest:
            train_step(numbers[-rest:])
        return model.get_metrics_result()

    return train_function


# ==== Verse: four lines, capitals, punctuation closed up ====


def learn_capitals(quatrains: list) -> dict:
    """Learn from quatrains how each word is usually written. A capital means something only where a
    word starts neither a line nor a sentence."""
    forms = Counter()
    for line in "\n".join(text for _, text in quatrains).split("\n"):
        words = TOKEN.findall(line)
        forms.update(word for before, word in pairwise(words) if before not in SENTENCE_ENDS)
    # The most frequent form of a word comes last, and stays.
    return {form.lower(): form for form, _ in reversed(forms.most_common())}


def part_lines(tokens: list, capitals: dict) -> list:
    """Part tokens into the lines whose ends are among them, as words with capitals and with their
    punctuation. Punctuation starts no line, and of several marks in a row the last stands."""
    lines, starts_sentence = [[]], True
    for token in tokens:
        line = lines[-1]
        if token.startswith("<"):
            lines.append([])
        elif token not in PUNCTUATION:
            word = capitals.get(token, token)
            line.append(capitalize(word) if starts_sentence else word)
            starts_sentence = False
        elif line:
            line[-1] = line[-1].rstrip(PUNCTUATION) + token
            starts_sentence = token in SENTENCE_ENDS
    return [line for line in lines if line]


def guess_lines(words: list) -> list:
    """Part words, with their punctuation, into four lines of like length, or fewer where there are
    fewer words. In letters: a pause at its end makes up for two words of imbalance."""
    letters = [0, *accumulate(len(word) + 1 for word in words)]
    cuts = [0]
    for quarter in (1, 2, 3):
        ideal = letters[-1] * quarter / 4
        rated = []
        for place in range(cuts[-1] + 1, len(words) - 3 + quarter):
            pause = 10 if words[place - 1][-1] in PUNCTUATION else 0
            rated.append((abs(letters[place] - ideal) - pause, place))
        if rated:
            cuts.append(min(rated)[1])
    return [words[start:end] for start, end in pairwise([*cuts, len(words)])]


def format_verse(tokens: list, capitals: dict) -> str:
    """Restore tokens to verse: spacing, capitals of names, sentences and lines. Where no ends of
    lines are among them, four lines of like length are guessed."""
    lines = part_lines(tokens, capitals)
    if len(lines) == 1:
        lines = guess_lines(lines[0])
    return "\n".join(capitalize(" ".join(line)) for line in lines)


def capitalize(text: str) -> str:
    """Put the first letter in title case, which some letters have beside upper case."""
    return text[:1].title() + text[1:]


# ==== Writing: what a trained model is good for ====


class Quatrain(NamedTuple):
    """A new quatrain, its score, and the longest quote from the corpus in it, from `source`."""

    tokens: list[str]
    verse: str
    quote: list[str]
    source: str
    slor: float

    def __str__(self) -> str:
        """Give the verse, for print."""
        return self.verse


def draw_words(chances: np.ndarray, temperature: float, top_p: float, rng: Generator) -> np.ndarray:
    """Draw a word for each row of probabilities (float64, rows x words): at a temperature, and from
    the likeliest only that together have the share `top_p` (nucleus sampling, Holtzman et al.
    2020). Returns the numbers of the words (int64, rows)."""
    chances = (chances / chances.max(1, keepdims=True)) ** (1 / temperature)
    chances /= chances.sum(1, keepdims=True)
    if top_p < 1:
        ranked = -np.sort(-chances, 1)
        needed = ranked.cumsum(1) - ranked < top_p
        least = np.where(needed, ranked, 1).min(1, keepdims=True)
        chances[chances < least] = 0
    sums = chances.cumsum(1)
    return (sums <= rng.random((len(sums), 1)) * sums[:, -1:]).sum(1)


def longest_quote(words: list[str], source: str) -> list[str]:
    """Find the longest run of words that stands in a source; ` a b \n c ` is one of two texts."""
    quote, start = [], 0
    for end in range(1, len(words) + 1):
        while start < end and f" {' '.join(words[start:end])} " not in source:
            start += 1
        quote = max(quote, words[start:end], key=len)
    return quote


def look_up(opening: str, words: list[str], max_words: int) -> list[int]:
    """Turn opening words into numbers; InputError names those that the corpus has not."""
    tokens = tokenize(clean(opening))
    for token in tokens:
        if token not in words:
            near = ", ".join(get_close_matches(token, words, 3, 0.5)) or "nothing"
            raise InputError(f"opening has {token!r}, which the corpus lacks (near it: {near})")
    if len(tokens) >= max_words:
        raise InputError(f"opening has {len(tokens)} words: set max_words to more, or cut it")
    return [words.index(token) for token in tokens]


def form_of(tokens: list) -> tuple:
    """How many lines a quatrain has, and whether it ends a sentence."""
    return len(part_lines(tokens, {})), bool(tokens) and tokens[-1] in SENTENCE_ENDS


@dataclass(eq=False)
class Prophet:
    """A trained model that writes quatrains, and all that its training needs to go on: its folder,
    its seed, and how many runs it has."""

    settings: Settings
    corpus: Corpus
    model: keras.Model
    seed: int
    folder: Path | None = None
    runs: int = 0
    history: keras.callbacks.History | None = None  # As `fit` returns it.
    quoted: int = 0  # Words in the longest quote of what was drafted last.

    def __post_init__(self):
        """Check what it is given, learn from the corpus what writing needs, compile predictions."""
        settings, corpus, model = self.settings, self.corpus, self.model
        look_up(settings.opening, corpus.words, settings.max_words)
        check_model(model, len(corpus.words), settings.phrase_len)
        self.capitals = learn_capitals(corpus.quatrains)
        self.form = Counter(map(form_of, corpus.tokens)).most_common(1)[0][0]
        self.log_frequencies = np.log(corpus.counts / corpus.counts.sum())
        # For quotes, which are such whatever punctuation stands between their words.
        rows = [" ".join(filter(WORD.match, tokens)) for tokens in corpus.tokens]
        self.source = "\n".join(f" {row} " for row in rows)
        self.predict = tf.function(model, reduce_retracing=True, autograph=False)

    def write(self, count: int = 5, seed: Any = None, **changes: Any) -> list[Quatrain]:
        """Write quatrains as the settings say, or with changes to them, such as `temperature`,
        `top_p`, `drafts`, `opening` and `max_quote`; a `seed` repeats them exactly. Each is the
        best of its drafts: those that quote no more than `max_quote` come first, then those in the
        corpus's form, then those of a higher SLOR. What is empty or quotes too much is drafted
        again; after ten times a quatrain, what is empty is left out, and a quote is let pass."""
        settings = Settings(**asdict(self.settings) | changes)
        start = look_up(settings.opening, self.corpus.words, settings.max_words)
        rng = np.random.default_rng(seed)

        def rate(draft):
            quotes_little = len(draft.quote) <= settings.max_quote
            return quotes_little, form_of(draft.tokens) == self.form, draft.slor

        written, rejected, self.quoted = [], 0, 0
        while len(written) < count:
            # A thousand drafts at once, for memory's sake.
            some = min(count - len(written), max(1, 1000 // settings.drafts))
            drafts = self.draw(some * settings.drafts, start, settings, rng)
            for number in range(some):
                best = max(drafts[number::some], key=rate)
                if 0 < len(best.quote) <= settings.max_quote or rejected == 10 * count:
                    written.append(best)
                else:
                    rejected += 1
        return [quatrain for quatrain in written if quatrain.tokens]

    def draw(
        self, count: int, start: list[int], settings: Settings, rng: Generator
    ) -> list[Quatrain]:
        """Draw quatrains: an all-break phrase and a start, then words, to a break or `max_words`.
        Their SLOR is the mean of log p(word | phrase) - log p(word), at temperature 1 (Pauls &
        Klein 2012; Lau, Clark & Lappin 2017)."""
        length = settings.phrase_len
        rows = np.zeros((count, length + settings.max_words), np.int32)
        rows[:, length : length + len(start)] = start
        gains, going = np.zeros(rows.shape), np.arange(count)
        for place in range(length + len(start), rows.shape[1]):
            chances = np.array(self.predict(rows[going, place - length : place]), np.float64)
            drawn = draw_words(chances, settings.temperature, settings.top_p, rng)
            rows[going, place] = drawn
            likelihoods = np.log(chances[np.arange(len(going)), drawn])
            gains[going, place] = likelihoods - self.log_frequencies[drawn]
            going = going[drawn > 0]
            if not going.size:
                break
        quatrains = []
        for row, gain in zip(rows, gains, strict=True):
            tokens = [self.corpus.words[word] for word in row if word]
            slor = gain[row > 0].sum() / max(1, len(tokens) - len(start))
            quatrains.append(self.describe(tokens, slor, settings.raw))
        return quatrains

    def describe(self, tokens: list[str], slor: float, raw: bool) -> Quatrain:
        """Make a quatrain of its tokens and its score: restore its verse, look for its quote."""
        quote = longest_quote(list(filter(WORD.match, tokens)), self.source)
        self.quoted = max(self.quoted, len(quote))
        before = self.source.partition(f" {' '.join(quote)} ")[0]
        source = self.corpus.quatrains[before.count("\n")][0] if quote else ""
        verse = " ".join(tokens) if raw else format_verse(tokens, self.capitals)
        return Quatrain(tokens, verse, quote, source, slor)


def report_quotes(written: list) -> str:
    """Say which quote is the longest."""
    if not written:
        return "All that was drawn is empty."
    longest = max(written, key=lambda quatrain: len(quatrain.quote))
    words = " ".join(longest.quote)
    return f'Longest quote: {len(longest.quote)} words, "{words}" ({longest.source}).'


def generate(settings: Settings) -> Prophet:
    """Write with the training saved last, without training; say on standard error which that is.
    Returns what wrote."""
    path = find_checkpoint(Path(settings.logs))
    with tf.device(prepare_device(settings)):
        prophet = load_checkpoint(path, settings)
        written = prophet.write(settings.generate, settings.seed)
    print(*written, sep="\n" if settings.raw else "\n\n")
    print(f"\nFrom {path}. {report_quotes(written)}", file=sys.stderr)
    return prophet


# ==== GloVe: vectors that already know something of the words ====

GLOVE_DIMS = (50, 100, 200, 300)
GLOVE_URL = "https://nlp.stanford.edu/data/glove.6B.zip"
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
WITHOUT_GLOVE = 'glove = "none" (--glove none) to go without'


def start_embeddings(words: list[str], settings: Settings, rng: Generator) -> np.ndarray:
    """Make the embedding that training starts from (float32, words x dim), and say how: GloVe's own
    vectors of the words that the setting's file knows, and normal ones with GloVe's spread."""
    dim = settings.embedding_dim
    embeddings = rng.normal(0, 0.4, (len(words), dim)).astype(np.float32)
    path = find_glove(settings.glove, dim)
    if path:
        known = read_glove(path, words, embeddings)
        print(
            f"GloVe: {path} knows {known:,} of {len(words) - 1:,} words; the others start random."
        )
    return embeddings


def find_glove(glove: str, dim: int) -> Path | None:
    """Find the file that `glove` names, or fetch it, once; None without, and where it cannot be
    had, which it says."""
    if glove == "none":
        return None
    if glove != "auto":
        return Path(glove)
    if dim not in GLOVE_DIMS:
        raise InputError(
            f"GloVe needs an embedding_dim among {GLOVE_DIMS}: set it, or {WITHOUT_GLOVE}"
        )
    for path in (Path(f"data/glove.6B.{dim}d.txt"), Path("data/glove.6B.zip")):
        if path.exists():
            return path
    print(f"GloVe: out of Keras's cache, or else fetched, 862 MB, this once; {WITHOUT_GLOVE}.")
    socket.setdefaulttimeout(20)  # Seconds without a byte; Keras sets none of its own.
    try:
        # Keras checks the hash of the whole file each time, so that none cut short is ever read.
        return Path(keras.utils.get_file("glove.6B.zip", GLOVE_URL, file_hash=GLOVE_SHA256))
    except Exception as error:  # Keras raises bare ones.
        print(f"\nGloVe: not to be had ({error}), so all words start random; {WITHOUT_GLOVE}.")
        return None
    finally:
        socket.setdefaulttimeout(None)


def read_glove(path: Path, words: list[str], embeddings: np.ndarray) -> int:
    """Put vectors in the place of the embeddings (float32, words x dim) of words that a file knows:
    a text whose lines are a word and `dim` numbers with single spaces between, or a zip with one
    for `dim` dimensions. Returns how many; InputError when what is looked at is not that."""
    dim = embeddings.shape[1]
    unknown = {word.encode(): index for index, word in enumerate(words)}
    try:
        file = path.open("rb")
        if path.suffix == ".zip":
            # Buffered, because a zip member hands out lines three times as slowly by itself.
            member = zipfile.ZipFile(file).open(f"glove.6B.{dim}d.txt")  # noqa: SIM115
            file = io.BufferedReader(member, 2**18)
        with file:
            for line in file:
                word, _, numbers = line.partition(b" ")
                if word in unknown:
                    vector = np.array(numbers.split(), np.float32)
                    if len(vector) != dim or not np.isfinite(vector).all():
                        raise ValueError(f"{word.decode()} has not {dim} numbers")
                    embeddings[unknown.pop(word)] = vector
        known = len(words) - len(unknown)
        if not known:
            raise ValueError("it has no word of the corpus")
    except Exception as error:  # Files that are not what they are taken for raise most of them.
        raise InputError(
            f"GloVe file {path} cannot be used ({error}): set glove to another, or {WITHOUT_GLOVE}"
        ) from None
    return known


# ==== Logs: one folder a training, and what TensorBoard shows of it ====


def make_folder(settings: Settings) -> Path:
    """Make the folder of a new training, named after its start; InputError where it cannot be."""
    while True:
        name = f"{time.strftime('%y%m%d-%H%M%S')}-{settings.name or settings.recipe}"
        folder = Path(settings.logs, name)
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if not folder.exists():  # Or else another one started in this second.
                raise InputError(
                    f"{folder} cannot be made ({error.strerror}): set logs to another"
                ) from None
            time.sleep(0.1)


@contextlib.contextmanager
def locked(folder: Path):
    """Keep other trainings out of a training's folder; raise InputError if one is at it."""
    with (folder / "lock").open("w") as file:
        # The lock is the system's own, so it is gone when its holder is. Windows has none such.
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problem = f"a training is going on in {folder}"
                raise InputError(f"{problem}: wait for its end, or start another") from None
        yield


def log_training(writer: tf.summary.SummaryWriter, prophet: Prophet):
    """Write the graph, layer by layer, and the settings as a row of HParams."""
    model, settings = prophet.model, prophet.settings

    @tf.function(autograph=False)
    def layers(words):
        # Other models than a chain of layers are traced whole.
        for layer in model.layers if isinstance(model, keras.Sequential) else [model]:
            with tf.name_scope(layer.name):
                words = layer(tf.identity(words))  # So that one edge enters a layer.
        return words

    # TensorBoard sorts by key, capitals first, and shows five.
    row = {"Name": settings.name or settings.recipe}
    for name, value in asdict(settings).items():
        if name not in CHANGEABLE and value is not None:
            row[name] = value
    with writer.as_default(0):
        # A batch of known size, or the edges would carry arithmetic on its size, too.
        words = tf.TensorSpec((settings.batch_size, settings.phrase_len), tf.int32, "words")
        tf.summary.graph(layers.get_concrete_function(words).graph)
        hparams.hparams(row, trial_id=prophet.folder.name)


def log_epoch(writers: dict, model: keras.Model, epoch: int, figures: dict):
    """Write the figures of an epoch, by its number as it is printed, from 1."""
    figures = figures | {"learning_rate": float(model.optimizer.learning_rate)}
    if "val_loss" in figures:
        # What recipes compare by: the loss without the penalties on weights.
        figures["val_cross_entropy"] = figures["val_loss"] - float(sum(model.losses))
    for name, value in figures.items():
        place = "validation" if name.startswith("val_") else "train"
        with writers[place].as_default(epoch + 1):
            tf.summary.scalar(name.removeprefix("val_"), value)


def log_run(writers: dict, prophet: Prophet, written: list[Quatrain]):
    """Write where a run ended: weights, embedding, quatrains and how much they quote."""
    with writers[""].as_default(prophet.runs * prophet.settings.epochs_per_run):
        for weight in prophet.model.trainable_weights:
            # Of a large weight a sample shows the same shape in a tenth of the time.
            values = weight.numpy().ravel()
            name = f"weights/{weight.path.removeprefix(prophet.model.name + '/')}"
            tf.summary.histogram(name, values[:: values.size // 50_000 + 1])
        verses = [quatrain.verse for quatrain in written]
        tf.summary.text("quatrains", "\n\n".join([f"Run {prophet.runs - 1}", *verses]))
        tf.summary.scalar("quote", prophet.quoted)
        if written:
            tf.summary.scalar("slor", np.mean([quatrain.slor for quatrain in written]))
    log_embedding(prophet.folder, prophet.model, prophet.corpus.words)
    for writer in writers.values():
        writer.flush()


def log_embedding(folder: Path, model: keras.Model, words: list):
    """Write the matrices that have a row for each word, and the words, for the projector."""
    (folder / "words.tsv").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = ""
    for number, weight in enumerate(model.trainable_weights):
        if len(weight.shape) == 2 and weight.shape[0] == len(words):
            name = f"embedding{number}"
            # The first byte, or TensorBoard may take the numbers for text.
            matrix = b"\xff" + weight.numpy().astype(np.float32).tobytes()[1:]
            (folder / name).write_bytes(matrix)
            config += f"""embeddings {{
              tensor_name: "{name}" tensor_path: "{name}" metadata_path: "words.tsv"
              tensor_shape: {len(words)} tensor_shape: {weight.shape[1]}
            }}\n"""
    (folder / "projector_config.pbtxt").write_text(config)


# ==== Checkpoint: all that a training needs to go on, in one file ====


def save_checkpoint(prophet: Prophet):
    """Write what Keras saves, and what it lacks, so that no crash leaves a checkpoint in parts."""
    path = prophet.folder / "checkpoint.keras"
    new = path.with_name("unfinished.keras")
    settings, quatrains = asdict(prophet.settings), prophet.corpus.quatrains
    prophet.model.save(new)
    with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "quatrains.json", json.dumps([prophet.runs, prophet.seed, settings, quatrains])
        )
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    new.replace(path)


def find_checkpoint(logs: Path) -> Path:
    """Find the checkpoint of the training that `logs` names, or the last that was saved in it."""
    found = list(logs.rglob("checkpoint.keras"))
    if not found:
        raise InputError(
            f"{logs} has no checkpoint (yet): train first, or set logs to a training's"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def load_checkpoint(path: Path, settings: Settings) -> Prophet:
    """Load a training; InputError where it cannot be read or settings would make it another one."""
    try:
        with zipfile.ZipFile(path) as archive:
            runs, seed, began, quatrains = json.loads(archive.read("quatrains.json"))
        settings = keep_settings(settings, began, path.parent)
        if not settings.generate and runs >= settings.runs:
            raise InputError(f"{path.parent} has its {runs} runs already: set runs higher")
        corpus = index_corpus(quatrains, settings.whole_quatrains)
        model = keras.models.load_model(path, globals())
        return Prophet(settings, corpus, model, seed, path.parent, runs)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"checkpoint {path} cannot be loaded ({reason}): "
            "mend that, or set logs to another training's folder"
        ) from None


def keep_settings(settings: Settings, began: dict, folder: Path) -> Settings:
    """Put what a training began with in the place of the file's settings; InputError where the
    command line says otherwise."""
    fixed = {name: value for name, value in began.items() if name not in CHANGEABLE}
    if settings.generate:
        del fixed["seed"]  # Then it is that of the writing.
    for name, value in settings.given.items():
        if fixed.get(name, value) != value:
            raise InputError(
                f"{folder} was trained with {name} = {fixed[name]!r}, not {value!r}: "
                "leave that out, or set logs to another training's folder"
            )
    return Settings(**fixed | settings.given)


# ==== Dropout: masks for Keras, drawn as XLA can draw them fast ====


def mix(bits):
    """Hash 32-bit numbers: Chris Wellons's lowbias32."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits ^= tf.bitwise.right_shift(bits, np.uint32(shift))
        bits *= np.uint32(factor)
    return bits


def hash_dropout(values: tf.Tensor, rate: float, seed, noise_shape=None) -> tf.Tensor:
    """Do what tf.nn.experimental.stateless_dropout does, which all of Keras's dropouts call, with
    other random bits: XLA draws TensorFlow's so slowly that an epoch would take three times as
    long. Every element has 16 bits of a hash of its number and the seed (two ints), and is 0 where
    they are below `rate`. The bits have a test of their own."""
    sides = noise_shape if isinstance(noise_shape, list) else values.shape
    shape = [tf.get_static_value(n) or size for n, size in zip(sides, values.shape, strict=True)]
    size = math.prod(shape)
    seed = tf.cast(seed, tf.uint32)
    key = mix(seed[0] ^ mix(seed[1] + np.uint32(0x9E3779B9)))
    index = tf.cast(tf.range((size + 1) // 2), tf.uint32)
    bits = mix(index * np.uint32(0x9E3779B1) ^ key)
    halves = tf.reshape(tf.bitcast(bits, tf.uint16), [-1])
    halves = tf.cast(tf.reshape(halves[:size], shape), tf.int32)
    squares = tf.where(halves < round(rate * 2**16), 0.0, (1 - rate) ** -2)
    # The root, because XLA keeps what takes it long; a cheap mask it would hash anew at each use.
    return values * tf.cast(tf.sqrt(squares), values.dtype)


# ==== Main ====

if __name__ == "__main__":
    with plain_endings():
        prophet = (generate if SETTINGS.generate else train)(SETTINGS)
