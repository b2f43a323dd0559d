# /// script
# requires-python = ">=3.10,<3.14"
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
    python quatrains.py --generate 20            generate twenty quatrains from it
    python quatrains.py --help                   list all settings with their defaults
    tensorboard --port 8080 --logdir=logs        watch training

A port of Sean Owen's quatrains-rnn (2017) to TensorFlow and Keras 3. The sections of this file are
notebook cells; each uses only what is above it. To change the model, edit `build_model`.
"""

import argparse
import builtins
import contextlib
import functools
import glob
import html
import importlib.util
import inspect
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

# %% Settings
# Edit them here, or override them on the command line: --gru-dim 256, --no-use-xla.


@dataclass
class Session:
    """Settings that are not restored when an experiment is resumed, except for `seed`."""

    # Use /gpu:0 instead of /cpu:0.
    use_gpu: bool = False
    # Name of the experiment, or "" for the name of the recipe. The experiment's folder in `log_dir`
    # is called <start time>-<name>.
    name: str = ""
    # TensorBoard's log directory. Every experiment has a subfolder with its logs and checkpoint.
    # To resume or generate from a specific experiment, set this to its subfolder or checkpoint.
    log_dir: str = "logs"
    # Random seed. Makes training and generation reproducible on the same machine; None picks one
    # at random.
    seed: int | None = None
    # Total number of runs. A run trains for some epochs, then generates quatrains.
    runs: int = 1000
    # Resume training from the latest checkpoint in `log_dir`.
    resume: bool = False
    # Number of quatrains to generate from the latest checkpoint. None means train.
    generate: int | None = None
    # Quatrains generated after each run.
    quatrains_per_run: int = 5
    # Maximum length of a quatrain in tokens, including the prompt, punctuation and line ends.
    max_length: int = 32
    # Print bare tokens, one quatrain per line, instead of formatted verse.
    raw: bool = False
    # Sampling temperature. Below 1 gives safer text, above 1 wilder text. 0 always takes the most
    # likely word.
    temperature: float = 1.0
    # Nucleus sampling: sample only from the likeliest words, whose probabilities add up to
    # about this. 1 turns it off.
    top_p: float = 1.0
    # Words that every quatrain starts with.
    prompt: str = ""
    # Candidates sampled for each line (recipe 2017: for each quatrain); the best one is kept.
    best_of: int = 1
    # Longest passage that a quatrain may quote from the corpus, in words. A candidate that exceeds
    # it is kept only if all candidates do, so this has no effect if `best_of` is 1.
    max_quote_len: int = 8


@dataclass
class Settings(Session):
    """All settings: those of Session, and those that define an experiment and are read from its
    checkpoint."""

    # Set of overrides from RECIPES: "2017" (as published) or "verse" (whole quatrains). The command
    # line overrides the recipe, and the recipe overrides the values in these classes.
    recipe: str = "2017"
    # Training text: quatrains separated by blank lines or, without blank lines, one per line.
    # data/README.md describes the format.
    corpus: str = "data/quatrains.txt"
    # Initial word vectors: the path of a GloVe file, "none" (random vectors), or "auto", which is
    # data/glove.6B.<embedding_dim>d.txt if that file exists and "none" if not.
    glove: str = "auto"
    # Size of the word vectors. GloVe 6B comes in 50, 100, 200 and 300.
    embedding_dim: int = 300
    # GRU units. More units learn faster, but memorize the corpus sooner.
    gru_dim: int = 128
    # Dropout rate of the GRU's inputs and recurrent state. Slows down memorization of the corpus.
    dropout: float = 0.5
    # L2 penalty on the GRU's weights, included in the losses. Higher values make the output tamer.
    regularization: float = 0.02
    # Dropout rate between the GRU and the dense layer.
    dense_dropout: float = 0.0
    # Length of the context (also called phrase): tokens the model sees to predict the next one.
    phrase_len: int = 4
    # Also learn how quatrains begin and where their lines end. If False (as published), train only
    # on samples whose context has at most one boundary token, and guess line breaks.
    whole_quatrains: bool = False
    # Weight each sample by the square root of its target's count in the corpus, as published.
    class_weights: bool = True
    # Compile the training steps with XLA, which makes them faster. Turn it off for a layer that XLA
    # cannot compile.
    use_xla: bool = True
    # Maximum number of samples per training step.
    batch_size: int = 512
    # Learning rate of RMSprop. High, because the model is small and should learn fast.
    learning_rate: float = 0.003
    # Epochs per run.
    epochs_per_run: int = 5

    def __post_init__(self):
        """Check all values."""
        for field in fields(self):
            value = check_value(field.name, field.type, getattr(self, field.name))
            setattr(self, field.name, value)


# The settings that define an experiment, without those of Session.
EXPERIMENT = [*Settings.__annotations__]
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
        temperature=0.9,
        best_of=40,
    ),
}
# Minimum and maximum. All other numeric settings range from 0 (float) or 1 (int) to a billion.
RANGES = {
    "seed": (0, 2**32 - 1),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "dropout": (0, 0.99),
    "dense_dropout": (0, 0.99),
}


class UsageError(Exception):
    """An error the user can fix. The message says what is wrong and what to do."""

    def _render_traceback_(self):  # IPython shows this instead of a traceback.
        return [f"quatrains: {self}"]


def check_value(name: str, type_: Any, value: Any) -> Any:
    """Return the value of a setting, if necessary converted from NumPy or from int to float. Raise
    UsageError if it has the wrong type or is out of range."""
    value = getattr(value, "item", lambda: value)()  # NumPy's numbers have `item`.
    if type_ is float and type(value) is int:
        value = float(value)
    # True and False are also integers.
    valid = isinstance(value, type_) and isinstance(value, bool) is (type_ is bool)
    expected = getattr(type_, "__name__", "None or int")  # `int | None` has no name.
    if type_ not in (bool, str):
        low, high = RANGES.get(name, (0 if type_ is float else 1, 10**9))
        valid = valid and (value is None or low <= value <= high)
        expected += f" from {low:,} to {high:,}"
    if not valid:
        raise UsageError(f"{name} = {value!r} is invalid: expected {expected}")
    return value


def make_settings(**overrides: Any) -> Settings:
    """Combine defaults, recipe and overrides; later ones win. Raise UsageError if one is
    invalid."""
    recipe = overrides.get("recipe", Settings.recipe)
    if recipe not in RECIPES:
        raise UsageError(f"recipe = {recipe!r} is invalid: expected {' or '.join(RECIPES)}")
    return Settings(**RECIPES[recipe] | overrides)


def override(settings: Settings, overrides: dict) -> Settings:
    """Apply overrides to the settings of an experiment. Raise UsageError if one contradicts a
    setting that defines the experiment."""
    for name in overrides.keys() & EXPERIMENT:
        trained = getattr(settings, name)
        if overrides[name] != trained:
            raise UsageError(
                f"{name} = {overrides[name]!r} contradicts the checkpoint, which was trained with "
                f"{trained!r}: leave {name} out, or set log_dir to another experiment's folder"
            )
    return replace(settings, **overrides)


# %% Command line and imports

# In IPython and notebooks, errors and Ctrl-C leave Python running.
INTERACTIVE = hasattr(builtins, "get_ipython")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageErrors."""

    def error(self, message):
        """Raise UsageError instead of printing the usage."""
        raise UsageError(f"{message} (write options like --gru-dim 256; --help lists them)")


