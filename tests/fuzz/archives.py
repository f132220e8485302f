"""Images from elsewhere: archives, Parquet, .npz, TFDS and folders of pictures, and their cache."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lira_jax.config import DataConfig, TrustConfig
from lira_jax.data import datasets
from lira_jax.trust import inputs
from tests.data.synthetic import arrays, png
from tests.data.test_tfds import write_tfds
from tests.fuzz import toolbox
from tests.fuzz.toolbox import ANY, REFUSE, SAME, Spoilt, Surface, Values, damage, special

CLASSES = ["cat", "dog", "owl"]
HUGE = 8_000_000_000  # bytes that a bomb stands for


def loaded(**config: object) -> Values:
    data = datasets.load(DataConfig(**config))  # type: ignore[arg-type]
    read = {name: np.asarray(getattr(data, name)) for name in ("x_train", "y_train", "x_test")}
    return read | {"y_test": np.asarray(data.y_test), "classes": data.classes}


# CIFAR ------------------------------------------------------------------------------------------

ENDINGS = {"gz": ".tar.gz", "xz": ".tar.xz", "bz2": ".tar.bz2", "": ".tar"}


def cifar_members() -> dict[str, bytes]:
    """A small CIFAR-10 whose images are mostly of one colour, so that it compresses."""
    members = {"batches.meta.txt": "\n".join(CLASSES).encode()}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        random = np.random.default_rng(number)
        records = np.repeat(random.integers(0, 256, (6, 3073), np.uint8)[:, ::3], 3, axis=1)
        records[:, 0] = np.arange(6) % 3
        members[f"{name}.bin"] = records[:, :3073].tobytes()
    return members


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], kind: str) -> None:
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            about = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def make_cifar(kind: str) -> Callable[[Path], None]:
    return lambda folder: write_tar(folder / f"cifar{ENDINGS[kind]}", {**cifar_members()}, kind)


def spoil_cifar(kind: str) -> Callable[[Random, Path], Spoilt]:
    def spoil(random: Random, folder: Path) -> Spoilt:
        path = folder / f"cifar{ENDINGS[kind]}"
        members: dict[str, bytes | tarfile.TarInfo] = {**cifar_members()}
        name = random.choice(list(members))
        what = random.choice(
            ("damage",) * 12
            + ("end", "special", "links", "kind", "sizes", "missing", "labels", "not tar", "bomb")
        )
        if what == "damage":
            # A plain .tar has a checksum of its headers alone.
            return Spoilt(damage(random, path), SAME if kind else ANY)
        if what == "end":  # gzip's checksum and length, xz's index, bzip2's checksum
            content = bytearray(path.read_bytes())
            place = len(content) - 1 - random.randrange(12)
            content[place] ^= 1 << random.randrange(8)
            path.write_bytes(bytes(content))
            return Spoilt(f"flip at {place} of {len(content)}", SAME if kind else ANY)
        if what == "special":
            return Spoilt(special(random, path), REFUSE)
        if what in ("links", "kind"):
            link = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            types = (tarfile.LNKTYPE, tarfile.SYMTYPE) if what == "links" else (
                tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE,
                tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME,
            )  # fmt: skip
            link.type = random.choice(types)
            link.linkname = random.choice(
                ("/etc/passwd", "/dev/zero", "nowhere", link.name, "../" * 30, "")
            )
            members[name] = link
            write_tar(path, members, kind)
            return Spoilt(f"{name} as tar type {link.type!r} to {link.linkname!r}", REFUSE)
        content = members[name]
        assert isinstance(content, bytes)
        if what == "sizes":
            name = "data_batch_3.bin"
            members[name] = members[name] + b"x" * random.randint(1, 3072)  # type: ignore[operator]
        elif what == "missing":
            del members[name]
        elif what == "labels":
            name = random.choice([key for key in members if key.endswith(".bin")])
            raw = bytearray(members[name])  # type: ignore[arg-type]
            raw[0] = random.randint(3, 255)
            members[name] = bytes(raw)
        elif what == "not tar":
            path.write_bytes(random.choice((b"", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"x" * 999)))
            return Spoilt(f"not tar: {path.read_bytes()[:6]!r}", REFUSE)
        else:
            if kind in ("", "xz", "bz2"):  # slow to make
                members = {name: b"\0" * 3073}
            else:
                return _gzip_bomb(random, path)
        write_tar(path, members, kind)
        return Spoilt(f"{what}: {name}", REFUSE)

    return spoil


@cache
def _zeros() -> bytes:
    return gzip.compress(bytes(2**24), mtime=0)


def _gzip_bomb(random: Random, path: Path) -> Spoilt:
    """A member that claims HUGE bytes, and zeros: 3 MB of gzip's for 3 GB."""
    about = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    about.size = HUGE
    with_header = random.random() < 0.7
    content = gzip.compress(about.tobuf() if with_header else b"", mtime=0) + 180 * _zeros()
    path.write_bytes(content)
    return Spoilt(f"a bomb of {len(content)} bytes, {'named' if with_header else 'bare'}", REFUSE)


