"""Learn to write new prophecies in the manner of Nostradamus.

    python quatrains.py                          train, and write five quatrains after every run
    python quatrains.py --runs 2 --glove none    the same, in small
    python quatrains.py --help                   every setting, with its default
    tensorboard --port 8080 --logdir=logs        watch it

A port to TensorFlow and Keras 3 of a system published in 2017. It is told in the order in which
things happen: settings, command line, corpus, phrases, GloVe, model, training, sampling, verse,
logs, main.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import re
import secrets
import sys
import tempfile
import textwrap
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# ==== Settings: edit them and run again, or give them on the command line (--gru-dim 256) ====

# Device. True trains on /gpu:0, False on /cpu:0.
use_gpu = False

# Model. GloVe comes in 50, 100, 200 and 300 dimensions; without GloVe, any size from 1.
embedding_dim = 300
# Units of the GRU, from 1. More of them learn faster, and quote the corpus sooner.
gru_dim = 128
# Part of the GRU's inputs and of its state that a training step hides, from 0 to below 1. Half is
# much, but the corpus is small, and a model that sees everything soon knows it by heart.
dropout = 0.5
# L2 penalty on the GRU's kernel, recurrent kernel and bias, from 0. More makes the output tamer;
# the losses that are printed include it.
regularization = 0.02
# Tokens that the model sees before it guesses the next one, from 1.
phrase_len = 4

# Training. Samples a step, from 1.
batch_size = 512
# Step size of RMSprop, above 0. High, because the model is small and somebody is watching.
learning_rate = 0.003
# A run is some epochs and then some quatrains. A thousand last a night and more; stop any time.
runs = 1000
epochs_per_run = 5
# None, or a whole number from 0 that makes the training repeat exactly on the same machine.
seed = None

# Writing. Quatrains after each run, and the most words of one (punctuation counts), from 1.
quatrains_per_run = 5
max_words = 32
# True prints the bare tokens; False restores lines, capitals and spacing.
raw = False

# Files. Quatrains parted by blank lines, or, in a file without blank lines, one a line.
corpus = "data/quatrains.txt"
# "auto" takes data/glove.6B.<embedding_dim>d.txt or data/glove.6B.zip, whichever is there; "none"
# starts every word at random; anything else is the path of a text or zip file of vectors.
glove = "auto"
# The folder that TensorBoard reads. Earlier trainings in it are moved to `earlier`, not deleted.
logs = "logs"


class InputError(Exception):
    """A mistake that the user can mend; its text names the setting or file and the way out."""


class Setting(NamedTuple):
    """What a setting is for, its type, and what is legal, in words and as a test."""

    meaning: str
    kind: type
    legal: str
    test: Callable[[Any], bool]


FLAG = (bool, "True or False", lambda flag: flag in (True, False))
COUNT = (int, "a whole number from 1", lambda n: n >= 1)
SEED = (int, "None or a whole number from 0 to 4294967295", lambda n: 0 <= n < 2**32)
SHARE = (float, "a number from 0 to below 1", lambda x: 0 <= x < 1)
PENALTY = (float, "a number from 0", lambda x: 0 <= x < math.inf)
STEP_SIZE = (float, "a number above 0", lambda x: 0 < x < math.inf)
PATH = (str, "a path", lambda path: path.strip() != "")
VECTORS = (str, '"auto", "none" or a path', lambda path: path.strip() != "")
SETTINGS = {
    "use_gpu": Setting("train on /gpu:0 instead of /cpu:0", *FLAG),
    "embedding_dim": Setting("numbers in the vector of a word", *COUNT),
    "gru_dim": Setting("units of the GRU", *COUNT),
    "dropout": Setting("part of the GRU's inputs and state hidden in training", *SHARE),
    "regularization": Setting("L2 penalty on the GRU's weights", *PENALTY),
    "phrase_len": Setting("tokens seen before the next one is guessed", *COUNT),
    "batch_size": Setting("samples a training step", *COUNT),
    "learning_rate": Setting("step size of RMSprop", *STEP_SIZE),
    "runs": Setting("runs of a training", *COUNT),
    "epochs_per_run": Setting("epochs a run", *COUNT),
    "seed": Setting("number that makes a training repeat exactly", *SEED),
    "quatrains_per_run": Setting("quatrains written after each run", *COUNT),
    "max_words": Setting("most words of a quatrain", *COUNT),
    "raw": Setting("print the bare tokens, one quatrain a line", *FLAG),
    "corpus": Setting("text to learn from", *PATH),
    "glove": Setting("where word vectors come from", *VECTORS),
    "logs": Setting("folder for TensorBoard", *PATH),
}


# ==== Command line ====


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others here."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError where argparse would print its usage and exit."""
        raise InputError(f"{message}; --help lists all settings")