def read_comments() -> dict:
    """Return the comment above each setting in this file, by the setting's name."""
    source = inspect.getsource(Session) + inspect.getsource(Settings)
    found = re.findall(r"((?:    #.*\n)+)    (\w+):", source)
    return {name: comment.replace("#", "") for comment, name in found}


def read_command_line(arguments: list) -> dict:
    """Return the settings given as `--gru-dim 256`. Raise UsageError if one is invalid."""
    parser = Parser(
        usage="quatrains.py [--gru-dim 256] [--no-use-xla] ...",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    # Only for --help, because some debuggers hide the source.
    comments = read_comments() if {"-h", "--help"} & {*arguments} else {}
    for field in fields(Settings):
        kwargs = {"type": field.type if field.type in (str, float) else int}
        if field.type is bool:
            kwargs = {"action": argparse.BooleanOptionalAction}
        text = f"{comments.get(field.name)} Default: {field.default!r}."
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, help=text.replace("%", "%%"), **kwargs)
    return vars(parser.parse_args(arguments))


def repeat_interrupt(ignored: Any):
    """Repeat a Ctrl-C that Python has ignored because it came while an object was being
    deleted."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(ignored)


@contextlib.contextmanager
def one_line_errors():
    """On a UsageError or Ctrl-C, outside notebooks, exit with one line instead of a traceback."""
    try:
        yield
    # TensorFlow turns a Ctrl-C that comes while it builds a graph into a SystemError.
    except (UsageError, KeyboardInterrupt, SystemError) as error:
        if INTERACTIVE:
            raise
        is_usage_error = isinstance(error, UsageError)
        print(f"quatrains: {error if is_usage_error else 'stopped'}", file=sys.stderr)
        sys.exit(2 if is_usage_error else 130)
    except BrokenPipeError:  # The reader of the output, such as `head`, has left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)


def require_packages():
    """Raise UsageError if packages are missing. In a notebook, try to install them first."""
    command = [sys.executable, "-m", "pip", "install", "-r", "requirements.txt"]

    missing = not all(map(importlib.util.find_spec, ("tensorflow", "tensorboard")))
    if missing and INTERACTIVE:
        print("Installing the packages in requirements.txt. This takes a few minutes.")
        missing = subprocess.call(command)
        importlib.invalidate_caches()
    if missing:
        raise UsageError(f"packages are missing: run `{' '.join(command)}` in the script's folder")


if __name__ == "__main__":
    with one_line_errors():
        if not INTERACTIVE:
            sys.unraisablehook = repeat_interrupt
            if hasattr(sys.stdout, "reconfigure"):  # Missing if it was redirected in Python.
                # Files get UTF-8; "?" replaces characters that a terminal lacks.
                encoding = None if sys.stdout.isatty() else "utf-8"
                sys.stdout.reconfigure(encoding=encoding, errors="replace", line_buffering=True)
            make_settings(**read_command_line(sys.argv[1:]))  # Errors come before slow imports.
        require_packages()


@contextlib.contextmanager
def silent_stderr():
    """Hide what is written to standard error."""
    saved_stderr = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)


os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0"}
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # Otherwise, all GPU memory is taken.
# Even at its quietest log level, TensorFlow writes some lines while it is imported. Set another
# level to see them, for example if it aborts.
silent = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3"
with one_line_errors(), silent_stderr() if silent else contextlib.nullcontext():
    import keras
    import numpy as np
    import tensorflow as tf
    from tensorboard.plugins import projector
    from tensorboard.plugins.hparams import api as hparams

    if keras.config.backend() != "tensorflow":
        raise UsageError(
            f"Keras was already imported with the backend {keras.config.backend()}: restart Python"
        )
tf.get_logger().setLevel("ERROR")  # No retracing warnings in notebooks.
# AutoGraph would reread the source file, which may have been edited since.
graph_function = functools.partial(tf.function, autograph=False)


def prepare_device(settings: Settings) -> str:
    """Return the device to train on, and make it deterministic if there is a seed. Raise UsageError
    if a GPU is requested but not found."""
    if settings.use_gpu and not tf.config.list_physical_devices("GPU"):
        raise UsageError(
            "use_gpu = True, but TensorFlow found no GPU: install the GPU driver and "
            '"tensorflow[and-cuda]", or set use_gpu = False'
        )
    # With XLA, the CPU is deterministic anyway.
    if settings.seed is not None and (settings.use_gpu or not settings.use_xla):
        tf.config.experimental.enable_op_determinism()
    return "/gpu:0" if settings.use_gpu else "/cpu:0"


# %% Corpus

# The boundary token, before and after every quatrain, has ID 0. It and the line ends are control
# tokens, which start with "<"; no word does.
BREAK = "<BREAK>"
SENTENCE_ENDS = ".!?‼⁇⁈⁉؟۔।॥።፧׃།။។。！？｡．"
PUNCTUATION = SENTENCE_ENDS + ",;\u037e،؛、，；､፣፤၊"
# Blocks of Han, Kana and their punctuation, which are written without spaces.
CJK = "\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
JOINERS = "\u200c\u200d"  # Invisible, but some scripts need them inside words.
# In normalized text, punctuation marks, Han and Kana are tokens of their own.
WORD_CHAR = rf"[^\s#{PUNCTUATION}{CJK}]"
# A word needs a letter or digit (the lookahead). It has no "#", which starts a comment.
TOKEN = re.compile(rf"[{PUNCTUATION}{CJK}]|(?<!{WORD_CHAR}){WORD_CHAR}*?(?=\w){WORD_CHAR}+")
COMMENT = re.compile(r"(?m)^#+(?: .*)?$\n?")
# A heading ("IV", "Sonnet IV.") is a stanza of its own, and restarts the numbering. A line that is
# only a numeral is a heading even inside a stanza, which it splits. There, a single letter
# without a dot is not a heading, because "I" may be a word.
HEADING = r"(?:\w+ )?([IVXLCDM]+|\d+)\.?"
LONE_NUMERAL = r"([IVXLCDM]{2,}|[IVXLCDM](?=\.)|\d+)\.?"


class Corpus(NamedTuple):
    """Quatrains as (number, text) pairs, their tokens, the vocabulary by token ID, and the count of
    each token (int64)."""

    quatrains: list
    tokens: list
    vocabulary: list
    counts: np.ndarray


def read_corpus(path: str) -> list:
    """Read (number, text) pairs from a UTF-8 file. Raise UsageError if it is unusable."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"corpus {path} cannot be read ({error}): save it as UTF-8, or set corpus to another "
            "text file"
        )
    if re.match(r"\{\\rtf|\s*[{[]\s*[\"{[]", text):
        raise UsageError(f"corpus {path} is RTF or JSON: save it as plain text")
    quatrains = split_quatrains(normalize(strip_markup(text)))
    if not quatrains:
        raise UsageError(f"corpus {path} contains no words: set corpus to another text file")
    return quatrains


