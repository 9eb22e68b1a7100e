"""Every unit of length in the OME schema, for slides and for stacks."""

import numpy as np
import pytest
import tifffile

from saccade.data.images.length_units import length_um
from saccade.data.open import open_source
from saccade.data.slides.slide import open_slide

XML = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
    'DimensionOrder="XYZCT" Type="uint8" SizeX="64" SizeY="64" SizeZ="{z}" SizeC="1" SizeT="1" PhysicalSizeX="{size}" '
    'PhysicalSizeY="{size}" PhysicalSizeZ="{size}" PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}" '
    'PhysicalSizeZUnit="{unit}"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="{z}"/>'
    "</Pixels></Image></OME>"
)
HALF_UM = {"µm": 0.5, "μm": 0.5, "nm": 500, "pm": 5e5, "mm": 5e-4, "cm": 5e-5, "dm": 5e-6, "m": 5e-7, "Å": 5000}
HALF_UM |= {"in": 0.5 / 25400, "thou": 0.5 / 25.4, "pt": 0.5 * 72 / 25400, "ft": 0.5 / 304800}


@pytest.mark.parametrize("unit", HALF_UM)
def test_units_of_slides_and_stacks(tmp_path, unit):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 64, 64), dtype=np.uint8)
    for name, data, z, tile in (("stack", pixels, 5, None), ("slide", pixels[0], 1, (16, 16))):
        (tmp_path / name).mkdir()
        xml = XML.format(unit=unit, size=HALF_UM[unit], z=z).encode()
        path = tmp_path / name / "a.ome.tif"
        tifffile.imwrite(path, data, description=xml, metadata=None, ome=False, tile=tile, photometric="minisblack")
    assert open_source(tmp_path / "stack").read(0).spacing_mm == pytest.approx((5e-4,) * 3)
    assert open_slide(tmp_path / "slide" / "a.ome.tif").spacing_um == pytest.approx((0.5, 0.5))


def test_what_is_not_a_length_is_unknown():
    assert length_um("pixel") is None and length_um("reference frame") is None and length_um("") is None
