"""Fetching GloVe from a server on this machine, which also misbehaves."""

import hashlib
import http.server
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

import quatrains
from conftest import SMALL, edited, write_verses

WORDS = [quatrains.BREAK, "king", "eagle", "zyzzyva"]
DRAW = np.random.default_rng(1)
TEXT = "".join(
    f"{word} {' '.join(f'{x:.4f}' for x in DRAW.normal(size=50))}\n"
    for word in ("king", "eagle", *(f"word{number}" for number in range(300)))
).encode()
KING = np.array(TEXT.split(b"\n")[0].split()[1:], np.float32)


def pack(text):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("glove.6B.50d.txt", text)
    return packed.getvalue()


ARCHIVE = pack(TEXT)
WRONG = pack(TEXT.replace(b"eagle", b"raven"))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the archive; the first part of the path says how it misbehaves."""

    def do_GET(self):
        how = self.path.split("/")[1]
        self.server.asked.append(how)
        if how in ("404", "500"):
            return self.send_error(int(how))
        content = WRONG if how == "wrong" else ARCHIVE
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if how in ("cut", "stalled") else content)
        if how == "stalled":
            self.wfile.flush()
            if not self.server.released.wait(40):
                self.server.asked.append("waited for in vain")
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    server.released = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/{{}}/glove.6B.zip"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Start embeddings with GloVe from the server, in a folder to work in with a Keras home."""
    quatrains.load_tensorflow(use_gpu=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()  # As Keras does when it is imported.
    monkeypatch.setattr(quatrains, "GLOVE_SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(quatrains, "GLOVE_TIMEOUT", 0.4)

    def fetch(how, setting="auto"):
        url = how if ":" in how else server.url.format(how)
        monkeypatch.setattr(quatrains, "GLOVE_URL", url)
        return quatrains.start_embeddings(WORDS, 50, setting, np.random.default_rng(3))

    return fetch


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


CACHED = "home/datasets/glove.6B.zip"


def check_announced(line, url, tmp_path):
    assert line.startswith(f"GloVe: fetching {url} to {tmp_path}/home/datasets, 862 MB, ")
    assert line.endswith('; to go without, set glove = "none".')


def test_vectors_are_fetched_once(fetch, server, tmp_path, capsys):
    embeddings = fetch("good")
    assert files(tmp_path) == [CACHED]
    assert (tmp_path / CACHED).read_bytes() == ARCHIVE
    assert np.array_equal(embeddings[1], KING)
    announced, used = capsys.readouterr().out.splitlines()
    check_announced(announced, server.url.format("good"), tmp_path)
    assert used == f"GloVe: {tmp_path / CACHED} knows 2 words; 1 and the break start random."

    assert np.array_equal(fetch("good"), embeddings)
    assert capsys.readouterr().out.splitlines() == [used]
    assert server.asked == ["good"]


@pytest.mark.parametrize("how", ["404", "500", "wrong", "cut", "stalled", "nobody"])
def test_what_cannot_be_fetched_is_one_line_and_is_never_read(fetch, server, tmp_path, capsys, how):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/glove.6B.zip"
    embeddings = fetch(nobody if how == "nobody" else how)
    announced, failed = capsys.readouterr().out.splitlines()
    check_announced(announced, quatrains.GLOVE_URL, tmp_path)
    assert re.match(r"GloVe: not to be had \(.+\), so all words start random; ", failed)
    assert 'glove = "none"' in failed
    assert np.array_equal(embeddings, fetch("good", "none"))
    assert socket.getdefaulttimeout() is None

    assert np.array_equal(fetch("good")[1], KING)
    announced, _ = capsys.readouterr().out.splitlines()
    check_announced(announced, quatrains.GLOVE_URL, tmp_path)
    assert server.asked == [*[how] * (how != "nobody"), "good"]


def test_a_file_cut_short_is_not_read_but_fetched_anew(fetch, server, tmp_path, capsys):
    (tmp_path / CACHED).parent.mkdir()
    (tmp_path / CACHED).write_bytes(ARCHIVE[:-1000])
    assert np.array_equal(fetch("good")[1], KING)
    assert (tmp_path / CACHED).read_bytes() == ARCHIVE
    check_announced(capsys.readouterr().out.splitlines()[0], quatrains.GLOVE_URL, tmp_path)

    (tmp_path / CACHED).write_bytes(ARCHIVE[:-1000])
    assert np.array_equal(fetch("404"), fetch("good", "none"))
    assert server.asked == ["good", "404"]


def test_without_keras_home_the_cache_is_in_the_users(fetch, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".keras").mkdir()
    for lines in (2, 1):
        assert np.array_equal(fetch("good")[1], KING)
        assert files(tmp_path) == [".keras/datasets/glove.6B.zip"]
        assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.mark.parametrize("name", ["glove.6B.50d.txt", "glove.6B.zip"])
def test_data_is_looked_into_first(fetch, server, tmp_path, capsys, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(ARCHIVE if name.endswith("zip") else TEXT)
    assert np.array_equal(fetch("good")[1], KING)
    assert f"GloVe: data/{name} knows 2 words" in capsys.readouterr().out
    assert server.asked == []


def test_none_asks_nobody(fetch, server, tmp_path, capsys):
    fetch("good", "none")
    assert (server.asked, files(tmp_path), capsys.readouterr().out) == ([], [], "")


def test_ctrl_c_while_fetching_leaves_nothing(server, tmp_path):
    write_verses(tmp_path / "verses.txt")
    settings = SMALL | {"corpus": "verses.txt", "glove": "auto", "embedding_dim": 50}
    text = edited(**settings, GLOVE_URL=server.url.format("stalled"))
    (tmp_path / "stalled.py").write_text(text, encoding="utf-8")
    before = files(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "stalled.py"],
        cwd=tmp_path,
        # As those set it who want TensorFlow quiet.
        env=os.environ | {"KERAS_HOME": str(tmp_path / "home"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while CACHED not in files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "\nquatrains: stopped\n")
    check_announced(out.splitlines()[-1], server.url.format("stalled"), tmp_path)
    assert server.asked == ["stalled"]
    assert files(tmp_path) in (before, sorted([*before, "home/keras.json"]))
    assert not (tmp_path / "logs").exists()