def strip_markup(text: str) -> str:
    """Leave out what is not verse: licenses, tags, labels in brackets, and line numbers."""
    # A file may have several books of Project Gutenberg, each between a START and an END line.
    edge = r"\*\*\* ?(?:START|END) OF [^*]*GUTENBERG[^*]*\*\*\*"
    books = re.findall(rf"(?s)START OF [^*]*GUTENBERG[^*]*\*\*\*(.*?)(?={edge}|\Z)", text)
    text = "\n\n".join(books) or text
    text = text.replace("<|endoftext|>", "\n\n")  # Separates poems in texts made for GPT-2.
    # A tag is "<x>" without attributes, or with attributes that have "=". It becomes a space,
    # because it may separate words. <<Quotes>> and "<3" stay.
    text = re.sub(r"(?<!<)</?[a-zA-Z][a-zA-Z\d]*(\s[^<>=]*=[^<>]*|\s*/)?>|<![^<>]*>", " ", text)
    text = html.unescape(text)
    bracket = r"\[[^][\n]*\][ \t]*"
    # Remove "[Chorus]" with its line break, so that no blank line is left, and "[00:12.50]" before
    # or after words.
    text = re.sub(rf"(?m)^[ \t]*({bracket})+\n?|{bracket}$", "", text)
    # A number in the margin follows a tab or three spaces.
    return re.sub(r"(?m)(?<=\S)( ?\t|   )[ \t]*\d+[ \t]*$", "", text)


def normalize(text: str) -> str:
    """Turn all dashes, ellipses, quotation marks, and other punctuation and symbols that are not
    tokens into spaces. Remove most invisible characters, unify apostrophes and hyphens, join
    "U.S.S.R.", strip lines, and normalize to NFC."""
    # These are handled below, or kept.
    skipped = f"{PUNCTUATION}{JOINERS}#'-\u2018\u2019\u2010\u2011\n"
    for char in {*text} - {*skipped}:
        if char.isspace() or char == "\u200b" or unicodedata.category(char)[0] in "PS":
            text = text.replace(char, " ")
        elif not char.isprintable():
            text = text.replace(char, "")
    text = re.sub(r"\u2018([^\u2018]*?)\u2019(?!\w)", r" \1 ", text)  # Quotes, not apostrophes.
    text = text.translate(str.maketrans("\u2018\u2019\u2010\u2011", " '--"))
    text = re.sub(r"([-.'])\1+", " ", text)  # Dashes, ellipses, double quotes.
    text = re.sub(r"\b([^\W\d])\.(?=[^\W\d]\b)", r"\1", text)  # "U.S.S.R." is one word.
    text = "\n".join(line.strip() for line in text.split("\n"))
    # Last, because hidden characters may have separated letters from their accents.
    return unicodedata.normalize("NFC", text)


def split_quatrains(text: str) -> list:
    """Split a normalized text into (number, stanza) pairs, at blank lines or, without any, by
    line."""
    text = re.sub(rf"(?m)^({LONE_NUMERAL})$", r"\n\n\1\n\n", text)
    # Blank lines include those just put around lone numerals.
    gap = "\n\n" if "\n\n" in COMMENT.sub("", text).strip() else "\n"
    # "# Book II" is a heading too.
    text = re.sub(rf"(?m)^# {HEADING}$", rf"{gap}\1.{gap}", text)
    # If every line is a quatrain, only numerals are headings: "Am I" may be a quatrain.
    heading = HEADING if gap == "\n\n" else LONE_NUMERAL
    section, number, quatrains = "", 0, []
    for stanza in COMMENT.sub("", text).split(gap):
        verse = "\n".join(filter(TOKEN.search, stanza.split("\n")))
        if match := re.fullmatch(heading, verse):
            section, number = f"{match[1]}.", 0
        elif verse:
            number += 1
            quatrains.append((f"{section}{number}", verse))
    return quatrains


def tokenize(text: str, line_ends: bool = False) -> list:
    """Split a normalized text into lower-case tokens. With `line_ends`, put a numbered token
    between lines."""
    tokens = []
    for number, line in enumerate(text.split("\n")):
        if line_ends and number:
            tokens.append(line_end(number))
        tokens += map(lower, TOKEN.findall(line))
    return tokens


def lower(word: str) -> str:
    """Return a word in lower case. Python turns "\u0130" into two characters."""
    return word.replace("\u0130", "i").lower()


def line_end(number: int) -> str:
    """Return the token that ends a line. From the twentieth line on, all share one token,
    because few poems are that long."""
    return f"<LINE{min(number, 20)}>"


def is_control(token: str) -> bool:
    """Return whether a token is the boundary token or a line end."""
    return token[0] == "<"


def only_words(tokens: list) -> list:
    """Leave out punctuation marks and control tokens."""
    return [token for token in tokens if token[0] not in f"<{PUNCTUATION}"]


def index_corpus(quatrains: list, line_ends: bool = False) -> Corpus:
    """Assign token IDs by descending frequency, from 1. ID 0 is the boundary token; its count is 1,
    as published, which gives it weight 1 as a target."""
    tokens = [tokenize(text, line_ends) for _, text in quatrains]
    ranked = Counter(token for row in tokens for token in row).most_common()
    vocabulary, counts = zip((BREAK, 1), *ranked, strict=True)
    return Corpus(quatrains, tokens, list(vocabulary), np.array(counts))


def describe_corpus(corpus: Corpus, settings: Settings):
    """Print the size of a corpus, and advice on what may need to be changed."""
    lengths = [len(row) for row in corpus.tokens]
    tokens = [token for row in corpus.tokens for token in row if not is_control(token)]
    print(
        f"Corpus: {settings.corpus} has {len(lengths):,} quatrains, with a total of "
        f"{len(tokens):,} words and punctuation marks ({len({*tokens}):,} distinct)."
    )
    if not any("\n" in text for _, text in corpus.quatrains):
        print("Each quatrain is one line. If this is wrong, separate quatrains with blank lines.")
    longest = max(lengths)
    # One long quatrain among many does little harm.
    if longest > max(1000, sum(lengths) / 10):
        start = corpus.quatrains[lengths.index(longest)][1][:40].replace("\n", " ")
        print(f'Quatrain "{start}..." has {longest:,} tokens: separate quatrains with blank lines.')
    elif settings.whole_quatrains and settings.max_length < np.median(lengths):
        fitting = math.ceil(np.quantile(lengths, 0.9))
        print(
            f"Most quatrains are longer than max_length = {settings.max_length}: "
            f"to generate whole quatrains, use --max-length {fitting}, which fits 90% of them."
        )


# %% Word vectors

GLOVE_STD = 0.4  # Standard deviation of GloVe's numbers.


def make_embeddings(corpus: Corpus, settings: Settings) -> np.ndarray:
    """Return initial word vectors (float32, vocabulary x embedding_dim): those of the GloVe file,
    and random ones for other words. Raise UsageError if the file cannot be used."""
    vocabulary, dim, glove = corpus.vocabulary, settings.embedding_dim, settings.glove
    rng = np.random.default_rng(settings.seed)
    embeddings = rng.normal(0, GLOVE_STD, (len(vocabulary), dim)).astype(np.float32)
    path = Path(f"data/glove.6B.{dim}d.txt" if glove == "auto" else glove)
    if glove == "auto" and not path.exists():
        print(
            f"GloVe: {path} is missing, so word vectors are random. README.md says how to get it."
        )
    elif glove != "none":
        vectors = read_vectors(path, dim, {*vocabulary})
        for token_id, token in enumerate(vocabulary):
            if token in vectors:
                embeddings[token_id] = vectors[token]
        print(f"GloVe: {path} has {len(vectors):,} of {len(vocabulary):,} tokens.")
    return embeddings


