"""One volume from one file: the suffix says which reader. Nothing is resampled; see orientation.py for the axes."""

from __future__ import annotations

from collections.abc import Callable

from saccade.data.nifti import read_nifti
from saccade.data.orientation import Volume
from saccade.errors import DamagedFile

Beside = Callable[[str], bytes]  # name of a file beside this one -> its bytes
VOLUME_SUFFIXES = (".nii", ".nii.gz")


def read_volume(data: bytes, name: str, beside: Beside) -> Volume:
    """Decode one file. Raises DamagedFile, naming it, for anything that is not one whole volume.

    beside  reads the data file that a header (.nhdr, .mhd) names
    """
    if not data:
        raise DamagedFile(f"{name}: empty file", hint="copy it again from where it came")
    try:
        return read_nifti(data, name)
    except DamagedFile:
        raise
    except MemoryError as error:
        raise DamagedFile(f"{name}: its header asks for more memory than there is") from error
    except Exception as error:  # readers raise nearly anything on broken bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(f"{name}: cannot be read ({reason})", hint="open it in a viewer, or copy it again") from error