def read_cifar(kind: str) -> Callable[[Path], Values]:
    return lambda folder: loaded(path=str(folder / f"cifar{ENDINGS[kind]}"))


# Parquet ----------------------------------------------------------------------------------------


def _image_table(count: int, seed: int) -> pa.Table:
    images, labels = arrays(count, (4, 4, 3), 3, seed)
    cells = [{"bytes": png(image), "path": None} for image in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    about = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    table = pa.table({"image": pa.array(cells, struct), "label": pa.array(labels)})
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


def make_parquet(folder: Path) -> None:
    (folder / "data").mkdir()
    for split, count, seed in (("train", 12, 0), ("test", 9, 1)):
        pq.write_table(_image_table(count, seed), folder / "data" / f"{split}.parquet")


def _other_image(random: Random) -> tuple[bytes, str]:
    """Bytes of an image that Pillow might open, and should not, or that is wrong in its table."""
    kind = random.choice(
        ("eps", "ppm", "bmp", "tiff16", "gif", "huge", "bomb", "cut", "size", "empty", "text",
         "svg", "P", "webp", "icns")
    )  # fmt: skip
    image, buffer = Image.fromarray(arrays(1, (4, 4, 3))[0][0]), io.BytesIO()
    if kind == "eps":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n", kind
    if kind == "tiff16":
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "TIFF")
    elif kind == "huge":  # a header that says 60,000² and holds nothing
        content = bytearray(png(np.asarray(image)))
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        return bytes(content), kind
    elif kind == "bomb":
        Image.new("L", (9000, 9000)).save(buffer, "PNG")
    elif kind == "size":
        Image.new("RGB", (5, 4)).save(buffer, "PNG")
    elif kind == "P":
        content = bytearray(png(np.asarray(image)))
        content[25] = 3  # palette colours without a palette
        return bytes(content), kind
    elif kind in ("ppm", "bmp", "gif", "webp"):
        image.save(buffer, kind.upper())
    elif kind == "cut":
        return png(np.asarray(image))[: random.randint(1, 60)], kind
    else:
        return {"empty": b"", "text": b"no image", "svg": b"<svg/>", "icns": b"icns\0\0\0\x08"}[
            kind
        ], kind
    return buffer.getvalue(), kind


FINE_IMAGES = ("bmp", "gif", "webp", "ppm")  # of the right size: may be read or refused


