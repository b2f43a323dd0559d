# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "tensorflow>=2.21,<2.22",
#     "keras>=3.12,<3.16",
#     "numpy>=2.0,<3",
#     "tensorboard>=2.21,<2.22",
# ]
# ///
"""Train a word-level language model on the quatrains of Nostradamus, and generate new ones.

    python quatrains.py                          train, and generate five quatrains after every run
    python quatrains.py --resume                 resume from the latest checkpoint
    python quatrains.py --generate 20            generate twenty quatrains, without training
    python quatrains.py --help                   list all settings with their defaults
    tensorboard --port 8080 --logdir=logs        watch the training

A port to TensorFlow and Keras 3 of Sean Owen's quatrains-rnn (2017). Its sections are cells, in the
order of use. To change the model, edit `build_model`.
"""

# %% Settings
# Edit them here, or override them on the command line (--gru-dim 256). --help prints this class.

import argparse
import contextlib
import functools
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple
from unittest import mock


@dataclass
class Settings:
    """Settings of training and generation."""

    # Train on /gpu:0 instead of /cpu:0.
    use_gpu: bool = False
    # Name of the experiment's folder in `log_dir`, after its start time. Empty: that of the recipe.
    name: str = ""
    # TensorBoard's log directory. Every experiment has a subfolder with its logs and checkpoint.
    # To resume or generate from a certain experiment, set this to its subfolder or checkpoint.
    log_dir: str = "logs"
    # Random seed. Makes training reproducible on the same machine; None picks one at random.
    seed: int | None = None
    # Number of runs. A run trains for some epochs, then generates quatrains. Stop at any time.
    runs: int = 1000
    # Resume training from the latest checkpoint in `log_dir`.
    resume: bool = False
    # Quatrains to generate from the latest checkpoint instead of training. None trains.
    generate: int | None = None

    # Quatrains generated after each run.
    quatrains_per_run: int = 5
    # Maximum length of a quatrain in tokens, including the prompt, punctuation and line ends.
    max_length: int = 32
    # Print bare tokens, one quatrain per line, instead of formatted verse.
    raw: bool = False
    # Sampling temperature. Below 1 gives safer text, above 1 wilder text. 0 takes the likeliest
    # word; very low temperatures repeat themselves.
    temperature: float = 1.0
    # Nucleus sampling: use only the most likely words that add up to this probability. 1 is off.
    top_p: float = 1.0
    # Words that every quatrain starts with.
    prompt: str = ""
    # Candidates sampled for each line; the best one is kept.
    best_of: int = 1
    # Longest quote from the corpus, in words. Candidates that exceed it are kept only if all do.
    max_quote_len: int = 8

    # The settings from here on define an experiment: its checkpoint fixes them.

    # Set of overrides from RECIPES in quatrains.py: "2017" (as published) or "verse" (whole
    # quatrains). The command line overrides the recipe, and the recipe overrides this block.
    recipe: str = "2017"
    # Training text: quatrains separated by blank lines or, without blank lines, one per line. See
    # data/README.md for its format.
    corpus: str = "data/quatrains.txt"
    # Initial word vectors: "none" (random), the path of a GloVe file, or "auto", which takes
    # data/glove.6B.<embedding_dim>d.txt or data/glove.6B.zip, or else downloads the zip.
    glove: str = "auto"
    # Size of the word vectors. GloVe has 50, 100, 200 and 300; without GloVe, any size works.
    embedding_dim: int = 300
    # GRU units. More units learn faster, but memorize the corpus sooner.
    gru_dim: int = 128
    # Dropout rate of the GRU's inputs and recurrent state. Slows memorization of the corpus.
    dropout: float = 0.5
    # L2 penalty on the GRU's weights, included in the losses. Higher values tame the output.
    regularization: float = 0.02
    # Dropout rate between the GRU and the dense layer.
    dense_dropout: float = 0.0
    # Context length: tokens the model sees to predict the next one.
    phrase_len: int = 4
    # Also learn how quatrains begin and where their lines end. If False (as published), train
    # only on full phrases, and guess line breaks when formatting.
    whole_quatrains: bool = False
    # Weight each sample by the square root of its target's count in the corpus.
    class_weights: bool = True
    # Compile the training steps with XLA, which makes them faster. Turn it off for a layer that XLA
    # cannot compile. With `run_eagerly=True` in `compile`, it is off.
    use_xla: bool = True
    # Samples per training step, at most.
    batch_size: int = 512
    # Step size of RMSprop. High, because the model is small and first results should be quick.
    learning_rate: float = 0.003
    # Epochs per run.
    epochs_per_run: int = 5

    def __post_init__(self):
        """Raise UsageError if a value has the wrong type or is out of range."""
        for field in fields(self):
            type_, value = field.type, getattr(self, field.name)
            # Counts start at 1, seeds and other numbers at 0.
            low = int(type_ is int or field.name == "generate")
            high = MAX_VALUES.get(field.name, math.inf)
            valid = (
                isinstance(value, int | float if type_ is float else type_)
                and isinstance(value, bool) is (type_ is bool)
                and (isinstance(value, str | None) or low <= value <= high)
            )
            if not valid:
                expected = EXPECTED[type_].format(low, high).replace("to inf", "up")
                raise UsageError(f"{field.name} = {value!r} is invalid: expected {expected}")


# Settings that each recipe overrides. Add an entry to define a recipe.
RECIPES = {
    "2017": {},
    "verse": dict(
        regularization=0.0,
        dense_dropout=0.5,
        phrase_len=16,
        whole_quatrains=True,
        class_weights=False,
        max_length=64,
        temperature=0.88,
        best_of=40,
    ),
}
# What a value of each type must be, with its smallest and largest value.
EXPECTED = {
    bool: "True or False",
    str: "text",
    int: "a whole number from {} to {}",
    int | None: "None or a whole number from {} to {}",
    float: "a number from {} to {}",
}
# Other numbers have no maximum.
MAX_VALUES = {"dropout": 0.99, "dense_dropout": 0.99, "top_p": 1, "seed": 2**32 - 1}
# Settings that may change on resume: those before the recipe.
CHANGEABLE_ON_RESUME = {
    *itertools.takewhile(lambda name: name != "recipe", Settings.__annotations__)
}


class UsageError(Exception):
    """An error the user can fix. The message names the setting or file and says what to do."""

    def _render_traceback_(self):  # IPython shows this instead of a traceback.
        return [f"quatrains: {self}"]


def make_settings(**overrides: Any) -> Settings:
    """Combine defaults, recipe and overrides; later ones win. Raise UsageError if one is
    invalid."""
    recipe = overrides.get("recipe", Settings.recipe)
    if recipe not in RECIPES:
        raise UsageError(f"recipe = {recipe!r} is invalid: expected {' or '.join(RECIPES)}")
    return Settings(**RECIPES[recipe] | overrides)


# %% Command line and imports
# Arguments are checked before the imports, which take seconds.

# In Jupyter, IPython and `python -i`, errors and Ctrl-C leave Python running.
INTERACTIVE = "IPython" in sys.modules or bool(sys.flags.interactive)