def read_vectors(path: Path, dim: int, words: set) -> dict:
    """Read the vectors (float32, dim) of words from a file in which a line is a word and its
    numbers. Skip other lines, such as a header. Raise UsageError if no vector is found."""
    vectors = {}
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            for line in lines:
                word, _, numbers = line.partition(" ")
                if word in words:
                    with contextlib.suppress(ValueError):  # Not numbers.
                        vector = np.array(numbers.split(), np.float32)
                        if vector.shape == (dim,) and np.isfinite(vector).all():
                            vectors[word] = vector
    except OSError as error:
        raise UsageError(f'GloVe file {path} cannot be read ({error}): set glove = "none"')
    if not vectors:
        raise UsageError(
            f"GloVe file {path} has no line with a word of the corpus and {dim} numbers: set "
            'embedding_dim to the length of its vectors, or glove = "none"'
        )
    return vectors


# %% Samples


class Samples(NamedTuple):
    """Phrases (the contexts; int32, samples x phrase_len), the token that follows each (int32,
    samples x 1), and weights (float32, samples)."""

    phrases: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def make_windows(corpus: Corpus, phrase_len: int, whole: bool) -> np.ndarray:
    """Cut each quatrain into windows of a phrase and the next token (int32, samples x phrase_len +
    1), and shuffle them. A quatrain of n tokens, with a phrase of breaks before it and one break
    after it, gives n + 1 windows. Unless `whole`, those with several breaks in the phrase are left
    out: n + 2 - phrase_len remain."""
    token_ids = {token: token_id for token_id, token in enumerate(corpus.vocabulary)}
    breaks, view = [0] * phrase_len, np.lib.stride_tricks.sliding_window_view
    rows = [[*breaks, *map(token_ids.get, tokens), 0] for tokens in corpus.tokens]
    windows = np.concatenate([view(np.array(row, np.int32), phrase_len + 1) for row in rows])
    # The held-out samples do not depend on `settings.seed`. They depend very little on
    # `phrase_len`, because windows are shuffled before any are left out.
    windows = np.random.default_rng(0).permutation(windows)
    breaks_in_phrase = (windows[:, :-1] == 0).sum(1)
    return windows if whole else windows[breaks_in_phrase <= 1]


def make_samples(corpus: Corpus, settings: Settings) -> list[Samples]:
    """Return 95% of the samples for training, and 5% for validation. The weight is the square root
    of the target's count, or 1 without `class_weights`. Raise UsageError if there are fewer than 20
    samples."""
    windows = make_windows(corpus, settings.phrase_len, settings.whole_quatrains)
    if len(windows) < 20:  # 5% of fewer samples is less than one.
        shorten = f", or lower phrase_len (now {settings.phrase_len})"
        raise UsageError(
            f"corpus {settings.corpus} gives {len(windows)} samples, but at least 20 are needed: "
            f"set corpus to a longer text{'' if settings.whole_quatrains else shorten}"
        )
    weights = (corpus.counts ** (0.5 if settings.class_weights else 0)).astype(np.float32)
    parts = np.split(windows, [int(0.95 * len(windows))])
    return [Samples(part[:, :-1], part[:, -1:], weights[part[:, -1]]) for part in parts]


# %% Model
# Edit it here; the rest of the script adapts.


def build_model(embeddings: np.ndarray, settings: Settings) -> keras.Model:
    """Build and compile Embedding -> GRU -> Dense softmax, plus what the recipe adds. `embeddings`
    (vocabulary x dim) are the initial word vectors. Any Keras model that can be saved and loaded,
    and that maps phrases (int32, batch x phrase_len) to next-word probabilities (float, batch x
    vocabulary), works. Its loss and metrics get token IDs as targets (int32, batch x 1)."""
    vocab_size, dim = embeddings.shape
    penalty = keras.regularizers.L2(settings.regularization)
    # The layers have names, because Keras would number the default names of a second model.
    model = keras.Sequential(name="quatrains")
    model.add(keras.Input((settings.phrase_len,), dtype="int32", name="words"))
    model.add(keras.layers.Embedding(vocab_size, dim, weights=embeddings, name="Embedding"))
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
        model.add(keras.layers.Dropout(settings.dense_dropout, name="Dropout"))
    model.add(keras.layers.Dense(vocab_size, activation="softmax", name="Dense"))
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=[keras.metrics.MeanMetricWrapper(sparse_categorical_accuracy, name="acc")],
        jit_compile=False,  # `use_xla` compiles the training steps; validation gains nothing.
    )
    return model


def sparse_categorical_accuracy(targets, probs):
    """Compute Keras's accuracy (float32, batch) without its argmax, which is slow under XLA. This
    function has the name of Keras's own, so that programs without this script can load the
    model."""
    is_likeliest = tf.gather(probs, targets, batch_dims=1)[:, 0] >= tf.reduce_max(probs, -1)
    return tf.cast(is_likeliest, tf.float32)


def make_callbacks(settings: Settings) -> list:
    """Return Keras callbacks. Epochs are counted across all runs."""
    return []


def check_model(model: keras.Model, vocab_size: int, phrase_len: int):
    """Raise UsageError if the model's output is not as `build_model` documents, or let Keras
    raise its own error if the model could be saved but not loaded again."""
    probs = tf.cast(model(np.zeros((2, phrase_len), np.int32)), tf.float32).numpy()
    if probs.shape != (2, vocab_size) or abs(probs.sum(1) - 1).max() > 0.02:
        raise UsageError(
            f"build_model must turn 2 phrases into probabilities of shape (2, {vocab_size}), with "
            f"rows summing to 1; got shape {probs.shape}, row sum {probs[0].sum():.3g}"
        )
    saved = keras.saving.serialize_keras_object(model)
    keras.saving.deserialize_keras_object(saved, custom_objects=globals())


# %% Verse
# Lines, capitals and punctuation.

# A word may get a capital at the start of a quatrain, at the start of a line, and after a mark that
# ends a sentence. STARTS lists what may precede it.
STARTS = ["", "\n", *SENTENCE_ENDS]


class Casing(NamedTuple):
    """The usual form of each word, keyed by its lower-case form, and the STARTS that are mostly
    followed by capitals."""

    forms: dict
    before_capitals: set


def learn_casing(quatrains: list) -> Casing:
    """Learn capitals from a corpus. Lines in all capitals do not count. At a start, the form of a
    word counts only if it has inner capitals."""
    forms, votes = Counter(), Counter()
    for _, text in quatrains:
        before = ""
        for line in text.split("\n"):
            tokens = [] if line.isupper() else TOKEN.findall(line)
            for token in tokens:
                word = lower(token)
                capitalized = capitalize(word)
                # At a start, "The" may be "the" elsewhere, but "McX" is certain.
                if before not in STARTS or token not in (word, capitalized):
                    forms[token] += 1
                if before in STARTS and word != capitalized:  # Not in scripts without case.
                    votes[before] += 1 if token != word else -1
                before = token
            before = "\n"
    # The most frequent form comes last and overwrites the others.
    usual = {lower(form): form for form, _ in reversed(forms.most_common())}
    # If there is no evidence, capitals follow.
    return Casing(usual, {start for start in STARTS if votes[start] >= 0})


