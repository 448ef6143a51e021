"""Images that are no frontal chest radiograph, out of Debian's packages: python -m train.negatives OUT

OUT/fit is for `python -m train guard --negatives`, OUT/kept for `python -m benchmarks guard --negatives`, each as
KIND/PACKAGE/image: photographs, drawings, screenshots, slices and projections of a head CT to fit; animals, pages,
photographs of another package and MR of heads kept aside. Needs apt-get and dpkg-deb of Debian 12, and some 500 MB for
as long as it runs; a package that cannot be had is told of and left out. The images stay where they are made: none is
published.
"""

from __future__ import annotations

import argparse
import gzip
import plistlib
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGES = (".png", ".jpg", ".jpeg")
LEAST, MOST = 100, 1024  # pixels: of the shorter side, what is smaller is an icon; of the longer, reduced to
NIFTI = {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4", 512: "<u2"}  # codes of types
Image = NDArray[np.uint8]


class Source(NamedTuple):
    """glob: of its files, from usr/share; most: images taken, those first by SHA-256."""

    use: str
    kind: str
    package: str
    glob: str
    most: int


SOURCES = (
    *(
        Source("fit", "object", "tuxpaint-stamps-default", f"tuxpaint/stamps/{name}/**/*", 40)
        for name in ("clothes", "food", "hobbies", "household", "medical", "people", "plants", "town", "vehicles")
    ),
    Source("fit", "photograph", "mate-backgrounds", "backgrounds/**/*", 40),
    Source("fit", "drawing", "wesnoth-1.16-data", "games/wesnoth/1.16/data/core/images/portraits/**/*", 60),
    Source("fit", "document", "gimp-help-en", "gimp/2.0/help/en/images/**/*", 120),
    Source("fit", "document", "debian-handbook", "doc/debian-handbook/html/en-US/images/*", 60),
    Source("fit", "ct", "invesalius-examples", "doc/invesalius-examples/examples/Cranium.inv3", 60),
    Source("kept", "animal", "tuxpaint-stamps-default", "tuxpaint/stamps/animals/**/*", 100),
    Source("kept", "document", "gnome-user-docs", "help/C/**/*", 60),
    Source("kept", "photograph", "opencv-doc", "doc/opencv-doc/examples/**/*", 100),
    Source("kept", "mr", "mricron-data", "mricron/templates/ch2better.nii.gz", 21),
    Source("kept", "mr", "mricron-data", "mricron/templates/inia19-t1-brain.nii.gz", 21),
    Source("kept", "mr", "insighttoolkit5-examples", "doc/insighttoolkit5-examples/examples/Data/*Slice*", 20),
)


def opened(path: Path) -> Image | None:
    """8 bits, gray or BGR, on white where it lets through; None if it is no image or an icon."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    if image is None or min(image.shape[:2]) < LEAST:
        return None
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        image = (image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    ratio = min(1.0, MOST / max(image.shape[:2]))
    return np.asarray(cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA), np.uint8)


def nifti(path: Path) -> NDArray[np.float32]:
    """Of a .nii.gz of one volume (NIfTI-1, little-endian): (X, Y, Z)."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, "<i2", 4, 40)[1:]
    kind = np.dtype(NIFTI[int(np.frombuffer(data, "<i2", 1, 70)[0])])
    start = int(np.frombuffer(data, "<f4", 1, 108)[0])
    return np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape[::-1]).T.astype(np.float32)


def invesalius(path: Path) -> NDArray[np.float32]:
    """Of a project of InVesalius 3: (Z, Y, X) in Hounsfield units."""
    with tarfile.open(path) as tar:
        names = {Path(name).name: name for name in tar.getnames()}

        def read(name: str) -> bytes:
            file = tar.extractfile(names[name])
            assert file is not None
            return file.read()

        matrix = plistlib.loads(read("main.plist"))["matrix"]
        volume = np.frombuffer(read(matrix["filename"]), matrix["dtype"]).reshape(matrix["shape"])
    return volume.astype(np.float32)


def views(volume: NDArray[np.float32], most: int) -> Iterator[Image]:
    """Slices along each axis, from 15 to 85 % of its length; before them each axis' mean, which is a projection."""
    low, high = np.quantile(volume, (0.02, 0.995))
    scaled = np.clip((volume - low) / max(high - low, 1e-6), 0, 1)
    for axis in range(3):
        slices = np.linspace(0.15, 0.85, most // 3 - 1) * volume.shape[axis]
        mean = scaled.mean(axis)
        for plane in (mean / max(float(mean.max()), 1e-6), *(scaled.take(int(at), axis) for at in slices)):
            image = np.ascontiguousarray(np.rot90(plane) * 255).astype(np.uint8)
            yield np.asarray(cv2.resize(image, (512, 512), interpolation=cv2.INTER_LINEAR), np.uint8)


def images_of(source: Source, share: Path) -> Iterator[Image]:
    paths = sorted(p for p in share.glob(source.glob) if p.is_file() and not p.is_symlink())
    for path in paths:
        if path.name.endswith(".nii.gz"):
            yield from views(nifti(path), source.most)
        elif path.suffix == ".inv3":
            yield from views(invesalius(path), source.most)
    pictures = {sha256(p.read_bytes()).hexdigest(): p for p in paths if p.suffix.lower() in IMAGES}
    taken = 0
    for digest in sorted(pictures):
        image = opened(pictures[digest]) if taken < source.most else None
        if image is not None:
            taken += 1
            yield image


def fetched(package: str, folder: Path) -> Path | None:
    """The package's usr/share, downloaded and unpacked; None if there is no such package or no apt-get."""
    place = folder / package
    if not place.is_dir():
        place.mkdir()
        try:
            subprocess.run(["apt-get", "download", "-qq", package], cwd=place, check=True, capture_output=True)
            for file in place.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", file.name, "."], cwd=place, check=True, capture_output=True)
                file.unlink()
        except (OSError, subprocess.CalledProcessError):
            pass
    share = place / "usr" / "share"
    return share if share.is_dir() else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.negatives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    out: Path = parser.parse_args(argv).out
    counts: dict[tuple[str, str, str], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            share = fetched(source.package, Path(folder))
            if share is None:
                print(f"{source.package}: not to be had by apt-get here; left out")
                continue
            place = out / source.use / source.kind / source.package
            place.mkdir(parents=True, exist_ok=True)
            for image in images_of(source, share):
                data = cv2.imencode(".png", image)[1].tobytes()
                (place / f"{sha256(data).hexdigest()[:16]}.png").write_bytes(data)
                key = source.use, source.kind, source.package
                counts[key] = counts.get(key, 0) + 1
    for (use, kind, package), n in counts.items():
        print(f"{use}: {n} of {kind} from {package}")
    return 0 if counts else 1


if __name__ == "__main__":
    raise SystemExit(main())