def read_command_line(arguments: list) -> dict:
    """Return the settings given as `--gru-dim 256`. Raise UsageError if one is unknown."""
    parser = argparse.ArgumentParser(
        description=inspect.getsource(Settings).partition("    def ")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        exit_on_error=False,
    )
    for field in fields(Settings):
        kwargs = {"type": int if field.type == int | None else field.type}
        if field.type is bool:
            kwargs = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=argparse.SUPPRESS, **kwargs)
    try:
        overrides, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error} (--help lists all settings)")
    for argument in unknown:
        similar = find_similar(argument.strip("-").replace("-", "_"), Settings.__annotations__)
        raise UsageError(f"unknown argument {argument} (similar settings: {similar})")
    return vars(overrides)


def find_similar(word: str, words: Any) -> str:
    """List the words that are spelled like another one, for error messages."""
    return ", ".join(get_close_matches(word, words, 3, 0.5)) or "none"


@contextlib.contextmanager
def one_line_errors(*system_errors: type[Exception]):
    """End with one line and an exit status if the user or the system causes an error, or on Ctrl-C.
    If Python is interactive, show the line and let it run on. Other errors keep their traceback."""
    try:
        yield
    except (UsageError, KeyboardInterrupt, OSError, MemoryError, *system_errors) as error:
        message, status = str(error).partition("\n")[0], 2
        if isinstance(error, KeyboardInterrupt):
            message, status = "stopped", 130
        elif not isinstance(error, UsageError):
            message = f"stopped by {message} (check disk space, memory and permissions)"
        if INTERACTIVE:
            sys.excepthook = show_error  # For `python -i`; IPython has its own hook, in UsageError.
            raise UsageError(message)
        print(f"quatrains: {message}", file=sys.stderr)
        sys.stdout = None  # Its buffer may hold what could not be written.
        sys.exit(status)


def show_error(kind: type, error: Exception, traceback: Any):
    """Print an error, without its traceback if it is a UsageError."""
    if kind is UsageError:
        print(f"quatrains: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


@contextlib.contextmanager
def silent_stderr():
    """Hide what libraries write to standard error."""
    saved_stderr = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)


def require_packages():
    """Raise UsageError if packages are missing. If Python is interactive, install them first."""
    command = [sys.executable, "-m", "pip", "install", "-r", "requirements.txt"]
    missing = not all(map(importlib.util.find_spec, ("tensorflow", "tensorboard")))
    if missing and INTERACTIVE:
        print("Installing requirements.txt, which takes a few minutes.")
        missing = subprocess.run(command, check=False).returncode
        importlib.invalidate_caches()
    if missing:
        raise UsageError(f"packages are missing: run `{' '.join(command)}` in the script's folder")


if __name__ == "__main__":
    OVERRIDES = {}
    with one_line_errors():
        if not INTERACTIVE:
            if hasattr(signal, "SIGPIPE"):
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # No error when piped into `head`.
            for name in ("stdin", "stdout", "stderr"):  # None without a console.
                setattr(sys, name, getattr(sys, name) or Path(os.devnull).open("r+"))  # noqa: SIM115
            # Flush every line. Files get UTF-8; "?" replaces characters that a terminal lacks.
            encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, line_buffering=True, errors="replace")
        # In a cell, the arguments are the kernel's. Some editors define `__file__` there.
        if Path(sys.argv[0]).name == Path(globals().get("__file__", "")).name:
            OVERRIDES = read_command_line(sys.argv[1:])
        make_settings(**OVERRIDES)
        require_packages()

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # Otherwise it takes all GPU memory.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with one_line_errors(), silent_stderr():
    import keras
    import numpy as np
    import tensorflow as tf
    from numpy.random import Generator
    from tensorboard.plugins import projector
    from tensorboard.plugins.hparams import api as hparams

    GPUS = tf.config.list_physical_devices("GPU")
tf.get_logger().setLevel("ERROR")  # No retracing warnings in notebooks.
# AutoGraph would read the source file again, which may have been edited meanwhile.
graph_function = functools.partial(tf.function, autograph=False)


def prepare_device(settings: Settings) -> str:
    """Return the device to train on. Raise UsageError if a GPU is requested but not found."""
    if not settings.use_gpu:
        return "/cpu:0"
    if not GPUS:
        raise UsageError(
            "use_gpu = True, but TensorFlow found no GPU: install the GPU driver and "
            '"tensorflow[and-cuda]", or set use_gpu = False'
        )
    if settings.seed is not None:  # CPU ops are deterministic anyway.
        tf.config.experimental.enable_op_determinism()
    return "/gpu:0"


# %% Corpus

BREAK = "<BREAK>"


# Unicode's names of all punctuation but dashes, brackets and quotation marks.
MARK_NAMES = {
    char: unicodedata.name(char)
    for char in map(chr, range(2**16))
    if unicodedata.category(char) == "Po"
}


def find_marks(pattern: str) -> str:
    """Return the punctuation marks, in all scripts, whose Unicode names match a pattern."""
    return "".join(char for char, name in MARK_NAMES.items() if re.search(pattern, name))


SENTENCE_ENDS = find_marks(
    "(?<!INVERTED )(FULL STOP|EXCLAMATION MARK|QUESTION MARK|DANDA|SHAD|KHAN|SOF PASUQ)$"
)
PUNCTUATION = SENTENCE_ENDS + find_marks("COMMA|SEMICOLON|MYANMAR.* SECTION$")
# Blocks of Han, Kana and their punctuation, which are written without spaces.
CJK = "\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
JOINERS = "\u200c\u200d"  # Invisible, but some scripts need them inside words.
# Of a normalized text. Marks, Han and Kana are tokens of their own. Words have a letter or digit.
WORD_CHAR = rf"[^\s#{PUNCTUATION}{CJK}]"
TOKEN = re.compile(rf"[{PUNCTUATION}{CJK}]|['{JOINERS}-]*(?!['{JOINERS}-]){WORD_CHAR}+")
COMMENT = re.compile(r"^#(?: .*)?$\n?", re.MULTILINE)
NUMERAL = re.compile(r"[IVXLCDM]+|\d+")
# A heading restarts the numbering of quatrains.
HEADING = re.compile(
    "(?i:(?:act|book|buch|canto|century|chant|chapter|fit|gesang|hymn|kapitel|libro|livre|ode|part|"
    r"parte|poem|psalm|scene|section|song|sonnet|soneto|stanza|teil|tome|volume) )?"
    rf"({NUMERAL.pattern})\.?"
)
MARKUP = re.compile(
    r'\A\s*[{\[]\s*["{\[]'  # JSON.
    r'|\A"?[^\W\d]\w*"?(?:[,;\t]"?\w+"?)+\n'  # The header of a CSV file.
    r'|","|\\n'  # Quoted fields and escaped line ends, in both.
    r"|</[a-z]|<br\b|<!doctype",  # HTML.
    re.IGNORECASE,
)


class Corpus(NamedTuple):
    """Quatrains as (number, text) pairs, their tokens, the vocabulary by token ID, and the count of
    each token (int64)."""

    quatrains: list
    tokens: list
    vocabulary: list
    counts: np.ndarray