def split_lines(tokens: list) -> list:
    """Split tokens at line ends into lists of words. Attach to each word the last of the marks that
    follow it; drop marks before a line's first word."""
    # Of several marks in a row, only the last one stays, without a space before it.
    text = re.sub(rf"[ {PUNCTUATION}]*([{PUNCTUATION}])", r"\1", " ".join(tokens))
    lines = [line.lstrip(PUNCTUATION).split() for line in re.split("<.*?>", text)]
    return [words for words in lines if words]


def wrap_lines(words: list, count: int) -> list:
    """Split words into `count` lines of similar length (fewer if there are too few words). Ending a
    line at punctuation is worth 10 characters of imbalance, which keeps most clauses whole."""
    lines = []
    for left in range(min(count, len(words)), 1, -1):
        target = len(" ".join(words)) / left
        costs = [
            abs(len(" ".join(words[:end])) - target) - 10 * (words[end - 1][-1] in PUNCTUATION)
            for end in range(1, len(words) - left + 2)
        ]
        end = 1 + costs.index(min(costs))
        lines.append(words[:end])
        words = words[end:]
    return [*lines, words]


def format_verse(lines: list, casing: Casing) -> str:
    """Format lines of lower-case words as verse, with capitals."""
    verse = ""
    for words in lines:
        for word in words:
            bare = word.rstrip(PUNCTUATION)
            form = casing.forms.get(bare, bare)
            if verse[-1:] in casing.before_capitals:
                form = capitalize(form)
            verse += f" {form}{word.removeprefix(bare)}"
        verse += "\n"
    # No spaces at the start of a line, or between Han or Kana.
    return re.sub(rf"(?m)^ |(?<=[{CJK}]) (?=[{CJK}])", "", verse).rstrip()


def capitalize(text: str) -> str:
    """Put the first letter in title case, which differs from upper case for digraphs."""
    return re.sub(r"\w", lambda letter: letter[0].title(), text, count=1)


# %% Generation


class Quatrain(NamedTuple):
    """A generated quatrain: its tokens, formatted text, longest quote from the corpus (a list of
    words), the number of the first quatrain with that quote, and SLOR."""

    tokens: list
    text: str
    quote: list
    source: str
    slor: float

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"\n{self.text}\n"  # In a notebook, a list of quatrains shows the verse.


class Draft(NamedTuple):
    """A quatrain in the making: its token IDs, including the prompt, and, for each sampled token
    except breaks, log p(token | phrase) - log p(token), at temperature 1."""

    token_ids: list
    log_ratios: list

    @property
    def slor(self) -> float:
        """Syntactic log-odds ratio (Pauls & Klein 2012; Lau, Clark & Lappin 2017)."""
        return float(np.mean(self.log_ratios or 0))