def read_settings(defaults: Mapping[str, Any], arguments: Sequence[str]) -> SimpleNamespace:
    """Merge the settings of the file with those of the command line, and check every one.

    Raises InputError for an unknown, ill-typed or illegal setting, from either side.
    """
    parser = OneLineParser(
        prog="quatrains.py",
        description="Learn to write new prophecies in the manner of Nostradamus.",
        epilog="The defaults stand at the top of quatrains.py, with the reasons for them.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, (meaning, kind, legal, _) in SETTINGS.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            help=f"{meaning}: {legal} (default: {defaults[name]})",
            **(
                {"action": argparse.BooleanOptionalAction} if kind is bool else {"metavar": "VALUE"}
            ),
        )
    given = vars(parser.parse_args(arguments))
    chosen = dict(defaults) | {name: parse_setting(name, text) for name, text in given.items()}
    settings = SimpleNamespace(**{name: check_setting(name, chosen[name]) for name in SETTINGS})
    if settings.glove == "auto" and settings.embedding_dim not in GLOVE_DIMS:
        raise InputError(
            f"embedding_dim = {settings.embedding_dim}, but GloVe comes in 50, 100, 200 and 300 "
            'dimensions: choose one of these, or set glove = "none"'
        )
    return settings


def parse_setting(name: str, text: str | bool) -> Any:
    """Turn what the command line gave into the setting's type, or leave it to be refused."""
    if name == "seed" and text.lower() == "none":
        return None
    try:
        return SETTINGS[name].kind(text)
    except ValueError:
        return text


def check_setting(name: str, value: Any) -> Any:
    """Return a legal value in its setting's type; raise InputError for any other."""
    _, kind, legal, test = SETTINGS[name]
    if name == "seed" and value is None:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is kind and test(value):
        return value
    raise InputError(f"{name} = {value!r} will not do: it must be {legal}")


def describe_settings(settings: SimpleNamespace) -> str:
    """Put the settings in force into a paragraph."""
    # No-break spaces keep a setting on one line.
    items = (f"{name}\xa0=\xa0{value!r}" for name, value in vars(settings).items())
    folded = textwrap.fill(", ".join(items), 88, initial_indent="  ", subsequent_indent="  ")
    return "Settings:\n" + folded.replace("\xa0", " ")


# ==== Corpus: quatrains, tokens, vocabulary ====

BREAK = "<BREAK>"
PUNCTUATION = ".,;!?"
SENTENCE_ENDS = ".!?"
# What the tokenizer of 2017 dropped, and the curly quotation marks and dashes of typeset texts.
DROPPED = '"#$%&()*+/:<=>@[\\]^_{|}~`\u201c\u201d\u201e\u00ab\u00bb\u2013\u2014\u2026'
TOKEN = re.compile(rf"[{PUNCTUATION}]|[^\s{re.escape(PUNCTUATION + DROPPED)}]+")