def read_corpus(path: str) -> list:
    """Read (number, text) pairs from a UTF-8 file. Raise UsageError if unreadable or empty."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"corpus cannot be read from {Path.cwd()} ({error}): set corpus to a UTF-8 text file"
        )
    if MARKUP.search(text):
        raise UsageError(
            f"corpus {path} looks like JSON, CSV or HTML: set corpus to plain text, with blank "
            "lines between quatrains"
        )
    book = re.split(r"\*\*\* ?START OF[^*]*\*\*\*", text)[-1]
    book = re.split(r"\*\*\* ?END OF", book)[0]
    if book != text:
        print("Corpus: what is outside Project Gutenberg's START and END lines is left out.")
    quatrains = split_quatrains(normalize(book))
    if not quatrains:
        raise UsageError(f"corpus {path} contains no words: set corpus to another text file")
    return quatrains


def normalize(text: str) -> str:
    """Normalize to NFC, spell all apostrophes and hyphens alike, and strip lines. Replace dashes,
    ellipses, and all punctuation and symbols that are not tokens with spaces. Remove invisible
    characters."""
    kept = f"{PUNCTUATION}{JOINERS}#'-\u2018\u2019\u2010\u2011\n"  # Comments start with a `#`.
    for char in {*text} - {*kept}:
        if char.isspace() or char == "\u200b" or unicodedata.category(char)[0] in "PS":
            text = text.replace(char, " ")
        elif not char.isprintable():
            text = text.replace(char, "")
    text = re.sub(r"\u2018([^\u2018]*?)\u2019(?!\w)", r" \1 ", text)  # Quotes, not apostrophes.
    text = text.translate(str.maketrans("\u2018\u2019\u2010\u2011", " '--"))
    text = re.sub(r"([-.'])\1+", " ", text)  # Dashes, ellipses, double quotes.
    return unicodedata.normalize("NFC", re.sub("^ +| +$", "", text, flags=re.MULTILINE))


def split_quatrains(text: str) -> list:
    """Split a normalized text into (number, stanza) pairs, at blank lines or, without any, by
    line."""
    gap = "\n\n" if "\n\n" in COMMENT.sub("", text).strip() else "\n"
    # Headings are stanzas of their own, with or without `# `.
    text = re.sub(rf"^# ({HEADING.pattern})$", rf"{gap}\1{gap}", text, flags=re.MULTILINE)
    heading, number, quatrains = "", 0, []
    for stanza in map(str.strip, COMMENT.sub("", text).split(gap)):
        if match := HEADING.fullmatch(stanza):
            heading, number = f"{match[1]}.", 0
        elif TOKEN.search(stanza):
            number += 1
            quatrains.append((f"{heading}{number}", stanza))
    return quatrains


def tokenize(text: str, line_ends: bool = False) -> list:
    """Split a normalized text into lower-case tokens; `. , ; ! ?` are tokens of their own. With
    `line_ends`, every line but the last also ends in a numbered token."""
    tokens = []
    for number, line in enumerate(filter(TOKEN.search, text.lower().split("\n"))):
        if line_ends and number:
            tokens.append(line_end(number))
        tokens += TOKEN.findall(line)
    return tokens


def line_end(number: int) -> str:
    """Return the token that ends a line. From the twentieth on, all have the same."""
    return f"<LINE{min(number, 20)}>"


def only_words(tokens: list) -> list:
    """Leave out punctuation and line ends."""
    return [token for token in tokens if token[0] not in f"<{PUNCTUATION}"]


def index_corpus(quatrains: list, line_ends: bool = False) -> Corpus:
    """Assign token IDs by descending frequency, from 1. ID 0 is the break, with a count of 1."""
    tokens = [tokenize(text, line_ends) for _, text in quatrains]
    ranked = Counter(token for row in tokens for token in row).most_common()
    vocabulary, counts = zip((BREAK, 1), *ranked, strict=True)
    return Corpus(quatrains, tokens, list(vocabulary), np.array(counts))


def describe_corpus(corpus: Corpus, settings: Settings) -> list:
    """Return lines that describe a corpus, and that suggest changes to it or to the settings."""
    max_length, tokens = settings.max_length, corpus.tokens
    words = [token[0] != "<" for token in corpus.vocabulary]
    lengths = [len(row) for row in tokens]
    longest = max(lengths)
    lines = {
        f"Corpus: {settings.corpus} has {len(lengths):,} quatrains, "
        f"{corpus.counts[words].sum():,} tokens, {sum(words):,} distinct words.": True,
        f"Quatrain {corpus.quatrains[lengths.index(longest)][0]} has {longest:,} tokens: put blank "
        "lines between quatrains.": longest > 1000,
        f"Most quatrains are longer than max_length = {max_length}: to generate whole ones, set "
        f"max_length = {np.quantile(lengths, 0.9) + 1:.0f}, which fits 90% of them.": (
            settings.whole_quatrains and max_length <= np.median(lengths) < 1000
        ),
        "Many quatrains have one or two words: put `# ` before those that are titles.": (
            np.mean([len(only_words(row)) < 3 for row in tokens]) > 1 / 3
        ),
        "Words are very long: if the script has no spaces, put spaces between words.": (
            np.mean([len(token) for token in corpus.vocabulary]) > 15
        ),
    }
    return [line for line, applies in lines.items() if applies]


# %% GloVe

GLOVE_DIMS = (50, 100, 200, 300)
GLOVE_URL = "https://nlp.stanford.edu/data/glove.6B.zip"
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
GLOVE_SPREAD = 0.4  # Standard deviation of its numbers.
WITHOUT_GLOVE = 'set glove = "none" (--glove none)'


def find_glove(glove: str, dim: int) -> Path | None:
    """Return the GloVe file, downloading it if necessary. Return None without GloVe or if the
    download fails, which it prints."""
    if glove == "none":
        return None
    if glove != "auto":
        return Path(glove)
    if dim not in GLOVE_DIMS:
        raise UsageError(
            f"embedding_dim must be one of {GLOVE_DIMS} for GloVe: change it, or {WITHOUT_GLOVE}"
        )
    for path in (Path(f"data/glove.6B.{dim}d.txt"), Path("data/glove.6B.zip")):
        if path.exists():
            return path
    print(f"GloVe: using Keras's cache, or downloading 862 MB once. To skip it, {WITHOUT_GLOVE}.")
    socket.setdefaulttimeout(20)  # Seconds without data. Keras sets no timeout.
    try:
        # Keras checks the hash each time, so an incomplete file is never used.
        return Path(keras.utils.get_file("glove.6B.zip", GLOVE_URL, file_hash=GLOVE_SHA256))
    except Exception as error:  # Keras raises plain exceptions.
        print(f"\nGloVe: not available ({error}); words are random. To skip it, {WITHOUT_GLOVE}.")
        return None
    finally:
        socket.setdefaulttimeout(None)


def read_glove(path: Path, vocabulary: list, embeddings: np.ndarray):
    """Replace embeddings (float32, vocabulary x dim) of words found in a GloVe file. A word that it
    lacks gets the mean of its parts between apostrophes and hyphens. The others are scaled to the
    spread of those found. Print how many there are. Raise UsageError if the file does not work."""
    parts = {word: re.findall("[^'-]+", word) for word in vocabulary}
    words = {*parts, *itertools.chain(*parts.values())}
    try:
        vectors = read_vectors(path, embeddings.shape[1], words)
    except Exception as error:  # Malformed files raise many kinds of errors.
        raise UsageError(
            f"GloVe file {path} cannot be used ({error}): set glove to another, or {WITHOUT_GLOVE}"
        )
    parts |= {word: [word] for word in vectors}  # What was found needs no parts.
    embeddings *= np.std([*vectors.values()]) / GLOVE_SPREAD
    found = []
    for token_id, word in enumerate(vocabulary):
        if vectors.keys() >= {*parts[word]}:
            embeddings[token_id] = np.mean([vectors[part] for part in parts[word]], 0)
            found.append(word)
    whole = len(vectors.keys() & found)
    print(
        f"GloVe: {path} has {whole:,} of {len(vocabulary) - 1:,} words, and the parts of "
        f"{len(found) - whole:,} more; the others are random."
    )


def read_vectors(path: Path, dim: int, words: set) -> dict:
    """Read the vectors (float32, dim) of words from lines of a word and numbers, separated by
    single spaces, or from a zip of such files. Raise an error if there are none."""
    file, vectors = path.open("rb"), {}
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(file)
        # The member of this size, or else the first, so that the error says which size it has.
        name = min(archive.namelist(), key=lambda name: not name.endswith(f".{dim}d.txt"))
        file = archive.open(name)
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape") as lines:
        first = lines.readline()
        if re.fullmatch(r"\d+ \d+\s*", first):  # The header of word2vec, fastText and gensim.
            first = lines.readline()
        start = first[:40].strip()
        start = f'"{start}"' if start.isprintable() else "tabs or binary data"
        if not re.fullmatch(r"\S+( [-+.\deE]+)+\s*", first):
            raise ValueError(f"it starts with {start}")
        for line in itertools.chain([first], lines):
            word, _, numbers = line.partition(" ")
            if word in words:
                vectors[word] = np.array(numbers.split(), np.float32)
                size = len(vectors[word])
                if size != dim:
                    raise ValueError(
                        f"{word} has {size} numbers, not {dim}"
                        if len(vectors) > 1
                        else f"its vectors have {size} numbers: set embedding_dim = {size}"
                    )
    if not vectors:
        raise ValueError(f"none of its words is in the corpus; it starts with {start}")
    return vectors


# %% Samples


def make_windows(corpus: Corpus, phrase_len: int, whole: bool) -> np.ndarray:
    """Cut each quatrain into windows of `phrase_len` tokens and the next one (int32, samples x
    phrase_len + 1). A quatrain of n tokens, between two breaks, gives n + 2 - phrase_len windows.
    `whole` puts a full phrase of breaks before it, which gives n + 1. The windows are shuffled, in
    an order that depends only on the corpus."""
    token_ids = {token: token_id for token_id, token in enumerate(corpus.vocabulary)}
    breaks, view = [0] * phrase_len, np.lib.stride_tricks.sliding_window_view
    rows = [[*breaks, *map(token_ids.get, tokens), 0] for tokens in corpus.tokens]
    windows = np.concatenate([view(np.array(row, np.int32), phrase_len + 1) for row in rows])
    windows = np.random.default_rng(0).permutation(windows)
    if not whole:
        windows = windows[(windows[:, :-1] == 0).sum(1) < 2]
    return windows


def make_samples(corpus: Corpus, settings: Settings) -> list:
    """Split a corpus into 95% training and 5% validation samples, each a tuple of phrases (int32,
    samples x phrase_len), targets (int32, samples x 1) and weights (float32, samples): the square
    root of the target's count, or 1. Raise UsageError if there are fewer than 20 samples."""
    windows = make_windows(corpus, settings.phrase_len, settings.whole_quatrains)
    if len(windows) < 20:
        longest = max(map(len, corpus.tokens))
        raise UsageError(
            f"corpus {settings.corpus}, whose longest quatrain has {longest} tokens, gives "
            f"{len(windows)} samples, but needs 20: lower phrase_len = {settings.phrase_len}, or "
            "set corpus to a longer text"
        )
    weights = corpus.counts ** (0.5 if settings.class_weights else 0)
    targets = windows[:, -1]
    samples = windows[:, :-1], targets[:, None], weights[targets].astype(np.float32)
    size = int(0.95 * len(windows))
    return list(zip(*(np.split(array, [size]) for array in samples), strict=True))