@dataclass(eq=False)
class QuatrainLM:
    """A trained language model that generates quatrains, with all that is needed to resume its
    training."""

    settings: Settings
    corpus: Corpus
    model: keras.Model
    folder: Path
    device: str = "/cpu:0"
    completed_runs: int = 0
    completed_epochs: int = 0  # Fewer than runs x epochs_per_run if a run stopped early.

    def __post_init__(self):
        """Check the prompt, and collect what generation needs from the corpus."""
        corpus, vocabulary = self.corpus, self.corpus.vocabulary
        encode_prompt(self.settings, vocabulary)
        self.casing = learn_casing(corpus.quatrains)
        # New verse gets the most common number of lines. Stanzas are weighted by their number of
        # lines, so that many one-line titles do not win.
        line_counts = [text.count("\n") + 1 for _, text in corpus.quatrains]
        self.line_count = mode(count for count in line_counts for _ in range(count))
        self.line_length = sum(map(len, corpus.tokens)) / sum(line_counts)  # In tokens.
        self.is_text = np.array([not is_control(token) for token in vocabulary])
        self.is_word = np.isin(vocabulary, only_words(vocabulary))
        self.log_unigram_probs = np.log(corpus.counts / corpus.counts.sum())
        # Quotes are compared without punctuation.
        self.corpus_text = "\n".join(f" {' '.join(only_words(row))} " for row in corpus.tokens)
        # The model is an argument, so that a replaced `lm.model` is traced again.
        self.predict = graph_function(
            lambda model, phrases: tf.cast(model(phrases), tf.float32), reduce_retracing=True
        )

    def __repr__(self) -> str:
        return f"QuatrainLM({str(self.folder)!r}, completed_runs={self.completed_runs})"

    def generate(self, count: int = 5, seed: Any = None, **overrides: Any) -> list:
        """Generate quatrains line by line (with the recipe 2017, each as a whole), and keep the
        best candidates. Overrides are settings such as `temperature`, `top_p`, `best_of`, `prompt`
        and `max_quote_len`. The same `seed` and arguments give the same quatrains. Raise UsageError
        if an override is invalid or the model has diverged."""
        settings = override(self.settings, overrides)
        prompt = encode_prompt(settings, self.corpus.vocabulary)
        rng = np.random.default_rng(seed)
        # What ends each line. Without line ends, a whole quatrain is sampled as one line.
        lines = self.line_count if settings.whole_quatrains else 1
        ends = [*map(line_end, range(1, lines)), BREAK]
        # At most 1,000 candidates at once, or `best_of` if that is more, to limit memory.
        batch, quatrains = max(1, 1000 // settings.best_of), []
        while len(quatrains) < count:
            drafts = [Draft(prompt, [])] * min(batch, count - len(quatrains))
            for end in ends:
                with tf.device(self.device):
                    groups = self.sample_lines(drafts, end, settings, rng)
                drafts = [self.choose_line(group, settings.max_quote_len) for group in groups]
            quatrains += [self.make_quatrain(draft, settings) for draft in drafts]
        return quatrains

    def sample_lines(self, drafts: list, end: str, settings: Settings, rng: Any) -> list:
        """Continue each draft until the token `end`, or to `max_length`. Return a list of `best_of`
        candidates for each draft."""
        end_id = self.corpus.vocabulary.index(end)
        within_line = self.is_text.copy()
        within_line[end_id] = True
        # Breaks pad phrases that are too short. The recipe "2017" is not trained on phrases with
        # several breaks, but starts with them, as published.
        breaks = [0] * settings.phrase_len
        groups = [
            [Draft([*ids], [*ratios]) for _ in range(settings.best_of)] for ids, ratios in drafts
        ]
        active = [draft for group in groups for draft in group]  # They grow in place.
        while active := [draft for draft in active if len(draft.token_ids) < settings.max_length]:
            phrases = np.array([(breaks + ids)[-len(breaks) :] for ids, _ in active], np.int32)
            probs = self.predict(self.model, phrases).numpy()
            # A line must start with a word. All active drafts are at the start of a line, or none
            # is, so checking the first one is enough.
            probs *= within_line if self.is_text[phrases[0, -1]] else self.is_word
            if not (probs.max(1) > 0).all():  # Also if they are NaN.
                raise UsageError("the model has diverged: lower learning_rate and train again")
            sampled = sample_words(probs, settings.temperature, settings.top_p, rng)
            log_probs = np.log(probs[range(len(active)), sampled])
            log_ratios = log_probs - self.log_unigram_probs[sampled]
            pairs, active = zip(active, sampled.tolist(), log_ratios, strict=True), []
            for draft, token_id, log_ratio in pairs:
                draft.token_ids.append(token_id)
                if token_id:  # A break says nothing about the words.
                    draft.log_ratios.append(log_ratio)
                if token_id != end_id:
                    active.append(draft)
        return groups

    def choose_line(self, candidates: list, max_quote_len: int) -> Draft:
        """Return the candidate with the highest SLOR among those within `max_quote_len` or, if
        there are none, among all."""
        if len(candidates) == 1:  # Avoids the search for quotes.
            return candidates[0]
        ranked = sorted(candidates, key=lambda draft: draft.slor, reverse=True)
        for draft in ranked:
            if len(longest_quote(self.decode(draft), self.corpus_text)) <= max_quote_len:
                return draft
        return ranked[0]

    def decode(self, draft: Draft) -> list:
        """Return the tokens of a draft, without its break."""
        return [self.corpus.vocabulary[token_id] for token_id in draft.token_ids if token_id]

    def make_quatrain(self, draft: Draft, settings: Settings) -> Quatrain:
        """Format a finished draft, and find its longest quote."""
        tokens = self.decode(draft)
        quote = longest_quote(tokens, self.corpus_text)
        before = self.corpus_text.partition(f" {' '.join(quote)} ")[0]
        source = self.corpus.quatrains[before.count("\n")][0] if quote else ""
        lines = split_lines(tokens)
        if not settings.whole_quatrains:
            count = min(self.line_count, math.ceil(len(tokens) / self.line_length))
            lines = wrap_lines([word for words in lines for word in words], count)
        text = " ".join(tokens) if settings.raw else format_verse(lines, self.casing)
        return Quatrain(tokens, text, quote, source, draft.slor)


def encode_prompt(settings: Settings, vocabulary: list) -> list:
    """Convert the prompt to token IDs. Raise UsageError if it is too long, or has a word that is
    not in the corpus."""
    tokens = tokenize(normalize(settings.prompt))
    for token in tokens:
        if token not in vocabulary:
            raise UsageError(
                f"prompt has {token!r}, which is not in the corpus "
                f"(similar: {', '.join(get_close_matches(token, vocabulary)) or 'none'})"
            )
    if len(tokens) >= settings.max_length:
        raise UsageError(f"prompt has {len(tokens)} tokens: shorten it, or increase max_length")
    return [vocabulary.index(token) for token in tokens]


def sample_words(probs: np.ndarray, temperature: float, top_p: float, rng: Any) -> np.ndarray:
    """Sample a token ID for each row of probabilities (float32, rows x vocabulary), which need not
    add up to 1, with temperature and nucleus (top-p) sampling (Holtzman et al. 2020). Return int64
    (rows)."""
    weights = probs / probs.max(1, keepdims=True)
    if temperature != 1:
        weights **= 1 / max(temperature, 1e-6)
    if top_p < 1:
        ranked = -np.sort(-weights, 1)
        # A word belongs to the nucleus if those before it add up to at most top_p.
        in_nucleus = ranked.cumsum(1) - ranked <= top_p * ranked.sum(1, keepdims=True)
        weights[weights < np.where(in_nucleus, ranked, np.inf).min(1, keepdims=True)] = 0
    # The sampled ID is the number of cumulative sums that do not exceed a random share of the
    # total.
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
    """Describe the longest quote of several quatrains."""
    longest = max(quatrains, key=lambda quatrain: len(quatrain.quote))
    count, text = len(longest.quote), " ".join(longest.quote)
    words = "word" if count == 1 else "words"
    return f'Longest quote: {count} {words}, "{text}" ({longest.source}).'


# %% Checkpoint
# All that is needed to resume, in one file.

CHECKPOINT = "checkpoint.keras"


def save_checkpoint(lm: QuatrainLM):
    """Save the model and the state of training. A crash leaves the old or the new file intact."""
    new = lm.folder / "unfinished.keras"
    lm.model.save(new)
    state = {
        "settings": asdict(lm.settings),
        "quatrains": lm.corpus.quatrains,
        "completed_runs": lm.completed_runs,
        "completed_epochs": lm.completed_epochs,
    }
    with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("quatrains.json", json.dumps(state))
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    for seconds in (0.1, 1, 5, 0):
        try:
            new.replace(lm.folder / CHECKPOINT)
            return
        except PermissionError:  # On Windows, while another program has the old one open.
            if not seconds:
                raise
            time.sleep(seconds)


def find_checkpoint(log_dir: str) -> Path:
    """Return a checkpoint's path: `log_dir` if it is a file, or else the latest one in it and its
    subfolders. Raise UsageError if there is none."""
    if os.path.isfile(log_dir):  # Path.is_file raises an error if the name is too long.
        return Path(log_dir)
    # Path.rglob does not follow links to folders.
    folder = glob.escape(str(Path(log_dir)))  # "." if it is empty.
    paths = glob.glob(f"{folder}/**/{CHECKPOINT}", recursive=True)
    if not paths:
        raise UsageError(
            f"{log_dir} has no checkpoint: train first, or set log_dir to an experiment's folder"
        )
    return Path(max(paths, key=os.path.getmtime))


def load_checkpoint(path: Path, overrides: dict) -> QuatrainLM:
    """Load a checkpoint. Its settings come from these, in order of precedence: the overrides; the
    checkpoint (the seed and all settings outside Session); its recipe; the defaults in this file.
    Raise UsageError if it is unreadable, or if an override contradicts it."""
    try:
        with zipfile.ZipFile(path) as archive:
            state = json.loads(archive.read("quatrains.json"))
        saved = state["settings"]
        fixed = {name: saved[name] for name in ["seed", *EXPERIMENT]}
        settings = Settings(**RECIPES.get(saved["recipe"], {}) | fixed)
        settings = override(settings, overrides)
        device = prepare_device(settings)
        with tf.device(device), warnings.catch_warnings():
            # Keras only warns if the optimizer's state does not fit.
            warnings.filterwarnings("error", "Skipping variable loading")
            model = keras.models.load_model(path, globals())
    except UsageError:  # From `override` or `prepare_device`.
        raise
    except Exception as error:  # Damaged files raise many kinds of errors.
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"checkpoint {path} cannot be loaded by Keras {keras.__version__} ({reason}): fix "
            "this problem, or set log_dir to another experiment's folder"
        )
    corpus = index_corpus(state["quatrains"], settings.whole_quatrains)
    runs, epochs = state["completed_runs"], state["completed_epochs"]
    return QuatrainLM(settings, corpus, model, path.parent, device, runs, epochs)


# %% Logs
# One folder per experiment, read by TensorBoard.


def make_folder(settings: Settings) -> Path:
    """Create the folder of a new experiment. Raise UsageError if that is impossible."""
    while True:
        start = time.strftime("%y%m%d-%H%M%S")
        folder = Path(settings.log_dir, f"{start}-{settings.name or settings.recipe}")
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if isinstance(error, FileExistsError) and folder.is_dir():
                time.sleep(0.1)  # Another experiment started in the same second.
                continue
            raise UsageError(
                f"log_dir {settings.log_dir} cannot be used ({error}): set it to a folder in which "
                "files can be created"
            )