def spoil_parquet(random: Random, folder: Path) -> Spoilt:
    path = folder / "data" / f"{random.choice(('train', 'test'))}.parquet"
    table = pq.read_table(path)
    what = random.choice(
        ("damage",) * 9
        + ("special", "special", "types", "twice", "null", "labels", "image", "image", "image",
           "columns", "rows", "list", "names", "shards", "metadata")
    )  # fmt: skip
    if what == "damage":  # written without checksums, as most are
        return Spoilt(damage(random, path), ANY)
    if what == "special":
        place = random.choice((path, folder / "data", folder))
        found = special(random, place)
        needed = place != path or path.name == "train.parquet" or "missing" not in found
        return Spoilt(found, REFUSE if needed else ANY)
    rule = REFUSE
    rows = table.to_pylist()
    row = random.randrange(len(rows))
    columns = {name: table.column(name) for name in table.column_names}
    if what == "types":
        name = random.choice(("image", "label"))
        wrong = {
            "text": pa.array(["a"] * len(rows)), "float": pa.array([0.5] * len(rows)),
            "uint64": pa.array([2**64 - 1] * len(rows), pa.uint64()),
            "int64": pa.array([2**40] * len(rows)), "null": pa.nulls(len(rows)),
            "bool": pa.array([True] * len(rows)), "time": pa.array([0] * len(rows), pa.date32()),
            "binary": pa.array([b"x"] * len(rows)),
            "dict": pa.array(["a"] * len(rows)).dictionary_encode(),
            "decimal": pa.array([1] * len(rows)).cast(pa.decimal128(20, 0)),
            "struct": pa.array([{"bytes": 7, "path": None}] * len(rows)),
            "list": pa.array([[b"x"]] * len(rows)),
            "map": pa.array([[("bytes", b"x")]] * len(rows), pa.map_(pa.string(), pa.binary())),
            "large": pa.array([{"bytes": b"x" * 9}] * len(rows)),
        }  # fmt: skip
        kind = random.choice(list(wrong))
        columns[name] = wrong[kind]
        what += f" {name}: {kind}"
    elif what == "twice":
        name = random.choice(("image", "label"))
        pairs = [*columns.items(), (name, columns[name])]
        pq.write_table(pa.Table.from_arrays([v for _, v in pairs], [k for k, _ in pairs]), path)
        return Spoilt(f"two columns {name}", ANY)
    elif what == "null":
        key = random.choice(("image", "label", "bytes"))
        if key == "bytes":
            rows[row]["image"]["bytes"] = None
        else:
            rows[row][key] = None
        what += f" {key}"
    elif what == "labels":
        rows[row]["label"] = random.choice((-1, 3, 2**31, 2**62, -(2**63)))
    elif what == "image":
        rows[row]["image"]["bytes"], kind = _other_image(random)
        what += f" {kind}"
        rule = ANY if kind in FINE_IMAGES else REFUSE
    elif what == "columns":
        name = random.choice(("image", "label"))
        columns[random.choice(("", "x", "é" * 99, "\x1b[31mred", "a\nb"))] = columns.pop(name)
        what += f" without {name}"
    elif what == "rows":
        columns = {name: column[:0] for name, column in columns.items()}
        rule = REFUSE if path.name == "train.parquet" else ANY
    elif what == "list":
        columns = {"image": pa.array([[row["image"]] for row in rows]), "label": columns["label"]}
    elif what == "names":
        names = random.choice((["a"], [], "abc", 7, None, [1, 2], ["a"] * 2, {"0": "a"}, [[]] * 3))
        about = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        pq.write_table(table, path)
        return Spoilt(f"class names {names!r}", ANY)
    elif what == "shards":
        name = random.choice(("train-00000-of-00009", "train-0-of-0", f"train-1-of-{'9' * 5000}"))
        path.rename(path.with_name(f"{name[:200]}.parquet"))
        return Spoilt(f"{path.name} as {name[:40]}", ANY)
    else:
        text = random.choice((b"{", b"[" * 100_000, b"9" * 5000, b"\xff", b"null", b'{"info": 7}'))
        pq.write_table(table.replace_schema_metadata({b"huggingface": text}), path)
        return Spoilt(f"metadata {text[:9]!r} × {len(text)}", ANY)
    if what.split()[0] in ("null", "labels", "image"):
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    else:
        pq.write_table(pa.table(columns), path)
    return Spoilt(f"{path.name}: {what}, row {row}", rule)


def read_parquet(folder: Path) -> Values:
    return loaded(path=str(folder))


def make_checksummed(folder: Path) -> None:
    """Parquet with checksums of its pages, a format's own defence."""
    for split, count, seed in (("train", 12, 0), ("test", 9, 1)):
        pq.write_table(
            _image_table(count, seed), folder / f"{split}.parquet",
            write_page_checksum=True, compression="none", use_dictionary=False,
        )  # fmt: skip


def spoil_checksummed(random: Random, folder: Path) -> Spoilt:
    """Flip a bit inside an image, which lies in a page and not in a header."""
    path = folder / f"{random.choice(('train', 'test'))}.parquet"
    content = bytearray(path.read_bytes())
    starts = [n for n in range(len(content)) if content[n : n + 4] == b"\x89PNG"]
    place = random.choice(starts) + random.randrange(100)
    content[place] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(content))
    return Spoilt(f"{path.name}: flip at {place}, within an image")


# .npz -------------------------------------------------------------------------------------------


def npz_arrays() -> dict[str, np.ndarray]:
    x, y = arrays(21, (4, 4, 3))
    return {"x_train": x[:12], "y_train": y[:12], "x_test": x[12:], "y_test": y[12:]}


def make_npz(folder: Path) -> None:
    np.savez(folder / "data.npz", **npz_arrays())


def spoil_npz(random: Random, folder: Path) -> Spoilt:
    path, values = folder / "data.npz", npz_arrays()
    if random.random() < 0.75:
        return toolbox.spoil_zip(random, path, values, ("x_train", "y_train", "x_test", "y_test"))
    name = random.choice(list(values))
    array = values[name]
    changes = {
        "float": array.astype(np.float32), "object": np.array([None] * len(array), object),
        "flat": array.ravel()[1:], "short": array[:-1], "scalar": array.ravel()[0],
        "empty": array[:0], "complex": array.astype(complex), "text": array.astype(str),
        "deep": array[None], "times": array.astype("M8[s]"),
        "strided": np.zeros(len(array), [("a", "u1"), ("b", "f4")]),
    }  # fmt: skip
    kind = random.choice(list(changes))
    if name.startswith("y") and random.random() < 0.5:
        kind = random.choice(("-1", "2**31", "2**64 - 1", "2**63", "250"))
        dtype = np.uint64 if kind in ("2**64 - 1", "2**63") else np.int64
        changes[kind] = array.astype(dtype)
        changes[kind][3] = eval(kind)
    np.savez(path, **values | {name: changes[kind]})
    # An empty test set is none, where both are empty; one alone does not fit the other.
    return Spoilt(f"{name}: {kind}", REFUSE)