# %% Model
# Edit it here; the rest of the script adapts.


def build_model(embeddings: np.ndarray, settings: Settings) -> keras.Model:
    """Build and compile Embedding -> GRU -> Dense softmax, plus what the recipe adds. `embeddings`
    (vocabulary x dim) are the initial word vectors. Any Keras model works that maps phrases (int32,
    batch x phrase_len) to next-word probabilities (float, batch x vocabulary). Its loss and metrics
    get token IDs as targets (int32, batch x 1)."""
    vocab_size, dim = embeddings.shape
    penalty = keras.regularizers.L2(settings.regularization)
    model = keras.Sequential(name="quatrains")
    model.add(keras.Input((settings.phrase_len,), dtype="int32", name="words"))
    model.add(keras.layers.Embedding(vocab_size, dim, weights=embeddings))
    model.add(
        keras.layers.GRU(
            settings.gru_dim,
            dropout=settings.dropout,
            recurrent_dropout=settings.dropout,
            kernel_regularizer=penalty,
            recurrent_regularizer=penalty,
            bias_regularizer=penalty,
            # Unrolling is faster for short phrases, and slower for long ones.
            unroll=settings.phrase_len <= 8,
            use_cudnn=False,  # cuDNN has no recurrent dropout and does not work with XLA.
            name="GRU",
        )
    )
    if settings.dense_dropout:
        model.add(keras.layers.Dropout(settings.dense_dropout))
    model.add(keras.layers.Dense(vocab_size, activation="softmax"))
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=[keras.metrics.MeanMetricWrapper(sparse_categorical_accuracy, name="acc")],
    )
    return model


def make_callbacks(settings: Settings) -> list:
    """Return Keras callbacks to pass to `fit`. Epochs are counted across all runs."""
    return []


def sparse_categorical_accuracy(targets, predicted):
    """Compute Keras's accuracy (float32, batch) without its argmax, which is slow in XLA."""
    # Keras saves a function by its name, and a loader without this script finds Keras's own.
    # Keras attaches the logits to the output of a softmax. The loss needs their maximum anyway.
    logits = getattr(predicted, "_keras_logits", predicted)
    chosen = tf.gather(logits, targets, batch_dims=1)
    return tf.cast(chosen[:, 0] >= tf.reduce_max(logits, -1), tf.float32)


def check_model(model: keras.Model, vocab_size: int, phrase_len: int):
    """Raise UsageError if the model's output is not as `build_model` documents, or Keras's own
    error if a checkpoint of it could be saved but not loaded."""
    probs = np.array(model(np.zeros((2, phrase_len), np.int32)), np.float32)
    if probs.shape != (2, vocab_size) or probs.min() < 0 or abs(probs.sum(1) - 1).max() > 0.02:
        raise UsageError(
            f"build_model must turn 2 phrases into (2, {vocab_size}) probabilities, rows summing "
            f"to 1; got shape {probs.shape}, row sum {probs[0].sum():.3g}"
        )
    saved = keras.saving.serialize_keras_object(model)
    keras.saving.deserialize_keras_object(saved, custom_objects=globals())


# %% Training
# Runs of several epochs, each followed by new quatrains.

STEPS_PER_CALL = 8  # At most, in `fast_training`. More gain nothing.