@contextlib.contextmanager
def locked(folder: Path):
    """Lock an experiment's folder. Raise UsageError if another process is training in it."""
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
    """Log the graph of the layers, and the settings for HParams."""
    model, settings = lm.model, lm.settings
    # HParams initially shows five settings. It puts those that differ between experiments first,
    # and sorts the rest by name, capitals before lower case.
    row = {
        "Experiment": settings.name or settings.recipe,
        "Layers": ", ".join(type(layer).__name__ for layer in model.layers),
    }
    row |= {name: getattr(settings, name) for name in EXPERIMENT}
    with writer.as_default(0):
        # `call` puts every layer at the top level of the graph; the model itself would be one box.
        # A fixed batch size keeps arithmetic on it out of the graph.
        words = tf.TensorSpec((settings.batch_size, settings.phrase_len), tf.int32, "words")
        tf.summary.graph(graph_function(model.call).get_concrete_function(words).graph)
        hparams.hparams(row, trial_id=str(lm.folder.relative_to(settings.log_dir)))


def open_logs(lm: QuatrainLM) -> dict:
    """Open an event file for training, one for validation, and one for the rest. They stay open,
    because TensorBoard mixes up the order of files that were created in the same second."""
    writers = {
        part: tf.summary.create_file_writer(str(lm.folder / part), max_queue=0)  # No delay.
        for part in ("", "train", "validation")
    }
    if not lm.completed_runs:
        log_experiment(writers[""], lm)
    return writers


def log_epoch(writers: dict, lm: QuatrainLM, metrics: dict):
    """Log the metrics of the last completed epoch."""
    model = lm.model
    curves = {"learning_rate": float(model.optimizer.learning_rate)} | metrics
    if model.loss == "sparse_categorical_crossentropy":
        # The loss without weight penalties.
        penalty = sum(
            float(weight.regularizer(weight))
            for weight in model.trainable_weights
            if weight.regularizer
        )
        curves["val_cross_entropy"] = metrics["val_loss"] - penalty
    for name, value in curves.items():
        part = "validation" if name.startswith("val_") else "train"
        with writers[part].as_default(lm.completed_epochs):
            tf.summary.scalar(name.removeprefix("val_"), value)


