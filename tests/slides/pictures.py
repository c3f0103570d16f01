"""Images whose pixels encode their position, small slides of them, and slides with nuclei."""

import re
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def picture(width, height, seed=0):
    """Smooth colours, which a sub-pixel shift would change visibly."""
    y, x = np.mgrid[:height, :width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [127 + 120 * np.sin(x / 37 + y / 53 * (k + 1) + phase[k]) for k in range(3)]
    return np.rint(np.stack(waves, axis=-1)).astype(np.uint8)


def reduced(pixels, factor):
    """Mean of whole blocks, as scanners make their levels: the rest is cut off."""
    h, w = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def write_pyramid(path, levels, **options):
    options = {
        "tile": (64, 64),
        "photometric": "rgb",
        "metadata": None,
        "resolution": (20000, 20000),
        "resolutionunit": "CENTIMETER",
        **options,
    }
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            tiff.write(level, subfiletype=int(i > 0), **options)
    return path


def write_png(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def write_ome(path, *images):
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for pixels, name, mpp in images:
            tiff.write(
                pixels, photometric="rgb", tile=(64, 64),
                metadata={"axes": "YXS", "Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp},
            )  # fmt: skip
    return path


def edit_ome(path, edit):
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.ome_metadata
    tifffile.tiffcomment(path, edit(xml).encode())


def without_planes(xml, number):
    image = re.findall("<Image .*?</Image>", xml, re.DOTALL)[number]
    empty = re.sub("<TiffData.*?(/>|</TiffData>)", "<MetadataOnly/>", image, flags=re.DOTALL)
    assert empty != image
    return xml.replace(image, empty)


def paint(path: Path, *nuclei: tuple[int, int]) -> Path:
    """Paint a slide of 256 x 256 px with nuclei of 32 px across."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    rgb = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    for cx, cy in nuclei:
        rgb[(x - cx) ** 2 + (y - cy) ** 2 < 256] = (90, 60, 140)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path