def train(**overrides: Any) -> "QuatrainLM":
    """Train with the settings at the top and overrides, such as `recipe="verse"`. In a notebook,
    an interrupt ends training and still returns the model. Raise UsageError if the settings do not
    work."""
    settings = make_settings(**overrides)
    with tf.device(prepare_device(settings)):
        if settings.resume:
            lm = load_checkpoint(settings.log_dir, overrides)
            if lm.completed_runs >= settings.runs:
                raise UsageError(
                    f"{lm.folder} has already completed {lm.completed_runs} runs: increase runs"
                )
            print(f"Resuming {lm.folder} after run {lm.completed_runs - 1}.")
            samples = make_samples(lm.corpus, lm.settings)
        else:
            lm, samples = start_experiment(settings)
        with locked(lm.folder):
            try:
                fit_runs(lm, *samples)
            except KeyboardInterrupt:
                if not INTERACTIVE:
                    raise
            finally:
                if (lm.folder / CHECKPOINT).exists():
                    print(f"\nSaved {lm.folder / CHECKPOINT}, up to the last completed run.")
                    print("To continue: --resume (resume = True). To generate: --generate 20.")
                else:
                    print("\nNothing was saved: the first run was not completed.")
    return lm


def start_experiment(settings: Settings) -> tuple:
    """Read the corpus, build the model and create the experiment's folder; return the model and its
    samples. Raise UsageError if one of them does not work, before GloVe is downloaded."""
    corpus = index_corpus(read_corpus(settings.corpus), settings.whole_quatrains)
    vocabulary, dim = corpus.vocabulary, settings.embedding_dim
    samples = make_samples(corpus, settings)
    encode_prompt(settings.prompt, vocabulary, settings.max_length)
    if settings.seed is None:  # Saved with the experiment, so that it can be resumed exactly.
        settings.seed = int.from_bytes(os.urandom(4), "big")
    rng = np.random.default_rng(settings.seed)
    embeddings = rng.normal(0, GLOVE_SPREAD, (len(vocabulary), dim)).astype(np.float32)
    check_model(build_model(embeddings, settings), len(vocabulary), settings.phrase_len)
    glove = find_glove(settings.glove, dim)
    if glove:
        read_glove(glove, vocabulary, embeddings)
    keras.utils.clear_session()  # Otherwise a second model would have an `embedding_1`.
    keras.utils.set_random_seed(settings.seed)
    model = build_model(embeddings, settings)
    name = f"{time.strftime('%y%m%d-%H%M%S')}-{settings.name or settings.recipe}"
    folder = Path(settings.log_dir, name)
    folder.mkdir(parents=True)
    return QuatrainLM(settings, corpus, model, folder), samples


def fit_runs(lm: "QuatrainLM", training: tuple, validation: tuple):
    """Train the remaining runs with Keras's `fit`."""
    settings, model = lm.settings, lm.model
    sizes = f"Train on {len(training[1])} samples, validate on {len(validation[1])} samples"
    print(settings, *describe_corpus(lm.corpus, settings), sep="\n")
    model.summary()
    # Equal calls of equal batches, so that only one function is compiled.
    batches = len(training[1]) / settings.batch_size
    calls = math.ceil(batches / STEPS_PER_CALL)
    steps = math.ceil(batches / calls)
    first = lm.completed_epochs
    last = first + (settings.runs - lm.completed_runs) * settings.epochs_per_run
    model.jit_compile &= settings.use_xla  # Keras turns XLA on by itself if there is a GPU.
    fast = settings.use_xla and not model.run_eagerly
    with fast_training(model, steps) if fast else contextlib.nullcontext():
        model.fit(
            make_dataset(training, calls * steps, first, last, settings.seed),
            steps_per_epoch=calls * steps,
            initial_epoch=first,
            epochs=last,
            validation_data=validation[:2],
            validation_batch_size=settings.batch_size,
            callbacks=[*make_callbacks(settings), RunCallback(lm, sizes)],
            shuffle=False,  # `make_dataset` does it.
            verbose=1 if INTERACTIVE or os.isatty(1) else 2,  # Progress bars where they can update.
        )


def make_dataset(samples: tuple, batches: int, first: int, last: int, seed: int) -> tf.data.Dataset:
    """Return the batches of the epochs from `first` to before `last`, each a tuple of phrases,
    targets and weights as in `make_samples`. The order depends only on the seed and the epoch. The
    samples that the last batch lacks are the first ones of the epoch."""
    count = len(samples[0])
    size = math.ceil(count / batches)

    @graph_function
    def make_epoch(epoch):
        """Return the batches of one epoch."""
        order = tf.random.experimental.stateless_shuffle(tf.range(count), [seed, epoch])
        rows = tf.reshape(tf.concat([order, order], 0)[: batches * size], (batches, size))
        return tf.data.Dataset.from_tensor_slices(tuple(tf.gather(a, rows) for a in samples))

    # Its autotuner can delay the end of the process by 18 seconds after Ctrl-C.
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.range(first, last).flat_map(make_epoch).with_options(options)


class RunCallback(keras.callbacks.ProgbarLogger):
    """Progress bar that also logs each epoch, and ends each run with quatrains and a checkpoint. It
    comes last, so that what other callbacks change at the end of an epoch is saved with it."""

    def __init__(self, lm: "QuatrainLM", sizes: str):
        super().__init__()
        self.lm, self.sizes = lm, sizes
        # Kept open: TensorBoard misorders event files that were created in the same second.
        self.writers = {
            half: tf.summary.create_file_writer(str(lm.folder / half))
            for half in ("", "train", "validation")
        }
        if not lm.completed_runs:
            log_experiment(self.writers[""], lm)

    def on_epoch_begin(self, epoch, logs=None):
        """Print the start of a run, and reseed dropout."""
        if epoch == self.lm.completed_epochs:
            print(f"\nRun {self.lm.completed_runs}\n{self.sizes}")
        super().on_epoch_begin(epoch)
        # Keras does not save the state of dropout, so it depends on the seed and the epoch.
        rng = np.random.default_rng([self.lm.settings.seed, epoch, 2])
        for variable in self.model.non_trainable_variables:
            if variable.name == "seed_generator_state":
                variable.assign(rng.integers(2**32, size=2, dtype=np.uint32))

    def on_epoch_end(self, epoch, logs=None):
        """Log the metrics. Raise UsageError if the validation loss is not finite."""
        super().on_epoch_end(epoch, logs)
        if not np.isfinite(logs["val_loss"]):
            raise UsageError("val_loss is not finite: lower learning_rate and train again")
        log_epoch(self.writers, self.model, epoch, logs)
        self.trained_epochs = epoch + 1
        run_end = self.lm.completed_epochs + self.lm.settings.epochs_per_run
        if self.trained_epochs == run_end and not self.model.stop_training:
            self.end_run()

    def on_train_end(self, logs=None):
        """End a run that was stopped early. EarlyStopping has restored the best weights by now."""
        if self.model.stop_training:
            self.end_run()

    def end_run(self):
        """Generate quatrains, log them, and save a checkpoint."""
        lm, settings = self.lm, self.lm.settings
        lm.completed_runs += 1
        lm.completed_epochs = self.trained_epochs
        seeds = [settings.seed, lm.completed_runs, 1]
        quatrains = lm.generate(settings.quatrains_per_run, seeds)
        print()
        print(*quatrains, sep="\n" if settings.raw else "\n\n")
        print(f"\n{report_quotes(quatrains)}")
        log_run(self.writers, lm, quatrains)
        save_checkpoint(lm)


# %% Generation


class Quatrain(NamedTuple):
    """A generated quatrain, its longest quote from the corpus, the number of the quoted quatrain,
    and its SLOR score."""

    tokens: list
    text: str
    quote: list
    source: str
    slor: float

    def __str__(self) -> str:
        """Return the text."""
        return self.text


class Draft(NamedTuple):
    """A quatrain in the making: its token IDs, with the prompt, and of each sampled token log
    p(token | phrase) - log p(token), at temperature 1."""

    token_ids: list
    log_ratios: list


