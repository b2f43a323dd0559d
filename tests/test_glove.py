"""GloVe vectors: both containers, damaged copies, and what starts at random."""

import zipfile

import numpy as np
import pytest

import quatrains

WORDS = [quatrains.BREAK, "the", "king", "na\u00efve", "zyzzyva"]
VECTORS = {"the": [0.5] * 50, "king": [-1.25e-1] * 50, "na\u00efve": [2.0] * 50, "unused": [9] * 50}


def glove_text(vectors=VECTORS):
    return b"".join(
        word.encode() + b" " + " ".join(map(str, vector)).encode() + b"\n"
        for word, vector in vectors.items()
    )


def make_zip(path, text, member="glove.6B.50d.txt"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return path


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working directory with an empty data folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def start(setting="auto", dim=50):
    return quatrains.start_embeddings(WORDS, dim, setting, np.random.default_rng(3))


@pytest.mark.parametrize("container", ["text", "zip"])
def test_known_words_start_from_glove_and_the_others_at_random(in_folder, container, capsys):
    if container == "text":
        (in_folder / "data/glove.6B.50d.txt").write_bytes(glove_text())
    else:
        make_zip(in_folder / "data/glove.6B.zip", glove_text())
    embeddings = start()
    assert embeddings.shape == (5, 50)
    assert embeddings.dtype == np.float32
    for word in ("the", "king", "na\u00efve"):
        assert embeddings[WORDS.index(word)] == pytest.approx(np.array(VECTORS[word]))
    without = start("none")
    assert np.array_equal(embeddings[[0, 4]], without[[0, 4]])
    printed = capsys.readouterr().out
    assert "knows 3 words; 1 and the break start random" in printed
    assert printed.count("\n") == 1


def test_random_rows_have_the_spread_of_glove():
    embeddings = quatrains.start_embeddings(["w"] * 2000, 50, "none", np.random.default_rng(1))
    assert embeddings.mean() == pytest.approx(0, abs=0.01)
    assert embeddings.std() == pytest.approx(0.4, abs=0.01)


def test_a_named_file_is_read(in_folder):
    (in_folder / "mine.txt").write_bytes(glove_text())
    assert start("mine.txt")[1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (glove_text() + b"caf\xe9 " + b"1 " * 49 + b"1\n", 5),
        (glove_text() + b"<unk> " + b"1 " * 49 + b"1\n", 5),
        (glove_text() + b"last 1 2 3", 5),
        (glove_text() + b"zyzzyva " + b"1 " * 48 + b"1\n", 5),
        (glove_text() + b"zyzzyva " + b"1 " * 49 + b"x\n", 5),
    ],
    ids=["not UTF-8", "extra line", "cut", "cut wanted", "not a number"],
)
def test_damaged_lines_are_passed_over_and_said(in_folder, capsys, text, line):
    (in_folder / "data/glove.6B.50d.txt").write_bytes(text)
    embeddings = start()
    assert embeddings[2] == pytest.approx(-0.125)
    assert np.array_equal(embeddings[4], start("none")[4])
    assert "1 of its lines were passed over" in (printed := capsys.readouterr().out)
    assert f"(line {line} is the first)" in printed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not start with a word and 50 numbers"),
        (b"the 1 2 3\n" + glove_text(), "does not start with a word and 50 numbers"),
        (b"400000 50\n" + glove_text(), "does not start with a word and 50 numbers"),
        (b"\x89PNG\r\n\x1a\n" * 9, "does not start with a word and 50 numbers"),
    ],
    ids=["empty", "other size", "header", "binary"],
)
def test_what_is_no_glove_file_is_refused(in_folder, content, reason):
    (in_folder / "data/glove.6B.50d.txt").write_bytes(content)
    with pytest.raises(quatrains.InputError, match=reason):
        start()


def test_bad_zips_are_refused(in_folder):
    path = in_folder / "data/glove.6B.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(quatrains.InputError, match="glove.6B.zip is broken"):
        start()
    make_zip(path, glove_text(), "glove.6B.100d.txt")
    with pytest.raises(quatrains.InputError, match="has no glove.6B.50d.txt in it"):
        start()
    make_zip(path, glove_text() * 200)
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + b"????" + whole[64:])
    with pytest.raises(quatrains.InputError, match="is broken"):
        start()


def test_a_missing_file_is_refused(in_folder):
    with pytest.raises(quatrains.InputError, match=r"nowhere.txt cannot be read"):
        start("nowhere.txt")