def read_corpus(path: Path) -> list[str]:
    """Read the quatrains of a UTF-8 text file, each with its lines as in the file.

    Quatrains are parted by blank lines; in a file without blank lines each line is one. Lines that
    start with `#` are comments. Raises InputError when the file cannot be read or has no words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"corpus {path} is not UTF-8 (see byte {error.start}): convert it, for instance with "
            "`iconv -f cp1252 -t utf-8`"
        ) from None
    except OSError as error:
        raise InputError(
            f"corpus {path} cannot be read ({error.strerror}): start in the folder of "
            "quatrains.py, or set corpus to a text file"
        ) from None
    text = "\n".join(line.strip() for line in lines if not line.startswith("#")).strip()
    quatrains = text.split("\n\n" if "\n\n" in text else "\n")
    quatrains = [quatrain.strip() for quatrain in quatrains if tokenize(quatrain)]
    if not quatrains:
        raise InputError(f"corpus {path} has no words: set corpus to a file of quatrains")
    return quatrains


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, capitals kept."""
    return TOKEN.findall(text)


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case tokens, `. , ; ! ?` being tokens of their own.

    Hyphens and apostrophes stay inside words. `encode` adds the breaks around a quatrain.
    """
    return [word.lower() for word in split_words(text)]


def build_vocabulary(quatrains: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Number the words of tokenized quatrains by falling frequency, from 1; 0 is the break.

    Returns the words by index, and how often each occurs (int64; 1 for the break, so that its
    samples weigh 1).
    """
    ranked = Counter(itertools.chain.from_iterable(quatrains)).most_common()
    words, counts = zip((BREAK, 1), *ranked, strict=True)
    return list(words), np.array(counts)


def encode(quatrains: Iterable[Sequence[str]], words: Sequence[str]) -> list[np.ndarray]:
    """Turn tokenized quatrains into int32 word indices with a break before and after each."""
    index = {word: number for number, word in enumerate(words)}
    return [np.array([0, *map(index.__getitem__, tokens), 0], np.int32) for tokens in quatrains]


class Corpus(NamedTuple):
    """The quatrains of a corpus as texts and as tokens, its words by index, and their counts."""

    texts: list[str]
    tokens: list[list[str]]
    words: list[str]
    counts: np.ndarray


def load_corpus(path: Path) -> Corpus:
    """Read a corpus, number its words, and say what was found."""
    texts = read_corpus(path)
    tokens = [tokenize(text) for text in texts]
    words, counts = build_vocabulary(tokens)
    say(
        f"Corpus: {path} has {len(texts):,} quatrains, {counts[1:].sum():,} tokens, "
        f"{len(words) - 1:,} distinct words."
    )
    return Corpus(texts, tokens, words, counts)


# ==== Phrases: what the model is shown, and what it should answer ====