@dataclass(eq=False)
class QuatrainLM:
    """A trained language model that generates quatrains, with all that is needed to resume its
    training."""

    settings: Settings
    corpus: Corpus
    model: keras.Model
    folder: Path
    completed_runs: int = 0
    completed_epochs: int = 0  # Fewer in a run that was stopped early.

    def __post_init__(self):
        """Check the prompt, collect corpus statistics, and compile predictions."""
        corpus, settings = self.corpus, self.settings
        encode_prompt(settings.prompt, corpus.vocabulary, settings.max_length)
        self.casing = learn_casing(corpus.quatrains)
        self.usual_form = mode(map(verse_form, corpus.tokens))
        # Without line ends, new verse gets the corpus's usual number of lines, if they fit.
        line_counts = [text.count("\n") + 1 for _, text in corpus.quatrains]
        fitting = math.ceil(settings.max_length * sum(line_counts) / corpus.counts[1:].sum())
        self.line_count = 1 if settings.whole_quatrains else min(mode(line_counts), fitting)
        self.is_word = np.isin(corpus.vocabulary, only_words(corpus.vocabulary))
        self.log_unigram_probs = np.log(corpus.counts / corpus.counts.sum())
        # Quotes are compared without punctuation.
        self.corpus_text = "\n".join(f" {' '.join(only_words(row))} " for row in corpus.tokens)
        self.predict = graph_function(self.model, reduce_retracing=True)

    def generate(self, count: int = 5, seed: Any = None, **overrides: Any) -> list:
        """Generate quatrains line by line, each line the best of its candidates. Overrides are
        settings such as `temperature`, `top_p`, `best_of`, `prompt` and `max_quote_len`; the same
        `seed` gives the same quatrains. Raise UsageError if an override is invalid or the model
        has diverged."""
        settings = replace(self.settings, **overrides)
        prompt = encode_prompt(settings.prompt, self.corpus.vocabulary, settings.max_length)
        rng = np.random.default_rng(seed)
        size = max(1, 1000 // settings.best_of)  # About 1,000 candidates at once, to limit memory.
        quatrains, drafts = [], [Draft(prompt, [])] * count
        while drafts:
            batch, drafts = drafts[:size], drafts[size:]
            for candidates in self.sample_lines(batch, settings, rng):
                draft = self.choose_line(candidates, settings.max_quote_len)
                if draft.token_ids[-1] and len(draft.token_ids) < settings.max_length:
                    drafts.append(draft)
                else:
                    quatrains.append(self.make_quatrain(draft, settings.raw))
        return quatrains

    def sample_lines(self, drafts: list, settings: Settings, rng: Generator) -> list:
        """Continue each draft to the end of its line or of the quatrain, or to `max_length`. Return
        a list of `best_of` candidates for each."""
        size, best_of = settings.phrase_len, settings.best_of
        active = lines = [
            Draft([*ids], [*ratios]) for ids, ratios in drafts for _ in range(best_of)
        ]
        while active:
            phrases = np.array([([0] * size + ids)[-size:] for ids, _ in active], np.int32)
            probs = np.array(self.predict(phrases))
            empty = ~phrases.any(1)
            probs[empty] *= self.is_word  # No quatrain is empty.
            if not probs[empty].any(1).all():  # A diverged model may predict only breaks.
                raise UsageError("the model predicts no words: lower learning_rate and train again")
            sampled = sample_words(probs, settings.temperature, settings.top_p, rng)
            log_probs = np.log(probs[range(len(active)), sampled])
            log_ratios = log_probs - self.log_unigram_probs[sampled]
            for draft, token_id, log_ratio in zip(
                active, sampled.tolist(), log_ratios, strict=True
            ):
                draft.token_ids.append(token_id)
                if token_id:
                    draft.log_ratios.append(log_ratio)
            active = [
                draft
                for draft in active
                if not self.corpus.vocabulary[draft.token_ids[-1]].startswith("<")
                and len(draft.token_ids) < settings.max_length
            ]
        return [lines[start : start + best_of] for start in range(0, len(lines), best_of)]

    def choose_line(self, candidates: list, max_quote_len: int) -> Draft:
        """Return the best candidate: first those within `max_quote_len`, then those that can have
        the corpus's usual form, then by SLOR."""

        def rank(draft):
            """Return whether a candidate fits the usual form, and its SLOR."""
            tokens = self.decode(draft)
            form = verse_form(tokens)
            fits = form == self.usual_form
            if draft.token_ids[-1]:  # Without a break, more lines follow.
                fits = form[0] <= self.usual_form[0] and tokens[-1] == line_end(form[0] - 1)
            return fits, np.mean(draft.log_ratios or 0)

        if len(candidates) == 1:  # Saves the search for quotes.
            return candidates[0]
        ranked = sorted(candidates, key=rank, reverse=True)
        for draft in ranked:
            if len(longest_quote(self.decode(draft), self.corpus_text)) <= max_quote_len:
                return draft
        return ranked[0]

    def decode(self, draft: Draft) -> list:
        """Return the tokens of a draft, without its break."""
        return [self.corpus.vocabulary[token_id] for token_id in draft.token_ids if token_id]

    def make_quatrain(self, draft: Draft, raw: bool) -> Quatrain:
        """Make a `Quatrain`: format its text, and find its longest quote. SLOR (syntactic log-odds
        ratio) is the mean log ratio (Pauls & Klein 2012; Lau, Clark & Lappin 2017)."""
        tokens = self.decode(draft)
        quote = longest_quote(tokens, self.corpus_text)
        before = self.corpus_text.partition(f" {' '.join(quote)} ")[0]
        source = self.corpus.quatrains[before.count("\n")][0] if quote else ""
        text = " ".join(tokens) if raw else format_verse(tokens, self.casing, self.line_count)
        return Quatrain(tokens, text, quote, source, float(np.mean(draft.log_ratios or 0)))


def encode_prompt(prompt: str, vocabulary: list, max_length: int) -> list:
    """Convert a prompt to token IDs. Raise UsageError if a word is not in the corpus."""
    tokens = tokenize(normalize(prompt))
    for token in tokens:
        if token not in vocabulary:
            raise UsageError(
                f"prompt has {token!r}, which is not in the corpus "
                f"(similar: {find_similar(token, vocabulary)})"
            )
    if len(tokens) >= max_length:
        raise UsageError(f"prompt has {len(tokens)} tokens: shorten it, or increase max_length")
    return [vocabulary.index(token) for token in tokens]


def sample_words(probs: np.ndarray, temperature: float, top_p: float, rng: Generator) -> np.ndarray:
    """Sample a token ID for each row of probabilities (float32, rows x vocabulary), with
    temperature and nucleus (top-p) sampling (Holtzman et al. 2020). Returns int64 (rows)."""
    weights = probs / probs.max(1, keepdims=True)
    if temperature != 1:
        weights **= 1 / max(temperature, 1e-6)
    if top_p < 1:
        ranked = -np.sort(-weights, 1)
        needed = ranked.cumsum(1) - ranked <= top_p * ranked.sum(1, keepdims=True)
        weights[weights < np.where(needed, ranked, np.inf).min(1, keepdims=True)] = 0
    sums = weights.cumsum(1)
    return (sums <= rng.random((len(sums), 1), np.float32) * sums[:, -1:]).sum(1)


def longest_quote(tokens: list, corpus_text: str) -> list:
    """Find the longest sequence of words, whatever punctuation and line ends are between them, that
    occurs in a text (one space-padded quatrain per line)."""
    words, quote, start = only_words(tokens), [], 0
    for end in range(1, len(words) + 1):
        while start < end and f" {' '.join(words[start:end])} " not in corpus_text:
            start += 1
        quote = max(quote, words[start:end], key=len)
    return quote


def report_quotes(quatrains: list) -> str:
    """Describe the longest quote."""
    longest = max(quatrains, key=lambda quatrain: len(quatrain.quote))
    words = " ".join(longest.quote)
    return f'Longest quote: {len(longest.quote)} words, "{words}" ({longest.source}).'


def generate_from_checkpoint(**overrides: Any) -> QuatrainLM:
    """Generate quatrains from the latest checkpoint, and print its path to standard error. Return
    the model. Raise UsageError if settings do not work."""
    settings = make_settings(**overrides)
    with tf.device(prepare_device(settings)):
        lm = load_checkpoint(settings.log_dir, overrides)
        quatrains = lm.generate(settings.generate, settings.seed)
    print(*quatrains, sep="\n" if lm.settings.raw else "\n\n")
    print(f"\nFrom {lm.folder / CHECKPOINT}. {report_quotes(quatrains)}", file=sys.stderr)
    return lm


# %% Verse
# Lines, capitals and punctuation.


# Where a word may get a capital: at the start of a quatrain, at that of a line, or after a mark.
STARTS = ["", "\n", *SENTENCE_ENDS]


class Casing(NamedTuple):
    """The usual form of each lower-case word, and the STARTS that capitals mostly follow."""

    forms: dict
    before_capitals: set


def learn_casing(quatrains: list) -> Casing:
    """Learn capitals from a corpus. Lines in all capitals do not count. At a start, the form of a
    word counts only if it has inner capitals."""
    forms, balance = Counter(), Counter(STARTS)  # Without evidence, capitals follow.
    for _, text in quatrains:
        before = ""
        for line in text.split("\n"):
            for token in [] if line.isupper() else TOKEN.findall(line):
                word = token.lower()
                # Poems often begin in capitals: "FROM fairest creatures we desire increase".
                lead_in = not before and token.isupper() and not NUMERAL.fullmatch(token)
                if before not in balance or (token not in (word, capitalize(word)) and not lead_in):
                    forms[token] += 1
                if before in balance and token not in PUNCTUATION:
                    balance[before] += 1 if token != word else -1
                before = token
            before = "\n"
    # The most frequent form comes last and overwrites the others.
    usual = {form.lower(): form for form, _ in reversed(forms.most_common())}
    return Casing(usual, {start for start, count in balance.items() if count > 0})


def split_lines(tokens: list, casing: Casing) -> list:
    """Split tokens into lines at line-end tokens; capitalize words and attach punctuation. Drop
    punctuation at the start of a line, and keep the last of several marks in a row."""
    lines, before = [[]], ""
    for token in tokens:
        line = lines[-1]
        if token.startswith("<"):
            lines.append([])
        elif token not in PUNCTUATION:
            word = casing.forms.get(token, token)
            line.append(capitalize(word) if before in casing.before_capitals else word)
            before = token
        elif line:
            line[-1] = line[-1].rstrip(PUNCTUATION) + token
            before = token
    return [line for line in lines if line]


def wrap_lines(words: list, count: int) -> list:
    """Split words into lines of similar length, or fewer if there are fewer words. Ending a line at
    punctuation is worth 10 characters of imbalance."""
    lines = []
    for left in range(min(count, len(words)), 1, -1):
        target = len(" ".join(words)) / left
        costs = [
            abs(len(" ".join(words[:size])) - target) - 10 * (words[size - 1][-1] in PUNCTUATION)
            for size in range(1, len(words) - left + 2)
        ]
        size = 1 + costs.index(min(costs))
        lines.append(words[:size])
        words = words[size:]
    return [*lines, words]


def format_verse(tokens: list, casing: Casing, line_count: int) -> str:
    """Format tokens as verse, with lines, spacing and capitals. Without line-end tokens, split the
    text into `line_count` lines of similar length."""
    lines = split_lines(tokens, casing)
    if len(lines) == 1:
        lines = wrap_lines(lines[0], line_count)
    texts = map(" ".join, lines)
    if "\n" in casing.before_capitals:
        texts = map(capitalize, texts)
    return re.sub(rf"(?<=[{CJK}]) (?=[{CJK}])", "", "\n".join(texts))


def capitalize(text: str) -> str:
    """Put the first letter in title case, which differs from upper case for digraphs."""
    return re.sub(r"\w", lambda letter: letter[0].title(), text, count=1)


def verse_form(tokens: list) -> tuple[int, bool]:
    """Return the number of lines, and whether the last token ends a sentence."""
    return 1 + sum(token[0] == "<" for token in tokens), tokens[-1] in SENTENCE_ENDS


# %% Checkpoint
# All that is needed to resume, in one file.

CHECKPOINT = "checkpoint.keras"


def save_checkpoint(lm: QuatrainLM):
    """Save the model and the state of training. A crash leaves the old or the new file intact."""
    new = lm.folder / "unfinished.keras"
    lm.model.save(new)
    state = {
        "saved_at": time.time(),
        "dtype_policy": keras.config.dtype_policy().name,
        "settings": asdict(lm.settings),
        "quatrains": lm.corpus.quatrains,
        "completed_runs": lm.completed_runs,
        "completed_epochs": lm.completed_epochs,
    }
    with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("quatrains.json", json.dumps(state))
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    new.replace(lm.folder / CHECKPOINT)


def read_state(path: Path) -> dict:
    """Read what a checkpoint says about its training, and about Keras."""
    with zipfile.ZipFile(path) as archive:
        state, metadata = map(archive.read, ("quatrains.json", "metadata.json"))
    return json.loads(state) | json.loads(metadata)


def saved_at(path: Path) -> float:
    """Return when a checkpoint was saved (s since 1970), or the file's time if it does not say."""
    try:
        return read_state(path)["saved_at"]
    except Exception:
        return path.stat().st_mtime


def load_checkpoint(log_dir: str, overrides: dict) -> QuatrainLM:
    """Load a checkpoint, or the latest one in a folder and its subfolders. Raise UsageError if
    there is none, if it is unreadable, or if the overrides contradict it."""
    path = Path(log_dir)
    if not path.is_file():
        path = max(path.rglob(CHECKPOINT), key=saved_at, default=None)
    if not path:
        raise UsageError(
            f"{log_dir} has no checkpoint: train first, or set log_dir to an experiment's folder"
        )
    version = ""
    try:
        state = read_state(path)
        version = f" (saved by Keras {state['keras_version']})"
        saved, quatrains = state["settings"], state["quatrains"]
        # Keras itself does not restore loss scaling.
        keras.config.set_dtype_policy(state["dtype_policy"])
        model = keras.models.load_model(path, globals())
    except Exception as error:  # Damaged files raise many kinds of errors.
        raise UsageError(
            f"checkpoint {path}{version} cannot be loaded by Keras {keras.__version__}, so set "
            f"log_dir to another experiment's folder, or fix this: {error}"
        )
    for name in overrides.keys() - CHANGEABLE_ON_RESUME:
        if overrides[name] != saved.get(name):
            raise UsageError(
                f"{path.parent} was trained with {name} = {saved.get(name)!r}, not "
                f"{overrides[name]!r}: remove that, or set log_dir to another experiment's folder"
            )
    fixed = {name: saved[name] for name in saved.keys() - CHANGEABLE_ON_RESUME | {"seed"}}
    settings = Settings(**RECIPES.get(saved["recipe"], {}) | fixed | overrides)
    corpus = index_corpus(quatrains, settings.whole_quatrains)
    runs, epochs = state["completed_runs"], state["completed_epochs"]
    return QuatrainLM(settings, corpus, model, path.parent, runs, epochs)


# %% Logs
# One folder per experiment, read by TensorBoard.


@contextlib.contextmanager
def locked(folder: Path):
    """Lock an experiment's folder. Raise UsageError if another process trains in it."""
    with (folder / "lock").open("w") as file:
        try:
            import fcntl  # The system releases its locks when a process ends.

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training in {folder}: let it finish, or start a new experiment"
            )
        except (ImportError, OSError):
            pass  # Windows and some file systems have no such locks.
        yield