def read_npz(folder: Path) -> Values:
    return loaded(path=str(folder / "data.npz"))


# Folders of pictures ----------------------------------------------------------------------------


def make_pictures(folder: Path) -> None:
    for number, image in enumerate(arrays(5, (4, 4, 3))[0]):
        (folder / f"{number}.png").write_bytes(png(image))


def spoil_pictures(random: Random, folder: Path) -> Spoilt:
    path, kind = folder / f"{random.randrange(5)}.png", random.randrange(6)
    if kind == 0:
        return Spoilt(damage(random, path), ANY)  # not every byte of a PNG has a checksum
    if kind == 1:  # what is no file is no picture either
        return Spoilt(special(random, random.choice((path, path, folder))), ANY)
    if kind == 2:
        ending = random.choice((".eps", ".jpg", ".tif", ".gif", ".psd", ".ico", ".PNG", ".pdf"))
        path = path.rename(path.with_suffix(ending))
    content, name = _other_image(random)
    path.write_bytes(content)
    fine = (*FINE_IMAGES, "size")  # resized as any other
    unread = path.suffix not in (".png", ".PNG", ".jpg", ".gif", ".tif")
    return Spoilt(f"{path.name}: {name}", ANY if name in fine or unread else REFUSE)


def read_pictures(folder: Path) -> Values:
    config = TrustConfig(inputs=("uniform",), generated=str(folder), laplace=False)
    data = datasets.load(DataConfig(name="digits", limit=20))
    candidates = np.zeros((20, 4, 4, 3), np.uint8)
    gathered = inputs.gather(config, data, candidates, 0)
    return {kind.kind: kind.images for kind in gathered.kinds}


# TFDS -------------------------------------------------------------------------------------------


def make_tfds(folder: Path) -> None:
    train, test = arrays(6, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    write_tfds(folder, {"train": train, "test": test}, CLASSES)


def spoil_tfds(random: Random, folder: Path) -> Spoilt:
    below = folder / "tiny" / "1.0.0"
    path = random.choice(sorted(below.iterdir()))
    kind = random.randrange(4)
    if kind == 0:
        return Spoilt(special(random, path), ANY)
    if kind == 1 and path.suffix == ".json":
        text = path.read_text()
        words = ('"image"', '"4"', "array_record", '"tiny"', '"label"', "Image", "ClassLabel")
        word = random.choice([word for word in words if word in text] or ['"'])
        other = random.choice(('"os"', "7", "null", "\\u0000", "subprocess.Popen", '"-1"', "[[["))
        path.write_text(text.replace(word, other))
        return Spoilt(f"{path.name}: {other} for {word}", ANY)
    # JSON has no checksum; records have.
    rule = SAME if ".array_record" in path.name else ANY
    return Spoilt(damage(random, path), rule)


def read_tfds(folder: Path) -> Values:
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return loaded(name="tiny")


# The cache of decoded images --------------------------------------------------------------------


def make_cache(folder: Path) -> None:
    """A source, and the cache that reading it fills."""
    make_parquet(folder)
    read_cache(folder)


def spoil_cache(random: Random, folder: Path) -> Spoilt:
    entries = sorted(path for path in (folder / "cache").rglob("*") if path.is_file())
    path = random.choice(entries)
    kind = random.randrange(4)
    if kind == 0:
        return Spoilt(special(random, path))
    if kind == 1:
        other = random.choice([other for other in entries if other != path])
        shutil.copy(other, path)
        return Spoilt(f"{path.name}: a copy of {other.name}")
    if kind == 2 and path.suffix == ".npy":
        content, what = toolbox.npy_header(random, np.load(path))
        path.write_bytes(content)
        return Spoilt(f"{path.name}: {what}")
    return Spoilt(damage(random, path))


def read_cache(folder: Path) -> Values:
    before = os.environ["XDG_CACHE_HOME"]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        return loaded(path=str(folder))
    finally:
        os.environ["XDG_CACHE_HOME"] = before


SURFACES = [
    *(
        Surface(f"cifar{ending}", weight, make_cifar(kind), spoil_cifar(kind), read_cifar(kind))
        for weight, (kind, ending) in zip((10, 5, 5, 3), ENDINGS.items(), strict=True)
    ),
    Surface("parquet", 15, make_parquet, spoil_parquet, read_parquet),
    Surface("parquet-checksums", 2, make_checksummed, spoil_checksummed, read_parquet),
    Surface("data-npz", 10, make_npz, spoil_npz, read_npz),
    Surface("pictures", 5, make_pictures, spoil_pictures, read_pictures),
    Surface("tfds", 1.5, make_tfds, spoil_tfds, read_tfds),
    Surface("image-cache", 5, make_cache, spoil_cache, read_cache),
]