class Samples(NamedTuple):
    """Phrases (int32, samples x phrase_len), the next words (int32), their weights (float32)."""

    phrases: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def cut_phrases(quatrains: Iterable[np.ndarray], phrase_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every window of `phrase_len` tokens that has a token after it.

    Takes the quatrains of `encode`; one of n words gives n + 2 - phrase_len windows, or none.
    Returns the windows (int32, samples x phrase_len) and the tokens after them (int32, samples).
    """
    length = phrase_len + 1
    windows = [np.empty((0, length), np.int32)]
    for tokens in quatrains:
        if len(tokens) >= length:
            windows.append(np.lib.stride_tricks.sliding_window_view(tokens, length))
    joined = np.concatenate(windows)
    return joined[:, :-1], joined[:, -1]


def make_samples(
    corpus: Corpus, phrase_len: int, rng: np.random.Generator
) -> tuple[Samples, Samples]:
    """Cut a corpus into samples, shuffle them, and part 95 % to train on from 5 % to validate with.

    A training sample weighs the square root of its target's count, so that rare words are learnt
    and frequent ones still lead; validation is unweighted. Raises InputError when there are so few
    samples that 5 % is less than one.
    """
    phrases, targets = cut_phrases(encode(corpus.tokens, corpus.words), phrase_len)
    if len(targets) < 20:
        raise InputError(
            f"the corpus gives {len(targets)} samples, too few to keep 5 % for validation: set "
            f"corpus to a longer text, or phrase_len below {phrase_len}"
        )
    order = rng.permutation(len(targets))
    phrases, targets = phrases[order], targets[order]
    cut = int(0.95 * len(targets))
    weights = np.sqrt(corpus.counts[targets]).astype(np.float32)
    weights[cut:] = 1
    samples = Samples(phrases, targets, weights)
    return Samples(*(array[:cut] for array in samples)), Samples(
        *(array[cut:] for array in samples)
    )


# ==== GloVe: vectors that already know something of the words ====

GLOVE_DIMS = (50, 100, 200, 300)
GLOVE_URL = "https://huggingface.co/stanfordnlp/glove/resolve/main/glove.6B.zip"
# The spread of GloVe's own numbers.
EMBEDDING_STDDEV = 0.4


def find_glove(setting: str, dim: int, folder: Path) -> Path | None:
    """Say which file the vectors come from; None when `setting` wants none or none is there."""
    if setting == "none":
        return None
    if setting != "auto":
        return Path(setting)
    candidates = (folder / f"glove.6B.{dim}d.txt", folder / "glove.6B.zip")
    return next((path for path in candidates if path.exists()), None)


@contextlib.contextmanager
def open_glove(path: Path, dim: int) -> Iterator[IO[bytes]]:
    """Open a text file of vectors, or the one for `dim` dimensions inside a zip, as bytes."""
    member = f"glove.6B.{dim}d.txt"
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix.lower() == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                yield stack.enter_context(archive.open(member))
            else:
                yield stack.enter_context(path.open("rb"))
    except KeyError:
        reason = f"has no {member} in it"
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = f"is broken ({error})"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    else:
        return
    raise InputError(f'GloVe file {path} {reason}: get {GLOVE_URL}, or set glove = "none"')


def read_glove(path: Path, words: Sequence[str], dim: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Read the vectors of the given words out of a GloVe file.

    A line is a word and `dim` numbers, separated by single spaces. Returns the indices of the words
    found (int64), their vectors (float32, found x dim), and a sentence on what was wrong with the
    file, or "". Raises InputError when it is not a file of `dim` dimensions at all.
    """
    wanted = {word.encode(): index for index, word in enumerate(words)}
    found: dict[int, list[float]] = {}
    passed_over: list[int] = []
    number = 0
    with open_glove(path, dim) as lines:
        for number, line in enumerate(lines, 1):
            word, _, numbers = line.partition(b" ")
            try:
                if numbers.count(b" ") != dim - 1 or word == b"<unk>":
                    raise ValueError
                if word in wanted:
                    found[wanted[word]] = [float(x) for x in numbers.split(b" ")]
                elif not word.isascii():
                    word.decode()
            except ValueError:
                passed_over.append(number)
            if passed_over == [1]:
                break
    if number == 0 or passed_over == [1]:
        raise InputError(
            f"GloVe file {path} does not start with a word and {dim} numbers: set embedding_dim to "
            "the size of its vectors, or glove to another file"
        )
    note = ""
    if passed_over:
        note = (
            f"{len(passed_over)} of its lines were passed over, being cut, not UTF-8, or no word "
            f"of GloVe's (line {passed_over[0]:,} is the first)."
        )
    return np.array([*found], int), np.array([*found.values()], np.float32).reshape(-1, dim), note


def start_embeddings(
    words: Sequence[str], dim: int, setting: str, rng: np.random.Generator
) -> np.ndarray:
    """Make the embedding that training starts from (float32, words x dim), and say how.

    Rows are GloVe's own where the file that the setting `glove` names knows the word, and otherwise
    normal with GloVe's spread.
    """
    embeddings = rng.normal(0, EMBEDDING_STDDEV, (len(words), dim)).astype(np.float32)
    path = find_glove(setting, dim, Path("data"))
    if path is not None:
        indices, vectors, note = read_glove(path, words, dim)
        embeddings[indices] = vectors
        unknown = len(words) - 1 - len(indices)
        say(f"GloVe: {path} knows {len(indices):,} words; {unknown:,} and the break start random.")
        if note:
            say(f"GloVe: {note}")
    elif setting == "auto":
        say(
            f"GloVe: no glove.6B.{dim}d.txt or glove.6B.zip in data/, so all words start random.\n"
            f"  To start from GloVe, put {GLOVE_URL} there (862 MB)."
        )
    return embeddings


# ==== TensorFlow, its device, and the model ====


def load_tensorflow(use_gpu: bool) -> str:
    """Import TensorFlow and Keras, make the device ready, and return its name.

    They are imported only here, because that takes seconds that --help and a mistyped setting need
    not cost. Raises InputError when a GPU is wanted and TensorFlow sees none.
    """
    # 3 silences TensorFlow; on a GPU its warnings (1) tell which library is missing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if use_gpu else "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with contextlib.nullcontext() if use_gpu else quiet_stderr():
        import keras
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"Keras already runs on {keras.backend.backend()} in this session: start a fresh one"
        )
    if use_gpu and not gpus:
        raise InputError(
            "use_gpu = True, but TensorFlow sees no GPU: install its CUDA libraries with "
            '`pip install "tensorflow[and-cuda]"`, or set use_gpu = False'
        )
    for gpu in gpus:
        # Or TensorFlow takes the whole card. It refuses once the card is in use: then it is set.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    return "/gpu:0" if use_gpu else "/cpu:0"


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what is written to standard error, and show it only if the block fails.

    While it is imported TensorFlow prints lines that its own settings cannot silence.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def seed_tensorflow(seed: int, exact: bool) -> None:
    """Seed all that TensorFlow and Keras draw; `exact` also makes sums run in a fixed order."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    if exact:
        tf.config.experimental.enable_op_determinism()


def build_model(embeddings: np.ndarray, phrase_len: int, settings: SimpleNamespace) -> keras.Model:
    """Build and compile the model of 2017: Embedding -> GRU -> Dense softmax.

    Takes the embedding to start from (words x dim). The model maps phrases (int32, batch x
    phrase_len) to the probabilities of the next word (float32, batch x words).
    """
    import keras

    words, dim = embeddings.shape
    penalty = settings.regularization
    layers = [
        keras.Input((phrase_len,), dtype="int32", name="words"),
        keras.layers.Embedding(words, dim, name="embedding"),
        keras.layers.GRU(
            settings.gru_dim,
            dropout=settings.dropout,
            recurrent_dropout=settings.dropout,
            kernel_regularizer=keras.regularizers.L2(penalty),
            recurrent_regularizer=keras.regularizers.L2(penalty),
            bias_regularizer=keras.regularizers.L2(penalty),
            unroll=True,  # A loop over four words costs more than the words.
            name="GRU",
        ),
        keras.layers.Dense(words, activation="softmax", name="dense"),
    ]
    model = keras.Sequential(layers, name="quatrains")
    model.get_layer("embedding").set_weights([embeddings])
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc")],
    )
    return model


# ==== Training ====

METRICS = ("loss", "acc", "val_loss", "val_acc")


def train_epoch(
    model: keras.Model,
    training: Samples,
    validation: Samples,
    batch_size: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Show the model every training sample once, in a new order, then measure it.

    Returns the METRICS. Losses include the L2 penalty; accuracies are not weighted.
    """
    # Ours, because Keras's own shuffle takes the same order in every epoch once a seed is set.
    order = rng.permutation(len(training.targets))
    history = model.fit(
        training.phrases[order],
        training.targets[order],
        sample_weight=training.weights[order],
        batch_size=batch_size,
        shuffle=False,
        validation_data=validation,
        verbose=0,
    )
    return {name: history.history[name][-1] for name in METRICS}