def log_experiment(writer: tf.summary.SummaryWriter, lm: QuatrainLM):
    """Log the graph, layer by layer, and the settings for HParams."""
    model, settings = lm.model, lm.settings

    @graph_function
    def layers(words):
        """Call one layer after another, each in its own name scope."""
        # Models that are not Sequential are traced as a whole.
        for layer in model.layers if isinstance(model, keras.Sequential) else [model]:
            with tf.name_scope(layer.name):
                words = layer(tf.identity(words))  # One edge into each layer.
        return words

    # HParams shows the first five at first, sorted with capitals before other letters.
    row = {
        "Experiment": settings.name or settings.recipe,
        "Layers": ", ".join(type(layer).__name__ for layer in model.layers),
    }
    row |= {k: value for k, value in asdict(settings).items() if k not in CHANGEABLE_ON_RESUME}
    with writer.as_default(0):
        # A fixed batch size keeps arithmetic on it out of the graph.
        words = tf.TensorSpec((settings.batch_size, settings.phrase_len), tf.int32, "words")
        tf.summary.graph(layers.get_concrete_function(words).graph)
        hparams.hparams(row, trial_id=str(lm.folder.relative_to(settings.log_dir)))


def log_epoch(writers: dict, model: keras.Model, epoch: int, metrics: dict):
    """Log the metrics of an epoch. Steps count from 1, as printed."""
    metrics = {
        "learning_rate": float(model.optimizer.learning_rate),
        **metrics,
        # The loss without weight penalties, to compare recipes.
        "val_cross_entropy": metrics["val_loss"] - float(sum(model.losses)),
    }
    for name, value in metrics.items():
        half = "validation" if name.startswith("val_") else "train"
        with writers[half].as_default(epoch + 1):
            tf.summary.scalar(name.removeprefix("val_"), value)


