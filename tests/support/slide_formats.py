"""Files of scanners, written small: Leica SCN, 3DHISTECH MIRAX, Ventana BIF and Aperio SVS.

Each follows what OpenSlide documents of the format (openslide.org/formats) and has a label or macro picture, all of
one colour that the slide itself never has: where it turns up, a picture that can carry names was opened.
"""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

SECRET = (250, 20, 200)  # what label and macro pictures show
TILE = 128
SCN_XMLNS = "http://www.leica-microsystems.com/scn/2010/10/01"


def secret(rows: int, columns: int) -> np.ndarray:
    return np.full((rows, columns, 3), SECRET, np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    found = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(pixels), level=98, colorspace="RGB", outcolorspace="YCBCR", subsampling="444"
    )
    return bytes(found)


def halved(pixels: np.ndarray) -> np.ndarray:
    rows, columns = (n // 2 * 2 for n in pixels.shape[:2])
    return pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _page(file: tifffile.TiffWriter, pixels: np.ndarray, um: float, description: str | None = None, **more) -> None:
    rows, columns = pixels.shape[:2]
    whole = np.pad(pixels, ((0, -rows % TILE), (0, -columns % TILE), (0, 0)), mode="edge")
    places = [(y, x) for y in range(0, rows, TILE) for x in range(0, columns, TILE)]
    file.write(
        iter([jpeg(whole[y : y + TILE, x : x + TILE]) for y, x in places]),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(1, 1),
        compression="jpeg",
        resolution=(1e4 / um, 1e4 / um),
        resolutionunit="CENTIMETER",
        description=description,
        metadata=None,
        **more,
    )


def write_scn(
    path: Path,
    pixels: np.ndarray,
    *,
    um: float,
    at: tuple[int, int],
    glass: tuple[int, int],
    light: str = "brightfield",
) -> Path:
    """Leica SCN: the picture [Y X 3] lies at ``at`` (x, y) on a glass of (rows, columns), which is level 0; two levels.

    The macro picture is the first of the file, as scanners write it. ``light``: the source of light of the picture.
    """
    nm = um * 1000
    rows, columns = pixels.shape[:2]
    small = halved(pixels)
    across, down = round(glass[1] * nm), round(glass[0] * nm)
    macro = secret(glass[0] // 4, glass[1] // 4)
    text = f"""<?xml version="1.0"?>
<scn xmlns="{SCN_XMLNS}" uuid="urn:uuid:0">
 <collection name="made" uuid="urn:uuid:1" sizeX="{across}" sizeY="{down}">
  <barcode>MADE-UP-NAME</barcode>
  <image name="image_macro" uuid="urn:uuid:2">
   <pixels sizeX="{macro.shape[1]}" sizeY="{macro.shape[0]}">
    <dimension sizeX="{macro.shape[1]}" sizeY="{macro.shape[0]}" r="0" ifd="0"/>
   </pixels>
   <view sizeX="{across}" sizeY="{down}" offsetX="0" offsetY="0"/>
   <scanSettings><illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>
   </scanSettings>
  </image>
  <image name="image_main" uuid="urn:uuid:3">
   <pixels sizeX="{columns}" sizeY="{rows}">
    <dimension sizeX="{columns}" sizeY="{rows}" r="0" ifd="1"/>
    <dimension sizeX="{small.shape[1]}" sizeY="{small.shape[0]}" r="1" ifd="2"/>
   </pixels>
   <view sizeX="{round(columns * nm)}" sizeY="{round(rows * nm)}" offsetX="{round(at[0] * nm)}"
    offsetY="{round(at[1] * nm)}"/>
   <scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
    <illuminationSettings><numericalAperture>0.4</numericalAperture>
    <illuminationSource>{light}</illuminationSource></illuminationSettings></scanSettings>
  </image>
 </collection>
</scn>"""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        _page(file, macro, um * 4, text)
        _page(file, pixels, um)
        _page(file, small, um * 2)
    return path


def write_bif(path: Path, pixels: np.ndarray, *, um: float) -> Path:
    """Ventana BIF: a label picture, then two levels without overlap of tiles."""
    rows, columns = (n // TILE for n in pixels.shape[:2])
    assert pixels.shape[:2] == (rows * TILE, columns * TILE)
    scan = f'<iScan Magnification="20" ScanRes="{um}" Z-layers="1" UnitNumber="1"/>'
    joints = []
    for row in range(rows):  # numbered from the lower left, to and fro
        for column in range(columns - 1):
            first, second = _number(row, column, rows, columns), _number(row, column + 1, rows, columns)
            joints.append(_joint(first, second, "RIGHT"))
    for row in range(1, rows):
        for column in range(columns):
            first, second = _number(row, column, rows, columns), _number(row - 1, column, rows, columns)
            joints.append(_joint(first, second, "UP"))
    encoded = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{rows}" '
        f'NumCols="{columns}" Width="{TILE}" Height="{TILE}" Pos-X="0" Pos-Y="0">{"".join(joints)}</ImageInfo>'
        "</SlideStitchInfo>"
        f'<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        packet = scan.encode()
        label = (700, 1, len(packet), packet, True)
        file.write(secret(256, 384), photometric="rgb", description="Label Image", metadata=None, extratags=[label])
        packet = encoded.encode()
        stitched = (700, 1, len(packet), packet, True)
        _page(file, pixels, um, "level=0 mag=20 quality=95", extratags=[stitched])
        _page(file, halved(pixels), um * 2, "level=1 mag=10 quality=95")
    return path


def _number(row: int, column: int, rows: int, columns: int) -> int:
    up = rows - 1 - row
    return up * columns + (columns - 1 - column if up % 2 else column) + 1


def _joint(first: int, second: int, direction: str) -> str:
    return (
        f'<TileJointInfo FlagJoined="1" Confidence="95" Direction="{direction}" Tile1="{first}" Tile2="{second}" '
        f'OverlapX="0" OverlapY="0"/>'
    )


def write_mrxs(path: Path, pixels: np.ndarray, *, um: float) -> Path:
    """3DHISTECH MIRAX: a small file, and a folder of the same name with Slidedat.ini, Index.dat and Data files.

    Two levels of JPEG tiles; tiles that are all white are not stored. Data0000.dat has the pixels, Data0001.dat label
    and macro.
    """
    rows, columns = (n // TILE for n in pixels.shape[:2])
    assert pixels.shape[:2] == (rows * TILE, columns * TILE) and rows % 2 == columns % 2 == 0
    folder, identity = path.with_suffix(""), "MADE-UP-SLIDE-ID"
    folder.mkdir(parents=True)
    path.write_bytes(jpeg(secret(64, 64)))  # as scanners have it: a preview, label and all
    data, entries = bytearray(), []
    for level, picture in enumerate((pixels, halved(pixels))):
        step, found = 2**level, []
        for row in range(0, rows, step):
            for column in range(0, columns, step):
                y, x = row // step * TILE, column // step * TILE
                tile = picture[y : y + TILE, x : x + TILE]
                if (tile == 255).all():
                    continue
                stored = jpeg(tile)
                found.append((row * columns + column, len(data), len(stored), 0))
                data += stored
        entries.append(found)
    aside = jpeg(secret(200, 300))
    (folder / "Data0000.dat").write_bytes(bytes(data))
    (folder / "Data0001.dat").write_bytes(aside * 2)
    (folder / "Index.dat").write_bytes(
        _mirax_index(identity, entries, [(0, len(aside), 1), (len(aside), len(aside), 1)])
    )
    (folder / "Slidedat.ini").write_text(_mirax_text(identity, rows, columns, um))
    return path


def _mirax_index(
    identity: str, levels: list[list[tuple[int, int, int, int]]], pictures: list[tuple[int, int, int]]
) -> bytes:
    """Version and identity, two roots, one linked list of pages for each level and for each picture."""
    out = bytearray(b"01.02" + identity.encode() + bytes(8))
    roots = len(out) - 8
    tables = []
    for count in (len(levels), len(pictures)):
        tables.append(len(out))
        out += bytes(4 * count)
    for number, found in enumerate(levels):
        struct.pack_into("<i", out, tables[0] + 4 * number, len(out))
        out += struct.pack("<ii", 0, len(out) + 8)  # the first page is empty and names the next
        out += struct.pack("<ii", len(found), 0)
        for one in found:
            out += struct.pack("<4i", *one)
    for number, one in enumerate(pictures):
        struct.pack_into("<i", out, tables[1] + 4 * number, len(out))
        out += struct.pack("<ii", 0, len(out) + 8)
        out += struct.pack("<7i", 1, 0, 0, 0, *one)
    struct.pack_into("<ii", out, roots, *tables)
    return bytes(out)


def _mirax_text(identity: str, rows: int, columns: int, um: float) -> str:
    levels = "".join(
        f"""
[LAYER_0_LEVEL_{level}_SECTION]
OVERLAP_X = 0
OVERLAP_Y = 0
MICROMETER_PER_PIXEL_X = {um * 2**level}
MICROMETER_PER_PIXEL_Y = {um * 2**level}
IMAGE_FORMAT = JPEG
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {TILE}
DIGITIZER_HEIGHT = {TILE}
IMAGE_CONCAT_FACTOR = {level}
"""
        for level in range(2)
    )
    return f"""[GENERAL]
SLIDE_VERSION = 01.02
SLIDE_ID = {identity}
SLIDE_NAME = MADE-UP-NAME
IMAGENUMBER_X = {columns}
IMAGENUMBER_Y = {rows}
OBJECTIVE_MAGNIFICATION = 20
CameraImageDivisionsPerSide = 1

[HIERARCHICAL]
INDEXFILE = Index.dat
HIER_COUNT = 1
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = 2
HIER_0_VAL_0 = ZoomLevel_0
HIER_0_VAL_0_SECTION = LAYER_0_LEVEL_0_SECTION
HIER_0_VAL_1 = ZoomLevel_1
HIER_0_VAL_1_SECTION = LAYER_0_LEVEL_1_SECTION
NONHIER_COUNT = 1
NONHIER_0_NAME = Scan data layer
NONHIER_0_COUNT = 2
NONHIER_0_VAL_0 = ScanDataLayer_SlideThumbnail
NONHIER_0_VAL_0_SECTION = NONHIERLAYER_0_LEVEL_0_SECTION
NONHIER_0_VAL_1 = ScanDataLayer_SlideBarcode
NONHIER_0_VAL_1_SECTION = NONHIERLAYER_0_LEVEL_1_SECTION

[NONHIERLAYER_0_LEVEL_0_SECTION]
THUMBNAIL_IMAGE_TYPE = JPEG

[NONHIERLAYER_0_LEVEL_1_SECTION]
BARCODE_IMAGE_TYPE = JPEG

[DATAFILE]
FILE_COUNT = 2
FILE_0 = Data0000.dat
FILE_1 = Data0001.dat
{levels}"""


def write_svs(path: Path, pixels: np.ndarray, *, um: float) -> Path:
    """Aperio SVS: level 0, a thumbnail, level 1, and at the end label and macro, in strips."""
    rows, columns = pixels.shape[:2]
    head = f"Aperio Image Library v11.2.1 \r\n{columns}x{rows} [0,0 {columns}x{rows}] (128x128)"
    aside = {"photometric": "rgb", "metadata": None, "rowsperstrip": 64, "subfiletype": 1}
    with tifffile.TiffWriter(path) as file:
        _page(file, pixels, um, f"{head} JPEG/RGB Q=95|AppMag = 20|MPP = {um}|Filename = MADE-UP-NAME")
        file.write(halved(halved(pixels)), photometric="rgb", metadata=None, description=f"{head} -> thumbnail")
        _page(file, halved(pixels), um * 2, f"{head} -> {columns // 2}x{rows // 2} JPEG/RGB Q=95")
        file.write(secret(200, 160), description="Aperio Image Library v11.2.1 \r\nlabel 160x200", **aside)
        file.write(secret(150, 400), description="Aperio Image Library v11.2.1 \r\nmacro 400x150", **aside)
    return path
