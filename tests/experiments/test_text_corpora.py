"""Texts: unpacked once, mapped, split and numbered; and what is refused."""

import lzma
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from latephase.experiments.errors import ExperimentError
from latephase.experiments.text import load_corpus, unpack
from latephase.experiments.text.embedded import embedded_text

CONTENT = b"".join(b"line %d: caf\xc3\xa9\n" % i for i in range(400))
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "enwik8_first4M.txt.xz"


def packed(folder: Path, kind: str, content: bytes = CONTENT) -> Path:
    path = folder / f"text.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("folder")
            archive.writestr("folder/text", content)
    else:
        path.write_bytes(lzma.compress(content) if kind == "xz" else content)
    return path


@pytest.mark.parametrize("kind", ["txt", "xz", "zip"])
def test_a_text_is_read_plain_or_packed_and_split_in_proportion(kind: str, tmp_path: Path) -> None:
    corpus = load_corpus(packed(tmp_path, kind), cache=tmp_path / "cache")
    parts = [bytes(part.raw.tolist()) for part in (corpus.train, corpus.validation, corpus.test)]
    assert b"".join(parts) == CONTENT
    assert [len(part) for part in parts[:2]] == [len(CONTENT) * 90 // 100, len(CONTENT) * 95 // 100 - len(parts[0])]
    assert corpus.vocabulary == tuple(sorted(set(CONTENT)))
    assert corpus.decode(corpus.encode(CONTENT[5:50])) == CONTENT[5:50]
    assert torch.equal(corpus.test.tokens(slice(3, 9)), corpus.encode(parts[2][3:9]))


def test_the_bytes_are_mapped_and_travel_as_a_path(tmp_path: Path) -> None:
    path = packed(tmp_path, "txt")
    path.chmod(0o444)
    corpus = load_corpus(path)
    if (maps := Path("/proc/self/maps")).exists():
        assert str(path) in maps.read_text()
    assert corpus.train.raw.data_ptr() == corpus.raw.data_ptr()
    sent = pickle.dumps(corpus)
    assert len(sent) < 500
    there = pickle.loads(sent)
    assert torch.equal(there.raw, corpus.raw)
    assert there.source == corpus.source


def test_a_file_that_changed_on_the_way_to_another_process_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, "txt")
    sent = pickle.dumps(load_corpus(path))
    path.unlink()
    path.write_bytes(CONTENT[:100])
    with pytest.raises(ExperimentError, match=r"had 6,290 bytes and now has 100"):
        pickle.loads(sent)


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = packed(tmp_path, "xz")
    first = load_corpus(path)
    assert first.path is not None
    assert first.path.parent == tmp_path / "cache" / "latephase"
    written = first.path.stat().st_mtime_ns
    monkeypatch.setattr(unpack, "_unpacked", None)
    assert load_corpus(path).path == first.path
    assert first.path.stat().st_mtime_ns == written


@pytest.mark.parametrize("harm", ["shorter", "changed", "no record", "no JSON"])
def test_a_damaged_cache_is_made_anew(harm: str, tmp_path: Path) -> None:
    path = packed(tmp_path, "xz")
    text = unpack.plain_file(path, tmp_path / "cache")
    record = text.with_suffix(".json")
    if harm == "no record":
        record.unlink()
    elif harm == "no JSON":
        record.write_text("{")
    else:
        text.write_bytes(CONTENT[:-7] + (b"" if harm == "shorter" else b"0000000"))
    assert unpack.plain_file(path, tmp_path / "cache").read_bytes() == CONTENT


def test_a_cache_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, "xz")
    whole = unpack._unpacked

    def broken(*args):
        yield next(whole(*args))[:10]
        raise KeyboardInterrupt

    monkeypatch.setattr(unpack, "_unpacked", broken)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(path, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(unpack, "_unpacked", whole)
    assert len(load_corpus(path, cache=tmp_path / "cache")) == len(CONTENT)


@pytest.mark.parametrize("kind", ["xz", "zip"])
def test_a_bomb_is_stopped_at_the_limit(kind: str, tmp_path: Path) -> None:
    path = packed(tmp_path, kind, bytes(5_000_000))
    assert path.stat().st_size < 10_000
    with pytest.raises(ExperimentError, match=r"unpacks to more than 4,000,000 bytes, the limit"):
        unpack.plain_file(path, tmp_path / "cache", limit=4_000_000)
    assert not [p for p in tmp_path.rglob("cache/*") if p.is_file()]


def test_a_zip_that_claims_ten_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path, "zip")
    raw = path.read_bytes()
    entry = raw.rindex(b"PK\x01\x02")
    claim = (2 * 10**9 + 1).to_bytes(4, "little")
    path.write_bytes(raw[: entry + 24] + claim + raw[entry + 28 :])
    with pytest.raises(ExperimentError, match=r"more than 2,000,000,000 bytes"):
        load_corpus(path, cache=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["xz", "zip"])
def test_a_truncated_archive_is_refused(kind: str, tmp_path: Path) -> None:
    path = packed(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ExperimentError, match=r"cannot unpack .*text.*may be truncated"):
        load_corpus(path, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.xz", CONTENT, "is no xz archive"),
        ("text.zip", CONTENT, "is no zip archive"),
        ("text.gz", b"\x1f\x8b\x08\x00\x00\x00", "is packed with gzip"),
        ("text.txt", b"", "text.txt is empty"),
        ("text.txt", b"too short", "has 9 bytes; .* needs at least 40"),
    ],
)
def test_what_is_no_text_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExperimentError, match=message):
        load_corpus(tmp_path / name, cache=tmp_path / "cache")


def test_a_missing_file_a_folder_and_a_zip_of_several_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"there is no text .*nowhere; without a file"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(ExperimentError, match="is a folder"):
        load_corpus(tmp_path)
    path = packed(tmp_path, "zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("second", b"x")
    with pytest.raises(ExperimentError, match=r"holds 2 files \(folder/text, second"):
        load_corpus(path, cache=tmp_path / "cache")


def test_a_byte_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    corpus = load_corpus(packed(tmp_path, "txt"))
    with pytest.raises(ExperimentError, match=r"byte 0x5a at offset 4 is none of the \d+ bytes that .*text.txt"):
        corpus.encode(b"lineZ")


def test_the_embedded_text_is_large_english_and_repeats_no_paragraph() -> None:
    corpus = load_corpus()
    text = embedded_text()
    assert bytes(corpus.raw.tolist()) == text
    assert len(text) > 250_000
    assert text.count(b" the ") > 1000
    words = [" ".join(p.split()) for p in text.decode().split("\n\n")]
    assert len(set(words)) == len(words)
    assert torch.equal(pickle.loads(pickle.dumps(corpus)).raw, corpus.raw)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/enwik8_first4M.txt.xz")
def test_the_first_megabytes_of_enwik8(tmp_path: Path) -> None:
    corpus = load_corpus(SHARED, cache=tmp_path)
    assert (len(corpus), len(corpus.vocabulary)) == (4_000_000, 200)
    assert bytes(corpus.raw[:10].tolist()) == b"<mediawiki"
    assert [len(p) for p in (corpus.train, corpus.validation, corpus.test)] == [3_600_000, 200_000, 200_000]