# ==== Sampling ====


def build_sampler(model: keras.Model, phrase_len: int, max_words: int) -> Callable:
    """Compile the drawing of whole quatrains into one graph.

    The graph takes how many (int32) and a seed (two int32), and returns word indices (int32,
    quatrains x max_words), of which those after a first break mean nothing. Every quatrain starts
    from an all-break phrase; each next word is drawn from the whole predicted distribution.
    """
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32), tf.TensorSpec((2,), tf.int32)])
    def sample(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        phrases = tf.zeros((count, phrase_len), tf.int32)
        drawn = tf.TensorArray(tf.int32, max_words)
        for position in tf.range(max_words):
            logits = tf.math.log(model(phrases, training=False))
            word_seed = tf.random.experimental.stateless_fold_in(seed, position)
            words = tf.random.stateless_categorical(logits, 1, word_seed, tf.int32)
            phrases = tf.ensure_shape(tf.concat([phrases[:, 1:], words], 1), (None, phrase_len))
            drawn = drawn.write(position, words[:, 0])
        return tf.transpose(drawn.stack())

    return sample


def draw_quatrains(
    sampler: Callable, count: int, words: Sequence[str], rng: np.random.Generator
) -> list[list[str]]:
    """Draw quatrains, each as its tokens up to its break."""
    rows = sampler(np.int32(count), rng.integers(2**31, size=2, dtype=np.int32)).numpy()
    return [[words[index] for index in itertools.takewhile(bool, row)] for row in rows]


# ==== Verse: four lines, capitals, punctuation closed up ====


class Spelling(NamedTuple):
    """How a corpus writes: the words it capitalises, as it does, and those it ends lines with."""

    capitals: dict[str, str]
    line_ends: set[str]


def learn_spelling(quatrains: Iterable[str]) -> Spelling:
    """Learn from the quatrains of `read_corpus` how their words are written.

    A capital means something only where a word starts neither a line nor a sentence.
    """
    forms: dict[str, Counter[str]] = {}
    line_ends = set()
    for line in itertools.chain.from_iterable(map(str.splitlines, quatrains)):
        words = split_words(line)
        line_ends.update(word.lower() for word in words[-1:])
        for before, word in itertools.pairwise(words):
            if before not in SENTENCE_ENDS:
                forms.setdefault(word.lower(), Counter())[word] += 1
    usual = {word: counts.most_common(1)[0][0] for word, counts in forms.items()}
    return Spelling({word: form for word, form in usual.items() if form != word}, line_ends)


def format_quatrain(tokens: Sequence[str], spelling: Spelling) -> str:
    """Restore drawn tokens to verse: lines, capitals of sentences, lines and names, spacing."""
    lines = []
    starts_sentence = True
    for line_tokens in break_lines(tokens, spelling.line_ends):
        line = ""
        for token in line_tokens:
            if token not in PUNCTUATION:
                word = spelling.capitals.get(token, token)
                capital = starts_sentence or not line
                line += " " * bool(line) + (word[0].upper() + word[1:] if capital else word)
            else:
                line += token
            starts_sentence = token in SENTENCE_ENDS
        lines.append(line)
    return "\n".join(lines)


def break_lines(tokens: Sequence[str], line_ends: set[str]) -> list[Sequence[str]]:
    """Part tokens into four lines of like length; fewer words than four give fewer lines.

    No line starts with punctuation; a pause, and a word that ends lines in the corpus, are good
    places to break.
    """
    places = [i for i in range(1, len(tokens)) if tokens[i] not in PUNCTUATION]
    ends = [0, *itertools.accumulate(len(token) + 1 for token in tokens)]
    cuts = [0]
    for quarter in (1, 2, 3):
        ideal = ends[-1] * quarter / 4

        def badness(place: int, ideal: float = ideal) -> float:
            last = tokens[place - 1]
            # In letters: a pause makes up for two words of imbalance.
            bonus = 10 * (last in PUNCTUATION) - 8 * (last not in line_ends)
            return abs(ends[place] - ideal) - bonus

        later = [place for place in places if place > cuts[-1]]
        cuts += [min(later, key=badness)] if later else []
    return [tokens[start:end] for start, end in itertools.pairwise([*cuts, len(tokens)])]


# ==== Logs ====


def say(text: str = "") -> None:
    """Print at once, also into a pipe or a file."""
    print(text, flush=True)


def prepare_logs(folder: Path) -> None:
    """Make the log folder, and move an earlier training in it to `earlier/<when it started>`.

    Raises InputError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [path for path in folder.iterdir() if path.name.isdigit()]
        if not earlier:
            return
        started = datetime.fromtimestamp(min(path.stat().st_mtime for path in earlier))
        destination = folder / "earlier" / started.strftime("%Y%m%d-%H%M%S")
        destination.mkdir(parents=True)
        for path in earlier:
            path.rename(destination / path.name)
    except OSError as error:
        raise InputError(
            f"logs {folder} cannot be written ({error.strerror}): set logs to another folder"
        ) from None
    say(f"The logs of the earlier training are now in {destination}.")


def open_writers(folder: Path) -> dict[str, tf.summary.SummaryWriter]:
    """Open the two event files of a run; TensorBoard draws them as two curves of one chart."""
    import tensorflow as tf

    return {
        prefix: tf.summary.create_file_writer(str(folder / name))
        for prefix, name in (("", "train"), ("val_", "validation"))
    }


def log_epoch(writers: Mapping[str, Any], epoch: int, metrics: Mapping[str, float]) -> None:
    """Write loss and acc of an epoch, counted over all runs, with either writer."""
    import tensorflow as tf

    for prefix, writer in writers.items():
        with writer.as_default(epoch):
            for name in ("loss", "acc"):
                tf.summary.scalar(name, metrics[prefix + name])


# ==== Main ====


def run_training(settings: SimpleNamespace) -> None:
    """Train and write, run after run, as the settings say."""
    say(describe_settings(settings))
    seed = secrets.randbelow(2**32) if settings.seed is None else settings.seed
    rng = np.random.default_rng(seed)

    corpus = load_corpus(Path(settings.corpus))
    training, validation = make_samples(corpus, settings.phrase_len, rng)
    embeddings = start_embeddings(corpus.words, settings.embedding_dim, settings.glove, rng)
    spelling = learn_spelling(corpus.texts)

    device = load_tensorflow(settings.use_gpu)
    import tensorflow as tf

    seed_tensorflow(seed, exact=settings.seed is not None)
    prepare_logs(Path(settings.logs))
    with tf.device(device):
        model = build_model(embeddings, settings.phrase_len, settings)
        sampler = build_sampler(model, settings.phrase_len, settings.max_words)
        for run in range(settings.runs):
            say(
                f"\nRun {run}\nTrain on {len(training.targets)} samples, "
                f"validate on {len(validation.targets)} samples"
            )
            train_run(run, model, training, validation, settings, rng)
            for tokens in draw_quatrains(sampler, settings.quatrains_per_run, corpus.words, rng):
                say(" ".join(tokens) if settings.raw else "\n" + format_quatrain(tokens, spelling))


def train_run(
    run: int,
    model: keras.Model,
    training: Samples,
    validation: Samples,
    settings: SimpleNamespace,
    rng: np.random.Generator,
) -> None:
    """Train the epochs of a run; print and log each."""
    writers = open_writers(Path(settings.logs, str(run)))
    for epoch in range(settings.epochs_per_run):
        start = time.perf_counter()
        metrics = train_epoch(model, training, validation, settings.batch_size, rng)
        seconds = time.perf_counter() - start
        log_epoch(writers, run * settings.epochs_per_run + epoch, metrics)
        figures = " - ".join(f"{name}: {metrics[name]:.4f}" for name in METRICS)
        say(f"Epoch {epoch + 1}/{settings.epochs_per_run} - {seconds:.1f}s - {figures}")
    for writer in writers.values():
        writer.close()


def main(arguments: Sequence[str]) -> int:
    """Run the script with these command-line arguments, and return its exit status."""
    try:
        run_training(read_settings({name: globals()[name] for name in SETTINGS}, arguments))
    except InputError as error:
        print(f"quatrains: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nquatrains: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # In a notebook sys.argv is the kernel's own, and leaving would look like a failure.
    status = main([] if "ipykernel" in sys.modules else sys.argv[1:])
    if status:
        sys.exit(status)
