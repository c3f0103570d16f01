"""Small DICOM slides: a series whose levels are files of their own, as scanners write them."""

import io

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

TILE = 64


def write_level(path, pixels, mpp, series, number, kind="VOLUME"):
    """Write one level as JPEG tiles, `mpp` in µm/px."""
    height, width = pixels.shape[:2]
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID = image.FrameOfReferenceUID = series
    image.SeriesInstanceUID = series
    image.InstanceNumber = number
    image.Modality = "SM"
    image.ImageType = ["ORIGINAL" if number == 1 else "DERIVED", "PRIMARY", kind, "NONE"]
    image.DimensionOrganizationType = "TILED_FULL"
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width, height
    image.TotalPixelMatrixFocalPlanes = 1
    image.NumberOfOpticalPaths = 1
    image.Columns = image.Rows = TILE
    image.SamplesPerPixel, image.PlanarConfiguration = 3, 0
    image.PhotometricInterpretation = "YBR_FULL_422"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.LossyImageCompression = "01"
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    measures = Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            part = pixels[top : top + TILE, left : left + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "JPEG", quality=98)
            frames.append(buffer.getvalue())
    image.NumberOfFrames = len(frames)
    image.PixelData = encapsulate(frames)
    image["PixelData"].VR = "OB"
    image.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return path


def write_series(folder, levels, mpp):
    """Write levels, level 0 first; return their paths."""
    series = generate_uid()
    return [
        write_level(
            folder / f"{number}.dcm",
            level,
            mpp * levels[0].shape[1] / level.shape[1],
            series,
            number,
        )
        for number, level in enumerate(levels, 1)
    ]
