"""Files that somebody made to do harm, one function each: the library has to refuse every one."""

import io
import json
import lzma
import os
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from files_read import network, phase, state
from latephase.checked_files import Hashing
from latephase.errors import LatePhaseError

FINE = ("refused", "shown as text")
_GIB, _CLAIM = 2**30, 10 * 2**30


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        name: what it does.
        try_on: makes it in a folder and gives it to the library; a text that it returns is the outcome.
        slow: whether it needs a library that takes seconds to import.
    """

    name: str
    try_on: Callable[[Path], str | None]
    slow: bool = False


class Canary:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def attack(case: Case, folder: Path) -> str:
    """Give the library a hostile file.

    Args:
        case: the file.
        folder: where to make it; must not be there.

    Returns:
        "refused" with the error's text, what the case says, or what went wrong.
    """
    folder.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = case.try_on(folder) or "FAILURE: it was taken"
    except LatePhaseError as error:
        outcome = f"refused: {error}"
    except BaseException as error:
        outcome = f"FAILURE: {type(error).__name__}: {error}"
    if (folder / "canary").exists():
        outcome = "FAILURE: its code was run"
    text = " ".join(outcome.replace(f"{folder}/", "").replace(str(folder), "its folder").split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[:220]


def _sealed(path: Path, content: bytes) -> Path:
    """A checkpoint with a right checksum, whatever is in it."""
    buffer = io.BytesIO()
    hashing = Hashing(buffer)
    hashing.write(content)
    path.write_bytes(buffer.getvalue() + hashing.digest() + b"latephase checkpoint\n")
    return path


def _pickled(folder: Path, **extra: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({**state(), "more": Canary(folder), **extra}, buffer)
    return buffer.getvalue()


def _checkpoint(folder: Path) -> None:
    from latephase.experiments.checkpoints import load_checkpoint

    load_checkpoint(_sealed(folder / "checkpoint.pt", _pickled(folder)))


def _plain_pickle(folder: Path) -> None:
    import pickle

    from latephase.experiments.checkpoints import load_checkpoint

    load_checkpoint(_sealed(folder / "checkpoint.pt", pickle.dumps(Canary(folder))))


def _members_file(folder: Path) -> None:
    from latephase.integrations._transformers_checkpoint import NAME, load_members

    load_members(_sealed(folder / NAME, _pickled(folder, late={}, beginning={}, snapshots={})), phase()[0])


def _unsealed_members_file(folder: Path) -> None:
    from latephase.integrations._transformers_checkpoint import NAME, load_members

    (folder / NAME).write_bytes(_pickled(folder, late={}, beginning={}, snapshots={}))
    load_members(folder / NAME, phase()[0])


def _index_of_distributed(folder: Path) -> None:
    import pickle

    import torch.distributed.checkpoint as dcp

    from latephase.integrations.distributed_checkpoint import PhaseState

    (folder / ".metadata").write_bytes(pickle.dumps(Canary(folder)))
    dcp.load({"late": PhaseState(phase()[0], folder)}, checkpoint_id=folder, no_dist=True)


def _odd_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        late, _ = phase()
        before = {name: value.clone() for name, value in late.averaged_state_dict().items()}
        try:
            late.load_state_dict(change(late.state_dict()))
        finally:
            now = late.averaged_state_dict()
            assert all(torch.equal(before[name], now[name]) for name in before), "half of it was loaded"

    return try_on


def _rezipped(content: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return made.getvalue()


def _zip_bomb(folder: Path) -> None:
    from latephase.experiments.checkpoints import load_checkpoint

    buffer = io.BytesIO()
    torch.save({"step": 1, "w": torch.zeros(1000)}, buffer)
    grown = _rezipped(buffer.getvalue(), lambda n, raw: bytes(2**28) if "/data/" in n else raw, zipfile.ZIP_DEFLATED)
    load_checkpoint(_sealed(folder / "checkpoint.pt", grown))


def _storage_claim(folder: Path) -> None:
    from latephase.experiments.checkpoints import load_checkpoint

    buffer = io.BytesIO()
    torch.save({"step": 1, "w": torch.zeros(200)}, buffer)
    claim = b"\x8a\x05" + struct.pack("<q", _CLAIM // 4)[:5]
    claimed = _rezipped(buffer.getvalue(), lambda n, raw: raw.replace(b"K\xc8", claim) if n.endswith(".pkl") else raw)
    load_checkpoint(_sealed(folder / "checkpoint.pt", claimed))


def _safetensors(header: dict[str, Any] | None, length: int | None = None) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.models.initial import load_weights

        text = json.dumps(header).encode()
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(64))
        load_weights(network(), str(path))

    return try_on


def _archive_bomb(suffix: str) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.text.unpack import plain_file

        path = folder / f"enwik8{suffix}"
        if suffix == ".xz":
            path.write_bytes(lzma.compress(bytes(2**25), preset=1))
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("enwik8", bytes(2**25))
        plain_file(path, folder / "cache", limit=2**20)

    return try_on


def _lying_zip(folder: Path) -> None:
    from latephase.experiments.text.unpack import plain_file

    path = folder / "enwik8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", bytes(2**25))
    # The directory at the end says one byte.
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 2**25), struct.pack("<I", 1)))
    plain_file(path, folder / "cache", limit=2**20)


def _xz_memory(folder: Path) -> None:
    from latephase.experiments.text.unpack import plain_file

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    raw = bytearray(lzma.compress(b"late" * 1000, filters=filters))
    # The block's header: the dictionary's size is one byte, and its CRC-32 follows.
    raw[16] = 40
    raw[20:24] = struct.pack("<I", _crc(bytes(raw[12:20])))
    (folder / "text.xz").write_bytes(bytes(raw))
    plain_file(folder / "text.xz", folder / "cache")


def _crc(content: bytes) -> int:
    import zlib

    return zlib.crc32(content)


def _traversal_in_zip(folder: Path) -> str:
    from latephase.experiments.text.unpack import plain_file

    with zipfile.ZipFile(folder / "text.zip", "w") as archive:
        archive.writestr("../../escaped.txt", "text " * 20)
    text = plain_file(folder / "text.zip", folder / "a" / "cache")
    inside = text.parent == folder / "a" / "cache" and not list(folder.rglob("escaped*"))
    return "refused: the name is not used" if inside else "FAILURE: written elsewhere"


def _tar(entry: Callable[[tarfile.TarInfo], None], name: str, suffix: str = ".tar") -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.data.folder import list_folder

        with tarfile.open(folder / f"images{suffix}", "w:xz" if suffix == ".tar.xz" else "w") as archive:
            header = tarfile.TarInfo(name)
            entry(header)
            archive.addfile(header, io.BytesIO(bytes(header.size)) if header.isreg() else None)
        list_folder(str(folder / f"images{suffix}"))

    return try_on


def _tar_claim(folder: Path) -> None:
    from latephase.experiments.data.folder import list_folder

    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, _CLAIM
    (folder / "images.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    list_folder(str(folder / "images.tar"))


def _picture(content: Callable[[], bytes], suffix: str = ".png") -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.data.encoded import OnDisk, decode

        (folder / f"image{suffix}").write_bytes(content())
        decode(OnDisk(str(folder / f"image{suffix}")))

    return try_on


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", _crc(kind + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x\x9c") + chunk(b"IEND", b"")


def _jpeg() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    raw = buffer.getvalue()
    return raw.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 60_000, 60_000), 1)


def _parquet(rows: Callable[[Any], Any], limit: int | None = None) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from latephase.experiments.data import parquet

        pq.write_table(rows(pa), folder / "train.parquet", compression="zstd")
        if limit is not None:
            parquet._LIMIT = limit
        parquet.read(str(folder / "train.parquet"))

    return try_on


def _bomb_rows(pa: Any) -> Any:
    zeros = bytes(2**22)
    return pa.table({"image": [{"bytes": bytes([i]) + zeros, "path": None} for i in range(16)], "label": [0] * 16})


def _picture_rows(pa: Any) -> Any:
    return pa.table({"image": [{"bytes": _png(), "path": None}], "label": [0]})


def _npy(folder: Path) -> None:
    import numpy as np

    from latephase.evaluation.corruptions import published

    header = io.BytesIO()
    shape = (50_000, 32, 32, 3 * 68)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    (folder / "labels.npy").write_bytes(header.getvalue())
    (folder / "fog.npy").write_bytes(header.getvalue())
    published._load(folder / "fog.npy")


def _recipe(text: str | bytes, name: str = "mine.yaml") -> Callable[[Path], str | None]:
    def try_on(folder: Path) -> str | None:
        from latephase.experiments.recipe import load_recipe

        content = text.replace(b"CANARY", str(folder / "canary").encode()) if isinstance(text, bytes) else text
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        load_recipe(str(folder / name))
        return None

    return try_on


def _override(option: str) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.recipe import load_recipe

        load_recipe("digits-noisy", [option.replace("CANARY", str(folder / "canary"))])

    return try_on


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)]
    return "\n".join([*lines, "methods: *k", ""])


def _run_name(name: str) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.commands import setting_name

        setting_name(name, None)

    return try_on


def _method(name: str) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.methods import parse_method

        parse_method(name)

    return try_on


def _json(text: str) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.experiments.results import read_result

        (folder / "result.json").write_text(text)
        read_result(folder / "result.json")

    return try_on


def _command(*arguments: str) -> Callable[[Path], str]:
    """The command line with such an argument: one line without control characters, exit code 2."""

    def try_on(folder: Path) -> str:
        import contextlib

        from latephase.cli import main

        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(list(arguments))
        text = said.getvalue()
        plain = text.count("\n") == 1 and text.rstrip("\n").isprintable()
        return f"refused: {text}" if code == 2 and plain else f"FAILURE: {code}, {text!r}"

    return try_on


def _pipe(folder: Path) -> str | None:
    from latephase.experiments.data.folder import list_folder

    (folder / "images" / "class").mkdir(parents=True)
    os.mkfifo(folder / "images" / "class" / "a.png")
    (folder / "images" / "class" / "b.png").symlink_to("/dev/zero")
    list_folder(str(folder / "images"))
    return None


def _exported(content: Callable[[Path], bytes], name: str, format: str) -> Callable[[Path], None]:
    def try_on(folder: Path) -> None:
        from latephase.export import FORMATS

        (folder / name).write_bytes(content(folder))
        FORMATS[format].read(folder / name, network())

    return try_on


def _program(folder: Path) -> bytes:
    from latephase.export import write

    write(nn.Sequential(nn.Linear(8, 4)).eval(), (torch.ones(3, 8),), folder / "good.pt2", "export")
    grown = _pickled(folder)
    return _rezipped((folder / "good.pt2").read_bytes(), lambda n, raw: grown if n.endswith("model.pt") else raw)


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda own: {name: value for name, value in own.items() if name != key}


def _markup(folder: Path) -> str:
    """A name with HTML in it, in every place that a report has for text."""
    from latephase.experiments.report.document import (
        Code,
        Document,
        Figure,
        Figures,
        Finding,
        Listing,
        Part,
        Points,
        Section,
        Source,
        Table,
        Text,
    )
    from latephase.experiments.report.export import csv_text, to_markdown
    from latephase.experiments.report.frame import to_html
    from latephase.experiments.report.plots import new_figure
    from latephase.experiments.report.svg import inline_svg

    bad = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    drawing, axes = new_figure(2)
    axes.set_title(bad)
    drawn = inline_svg(drawing, "name", bad)
    figure = Figure("name", bad, drawn, bad, (bad,), ((bad,),))
    blocks = [
        Text(bad),
        Points((bad,)),
        Figures((figure,)),
        Finding(bad, (), (bad,)),
        Table(bad, (bad, bad), ((bad, bad),), bad),
        Listing(((bad, Code(bad)),)),
        Source(bad, bad),
        Part(bad),
    ]
    document = Document(bad, bad, [Text(bad)], [Section(bad, blocks)])
    shown = to_html(document) + to_markdown(document)
    formula = csv_text(("name",), (("=cmd|' /C calc'!A0",),))
    safe = "<script" not in shown and "<img" not in shown and "\n=" not in formula
    return "shown as text" if safe else "FAILURE: it would be run"


MEDIUM = "9" * 5000
CASES = [
    Case("pickle in a checkpoint with a right SHA-256", _checkpoint),
    Case("bare pickle with a right SHA-256", _plain_pickle),
    Case("pickle in latephase.pt with a right SHA-256", _members_file, slow=True),
    Case("pickle in latephase.pt", _unsealed_members_file, slow=True),
    Case("pickle as a distributed checkpoint's index", _index_of_distributed),
    Case("pickle in a torch.export program", _exported(_program, "model.pt2", "export"), slow=True),
    Case("late.load_state_dict of a list", _odd_state(lambda own: [own])),
    Case("late.load_state_dict of nothing", _odd_state(lambda own: {})),
    *(
        Case(f"late.load_state_dict without {key}", _odd_state(_without(key)))
        for key in ("phase", "members", "values", "shared", "turn", "rounds", "optimizers", "generator", "plain")
    ),
    Case(
        "late.load_state_dict with numbers for tensors",
        _odd_state(lambda own: {**own, "values": dict.fromkeys(own["values"], 1)}),
    ),
    Case("late.load_state_dict with a number for names", _odd_state(lambda own: {**own, "parameters": [1]})),
    Case("late.load_state_dict, turn of another phase", _odd_state(lambda own: {**own, "turn": 99})),
    Case("checkpoint that is a zip bomb", _zip_bomb),
    Case("checkpoint whose storage claims 10 GB", _storage_claim),
    Case("safetensors header of 10 GB", _safetensors({}, _CLAIM)),
    Case(
        "safetensors tensor of 10 GB",
        _safetensors({"0.weight": {"dtype": "F32", "shape": [_CLAIM // 4], "data_offsets": [0, _CLAIM]}}),
    ),
    Case(
        "safetensors tensor outside the file",
        _safetensors({"0.weight": {"dtype": "F32", "shape": [16], "data_offsets": [2**40, 2**40 + 64]}}),
    ),
    Case("text .zip that unpacks to too much", _archive_bomb(".zip")),
    Case("text .xz that unpacks to too much", _archive_bomb(".xz")),
    Case("text .zip that lies about its size", _lying_zip),
    Case("text .xz that asks for 4 GB of memory", _xz_memory),
    Case("text .zip with ../../ in a name", _traversal_in_zip),
    Case("images .tar with ../ in a name", _tar(lambda h: None, "../../a/b.png")),
    Case("images .tar with an absolute name", _tar(lambda h: None, "/etc/a/b.png")),
    Case(
        "images .tar with a link for an image",
        _tar(lambda h: (setattr(h, "type", tarfile.SYMTYPE), setattr(h, "linkname", "/etc/passwd")), "a/b.png"),
    ),
    Case("images .tar with a name of 10 GB", _tar_claim),
    Case("images folder of pipes and devices", _pipe),
    Case("PNG of 60,000 x 60,000 pixels", _picture(_png)),
    Case("JPEG of 60,000 x 60,000 pixels", _picture(_jpeg, ".jpeg")),
    Case("parquet that unpacks to too much", _parquet(_bomb_rows, 2**20)),
    Case("parquet with a PNG of 60,000 x 60,000 pixels", _parquet(_picture_rows)),
    Case(".npy that claims 10 GB", _npy),
    Case("YAML with a Python tag", _recipe(b"seed: !!python/object/apply:os.system ['touch CANARY']\n")),
    Case("YAML with a Python name", _recipe("seed: !!python/name:os.system\n")),
    Case("YAML of a billion laughs", _recipe(_laughs())),
    Case("YAML that holds itself", _recipe("methods: &a [*a]\n")),
    Case("YAML nested 100,000 deep", _recipe("methods: " + "[" * 100_000 + "\n")),
    Case("YAML of 100 MB", _recipe("title: " + "x" * 2**27 + "\n")),
    Case("YAML with a number of 5,000 digits", _recipe(f"seed: {MEDIUM}\n")),
    Case("YAML with a date that is none", _recipe("title: 2026-99-99\n")),
    Case("YAML that is a device", lambda f: ((f / "zero.yaml").symlink_to("/dev/zero"), _load(f / "zero.yaml"))[1]),
    Case(
        "recipe with a class path",
        _recipe("model: {class_path: os.system, init_args: {command: touch CANARY}}\n".replace("CANARY", "x")),
    ),
    Case(
        "option with a class path",
        _override('--model={"class_path": "os.system", "init_args": {"command": "touch CANARY"}}'),
    ),
    Case("option with a configuration file", _override("--config=CANARY.yaml")),
    Case("recipe with an escape sequence in its title", _recipe('title: "\\e]0;owned\\a\\e[2J"\n')),
    Case("recipe with NUL in a path", _recipe('data: {train: "a\\0b"}\n')),
    *(
        Case(f"run named {ascii(n)[:24]}", _run_name(n))
        for n in ("...yaml", "a\nb.yaml", "a\x1b[2J.yaml", "x" * 300 + ".yaml")
    ),
    *(
        Case(f"method named {ascii(n)[:24]}", _method(n))
        for n in ("../../x", "/etc/passwd", "base+../x", "a\nb", "x" * 9000)
    ),
    Case("command: recipe ../../x", _command("train", "../../x")),
    Case("command: recipe with NUL", _command("train", "a\0b.yaml")),
    Case("command: recipe with escape sequences", _command("train", "\x1b]0;owned\x07.yaml")),
    Case("command: recipe of a very long name", _command("train", "x" * 5000 + ".yaml")),
    Case("command: output of a very long name", _command("train", "digits-noisy", "--output", "x" * 5000)),
    Case("HTML and formulas in the names of a report", _markup, slow=True),
    Case("JSON nested 100,000 deep", _json("[" * 100_000)),
    Case("JSON that is a list", _json("[1]")),
    Case("JSON with a number of 5,000 digits", _json(f'{{"seed": {MEDIUM}}}')),
]
"""One row of the command's table each."""


def _load(path: Path) -> None:
    from latephase.experiments.recipe import load_recipe

    load_recipe(str(path))