def log_run(writers: dict, lm: QuatrainLM, run: int, quatrains: list):
    """Log the results of a run: weights, embedding, quatrains, longest quote and SLOR."""
    texts = [f"Run {run}", *map(str, quatrains)]
    # Markdown would number a line that starts with "1999.".
    markdown = re.sub(r"(?m)^(\d+)\.", r"\1\\.", "\n\n".join(texts))
    with writers[""].as_default(lm.completed_epochs):
        for weight in lm.model.trainable_weights:
            # Up to 50,000 values give nearly the same histogram in a tenth of the time.
            values = weight.numpy().ravel()
            name = f"weights/{weight.path.removeprefix(lm.model.name + '/')}"
            tf.summary.histogram(name, values[:: values.size // 50_000 + 1])
        tf.summary.text("quatrains", markdown)
        tf.summary.scalar("quote", max(len(quatrain.quote) for quatrain in quatrains))
        tf.summary.scalar("slor", np.mean([quatrain.slor for quatrain in quatrains]))
    log_embedding(lm)


def log_embedding(lm: QuatrainLM):
    """Write the matrices that have one row per word, and the words, for the Projector."""
    vocabulary = lm.corpus.vocabulary
    (lm.folder / "words.tsv").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = projector.ProjectorConfig()
    for number, weight in enumerate(lm.model.weights):
        if weight.shape[:-1] == (len(vocabulary),):
            name = f"embedding{number}"
            # TensorBoard mistakes some files for text, but none with this first byte. It is the
            # least significant byte of a number, so changing it is harmless.
            (lm.folder / name).write_bytes(b"\xff" + weight.numpy().astype("float32").tobytes()[1:])
            config.embeddings.add(
                tensor_name=name,
                tensor_path=name,
                tensor_shape=weight.shape,
                metadata_path="words.tsv",
            )
    projector.visualize_embeddings(str(lm.folder), config)


# %% Fast dropout
# A hack. Without this section and the line that uses it, an epoch takes three times as long.


@contextlib.contextmanager
def fast_dropout():
    """Replace tf.nn.experimental.stateless_dropout, which Keras's Dropout and GRU call, in graphs
    traced within the `with` block. Under XLA, generating its random bits takes most of a
    training step."""
    original = tf.nn.experimental.stateless_dropout
    tf.nn.experimental.stateless_dropout = hash_dropout
    try:
        yield
    finally:
        tf.nn.experimental.stateless_dropout = original


def hash_dropout(values: tf.Tensor, rate: float, seed: Any, noise_shape: Any) -> tf.Tensor:
    """Set to 0 the elements for which hash(index, seed) / 2**32 is below `rate`, and scale the
    others. The seed is two ints."""
    seed = tf.cast(seed, tf.uint32)
    key = hash_bits(seed[0] ^ hash_bits(seed[1]))
    index = tf.cast(tf.range(tf.reduce_prod(noise_shape)), tf.uint32)
    # The golden ratio spreads neighboring indices over all bits.
    spread = tf.reshape(index, noise_shape) * 0x9E3779B1
    kept = hash_bits(spread ^ key) >= int(rate * 2**32)
    return values * tf.cast(kept, values.dtype) * (1 / (1 - rate))


def hash_bits(bits: tf.Tensor) -> tf.Tensor:
    """Hash 32-bit integers with Chris Wellons's lowbias32, less its last step, which changes only
    the lower half of the bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits ^= tf.bitwise.right_shift(bits, shift)
        bits *= factor
    return bits


# %% Training


def plan_epoch(samples: int, batch_size: int) -> tuple[int, int, int]:
    """Divide an epoch into calls, steps per call, and samples per step. All calls are alike, so
    that one compiled function serves them all. For example, 32,300 samples in batches of at most
    512 take 8 calls of 8 steps, with 505 samples per step."""
    batches = math.ceil(samples / batch_size)
    calls = math.ceil(batches / 8)  # A call copies all weights. More than eight steps gain nothing.
    steps = math.ceil(batches / calls)
    return calls, steps, math.ceil(samples / (calls * steps))


def compile_steps(model: keras.Model, samples: Samples, steps: int, use_xla: bool) -> Any:
    """Return a function that trains on one batch after another, given the indices of their samples
    (int32, steps x batch size). Keras's `fit` would make one XLA call per step."""
    arrays = [tf.constant(array) for array in samples]

    def train_steps(indices):
        """Train on the batches of one call."""

        def train_step(step):
            """Train on one batch. Return the next batch's number."""
            model.train_step(tuple(tf.gather(array, indices[step]) for array in arrays))
            return [step + 1]

        with fast_dropout():
            # A Python loop would be unrolled into `steps` copies.
            tf.while_loop(lambda step: step < steps, train_step, [0])

    if model.run_eagerly:
        return train_steps
    if use_xla:
        print("The first epoch takes longer, because the training steps have to be compiled.")
    return graph_function(train_steps, jit_compile=use_xla)


def start_epoch(model: keras.Model, rng: Any, samples: int, shape: tuple) -> tf.Tensor:
    """Reset the metrics, and seed the dropout layers: Keras does not save their state, and training
    must resume exactly. Return the indices of all samples in random order (int32, calls x steps x
    batch size). The first ones are repeated to fill the shape."""
    model.reset_metrics()
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(rng.integers(2**32, size=2, dtype=np.uint32))
    return tf.constant(np.resize(rng.permutation(samples), shape), tf.int32)


def list_callbacks(lm: QuatrainLM, batches: int) -> keras.callbacks.CallbackList:
    """Return the callbacks, with Keras's history and progress bar."""
    runs = lm.settings.runs - lm.completed_runs
    return keras.callbacks.CallbackList(
        make_callbacks(lm.settings),
        add_history=True,
        add_progbar=True,
        model=lm.model,
        steps=batches,
        epochs=lm.completed_epochs + runs * lm.settings.epochs_per_run,
        verbose=1 if INTERACTIVE or sys.stdout.isatty() else 2,  # Progress bars if they can update.
    )


def fit_runs(lm: QuatrainLM, training: Samples, validation: Samples):
    """Train the remaining runs, and end each with a checkpoint and quatrains. This spells out
    Keras's `fit`, but batch callbacks run once per call. Validation has no sample weights, as
    published. Raise UsageError if its loss is not finite."""
    settings, model, count = lm.settings, lm.model, len(training.targets)
    calls, steps, batch_size = plan_epoch(count, settings.batch_size)
    train_steps = compile_steps(model, training, steps, settings.use_xla)
    held_out = tf.data.Dataset.from_tensor_slices(validation[:2]).batch(settings.batch_size)
    writers = open_logs(lm)
    callbacks = list_callbacks(lm, calls * steps)
    callbacks.on_train_begin()
    while lm.completed_runs < settings.runs and not model.stop_training:
        run, run_end = lm.completed_runs, lm.completed_epochs + settings.epochs_per_run
        print(f"\nRun {run}")
        print(f"Train on {count} samples, validate on {len(validation.targets)} samples")
        while lm.completed_epochs < run_end and not model.stop_training:
            epoch = lm.completed_epochs
            rng = np.random.default_rng([settings.seed, epoch])
            indices = start_epoch(model, rng, count, (calls, steps, batch_size))
            callbacks.on_epoch_begin(epoch)
            for call in range(calls):
                callbacks.on_train_batch_begin(call * steps)
                train_steps(indices[call])
                metrics = model.get_metrics_result()
                callbacks.on_train_batch_end(call * steps + steps - 1, metrics)
                if model.stop_training:
                    break
            validated = model.evaluate(held_out, callbacks=callbacks, return_dict=True)
            metrics |= {f"val_{name}": value for name, value in validated.items()}
            lm.completed_epochs += 1
            log_epoch(writers, lm, metrics)  # Before callbacks change the learning rate.
            callbacks.on_epoch_end(epoch, metrics)
            if not np.isfinite(metrics["val_loss"]):
                raise UsageError("val_loss is not finite: lower learning_rate and train again")
        lm.completed_runs += 1
        if model.stop_training or lm.completed_runs == settings.runs:
            # Weights become moving averages (`use_ema`), or EarlyStopping restores the best ones.
            model.optimizer.finalize_variable_values(model.trainable_weights)
            callbacks.on_train_end(metrics)
        end_run(lm, run, writers)


def end_run(lm: QuatrainLM, run: int, writers: dict):
    """Save a checkpoint, then generate, log and print quatrains."""
    settings = lm.settings
    save_checkpoint(lm)
    quatrains = lm.generate(settings.quatrains_per_run, [settings.seed, run])
    log_run(writers, lm, run, quatrains)
    print()
    print(*quatrains, sep="\n" if settings.raw else "\n\n")
    print(f"\n{report_quotes(quatrains)}")


def start_experiment(settings: Settings) -> QuatrainLM:
    """Read the corpus, build the model and create the experiment's folder. Raise UsageError if one
    of them is unusable."""
    device = prepare_device(settings)
    if settings.seed is None:  # Saved with the experiment, so that it can be resumed exactly.
        settings = replace(settings, seed=secrets.randbits(32))
    corpus = index_corpus(read_corpus(settings.corpus), settings.whole_quatrains)
    # Called here only so that errors come before a folder is made.
    make_samples(corpus, settings)
    encode_prompt(settings, corpus.vocabulary)
    embeddings = make_embeddings(corpus, settings)
    keras.utils.set_random_seed(settings.seed)
    with tf.device(device):
        model = build_model(embeddings, settings)
        check_model(model, len(corpus.vocabulary), settings.phrase_len)
    return QuatrainLM(settings, corpus, model, make_folder(settings), device)


def continue_training(lm: QuatrainLM):
    """Train the remaining runs, until the end or an interrupt, and print what was saved."""
    print(lm.settings)
    describe_corpus(lm.corpus, lm.settings)
    lm.model.summary()
    try:
        with tf.device(lm.device):
            fit_runs(lm, *make_samples(lm.corpus, lm.settings))
    except KeyboardInterrupt:
        if not INTERACTIVE:
            raise
    finally:
        checkpoint = lm.folder / CHECKPOINT
        if checkpoint.exists():
            print(f"\n{checkpoint} contains the model as of the last completed run.")
            print("To generate: --generate 20. To continue: --resume (resume = True).")
            print("If all runs are done, also increase --runs.")
        else:
            print("\nNo checkpoint was saved: the first run was not completed.")


def train(**overrides: Any) -> QuatrainLM:
    """Train with the settings at the top and overrides, such as `recipe="verse"`. In a notebook,
    an interrupt ends training and still returns the QuatrainLM. Raise UsageError if a setting or a
    file is unusable."""
    settings = make_settings(**overrides)
    if not settings.resume:
        lm = start_experiment(settings)
        with locked(lm.folder):
            continue_training(lm)
        return lm
    path = find_checkpoint(settings.log_dir)
    with locked(path.parent):  # Before it is read, because another process may still be writing it.
        lm = load_checkpoint(path, overrides)
        run = lm.completed_runs
        if run >= lm.settings.runs:
            raise UsageError(
                f"runs = {lm.settings.runs}, but {lm.folder} has completed {run}: increase runs"
            )
        print(f"Resuming {lm.folder} after run {run - 1}.")
        continue_training(lm)
    return lm


def generate_from_checkpoint(**overrides: Any) -> QuatrainLM:
    """Generate quatrains from the latest checkpoint, and print its path to standard error. Return
    the QuatrainLM. Raise UsageError if a setting or a file is unusable."""
    settings = make_settings(**overrides)
    path = find_checkpoint(settings.log_dir)
    lm = load_checkpoint(path, overrides)
    # Not the seed of the experiment, which would give the same quatrains each time.
    quatrains = lm.generate(lm.settings.generate or 5, settings.seed)
    print(*quatrains, sep="\n" if lm.settings.raw else "\n\n")
    print(f"\nFrom {path}. {report_quotes(quatrains)}", file=sys.stderr)
    return lm


# %% Main

if __name__ == "__main__":
    with one_line_errors():
        # `%run` passes arguments. In a cell, they are the kernel's, and `__file__` is undefined or
        # names another file.
        in_cell = INTERACTIVE and Path(sys.argv[0]).name != Path(globals().get("__file__", "")).name
        overrides = {} if in_cell else read_command_line(sys.argv[1:])
        generates = make_settings(**overrides).generate
        lm = generate_from_checkpoint(**overrides) if generates else train(**overrides)