def log_run(writers: dict, lm: QuatrainLM, quatrains: list):
    """Log the results of a run: weights, embedding, quatrains, longest quote and SLOR."""
    with writers[""].as_default(lm.completed_epochs):
        for weight in lm.model.trainable_weights:
            # For large weights, a sample has the same histogram in a tenth of the time.
            values = weight.numpy().ravel()
            name = f"weights/{weight.path.removeprefix(lm.model.name + '/')}"
            tf.summary.histogram(name, values[:: values.size // 50_000 + 1])
        texts = [f"Run {lm.completed_runs - 1}", *map(str, quatrains)]
        tf.summary.text("quatrains", "\n\n".join(texts))
        tf.summary.scalar("quote", max(len(quatrain.quote) for quatrain in quatrains))
        tf.summary.scalar("slor", np.mean([quatrain.slor for quatrain in quatrains]))
    log_embedding(lm.folder, lm.model, lm.corpus.vocabulary)
    for writer in writers.values():
        writer.flush()


def log_embedding(folder: Path, model: keras.Model, vocabulary: list):
    """Write the matrices that have one row per word, and the words, for the Projector."""
    (folder / "words.tsv").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = projector.ProjectorConfig()
    for number, weight in enumerate(model.weights):
        if len(weight.shape) == 2 and weight.shape[0] == len(vocabulary):
            name = f"embedding{number}"
            # With another first byte, TensorBoard may mistake the file for text.
            (folder / name).write_bytes(b"\xff" + weight.numpy().astype("float32").tobytes()[1:])
            config.embeddings.add(
                tensor_name=name,
                tensor_path=name,
                tensor_shape=weight.shape,
                metadata_path="words.tsv",
            )
    projector.visualize_embeddings(str(folder), config)


# %% Speed
# Without this section and the line that uses it, `fit` trains the same model, but slower.


@contextlib.contextmanager
def fast_training(model: keras.Model, steps: int):
    """Let `fit` take several of the model's own training steps per call, compiled by XLA, with
    masks by `hash_dropout`. Afterwards, the model is as before."""

    @graph_function(jit_compile=True)
    def train_steps(batches):
        """Train on stacked batches, one after another."""

        def train_step(number):
            """Train on one batch. Return the number of the next."""
            model.train_step([array[number] for array in batches])
            return number + 1

        with mock.patch.object(tf.nn.experimental, "stateless_dropout", hash_dropout):
            tf.while_loop(lambda number: number < steps, train_step, [0])

    def train_function(iterator):
        """Train on the next batches. Return the metrics so far, as Keras expects."""
        batches = zip(*(next(iterator) for _ in range(steps)), strict=True)
        train_steps([tf.stack(arrays) for arrays in batches])
        return model.get_metrics_result()

    # tf.function traces again if a trace creates variables, so create them now.
    if not model.optimizer.built:  # With loss scaling, Keras would build it again.
        model.optimizer.build(model.trainable_variables)
    probs = np.ones((1, model.output_shape[-1]), np.float32)
    model.compute_metrics(None, np.zeros((1, 1), np.int32), probs)
    print("The first epoch takes up to a minute longer, because the training steps are compiled.")
    with mock.patch.multiple(
        model, steps_per_execution=steps, train_function=train_function, test_function=None
    ):
        yield


def hash_dropout(values: tf.Tensor, rate: float, seed, noise_shape) -> tf.Tensor:
    """Replace tf.nn.experimental.stateless_dropout, which all dropout in Keras calls. Its random
    bits are so slow under XLA that an epoch would take three times as long. Here every element is
    0 if a hash of its index and the seed (two ints) is below `rate`."""
    seed = tf.cast(seed, tf.uint32)
    key = hash_bits(seed[0] ^ hash_bits(seed[1]))
    index = tf.cast(tf.range(tf.reduce_prod(noise_shape)), tf.uint32)
    bits = hash_bits(tf.reshape(index, noise_shape) * np.uint32(0x9E3779B1) ^ key)
    mask = tf.where(bits < np.uint32(rate * 2**32), 0.0, 1 / (1 - rate))
    return values * tf.cast(mask, values.dtype)


def hash_bits(bits: tf.Tensor) -> tf.Tensor:
    """Hash 32-bit integers with Chris Wellons's lowbias32, less its last step, which changes only
    the lower half of the bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits ^= tf.bitwise.right_shift(bits, np.uint32(shift))
        bits *= np.uint32(factor)
    return bits


# %% Main

if __name__ == "__main__":
    with one_line_errors(tf.errors.ResourceExhaustedError):
        generates = make_settings(**OVERRIDES).generate
        lm = generate_from_checkpoint(**OVERRIDES) if generates else train(**OVERRIDES)
