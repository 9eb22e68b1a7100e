"""Units of length in OME-XML (schema 2016-06, UnitsLength) and in ImageJ's TIFF descriptions."""

from __future__ import annotations

_PREFIXES = {"y": -24, "z": -21, "a": -18, "f": -15, "p": -12, "n": -9, "\u03bc": -6, "m": -3, "c": -2, "d": -1, "": 0}
_PREFIXES |= {"da": 1, "h": 2, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "Z": 21, "Y": 24}
_UM = {f"{prefix}m": 10.0 ** (exponent + 6) for prefix, exponent in _PREFIXES.items()}
_UM |= {
    "\u00e5": 1e-4,
    "thou": 25.4,
    "li": 25_400 / 12,
    "in": 25_400.0,
    "ft": 304_800.0,
    "yd": 914_400.0,
    "pt": 25_400 / 72,
}
_UM |= {"um": 1.0, "micron": 1.0, "microns": 1.0, "\\u03bcm": 1.0, "inch": 25_400.0, "inches": 25_400.0}  # ImageJ
_UM |= {"mi": 1.609344e9, "ua": 1.495978707e17, "ly": 9.4607304725808e21, "pc": 3.0856775814913673e22}


def length_um(unit: str) -> float | None:
    """Micrometres in a unit; None for one that is not a length, as OME's ``pixel`` and ``reference frame``.

    The micro sign (U+00B5) and the Greek mu (U+03BC) look the same and are the same.

    Examples
    --------
    >>> length_um("\u00b5m"), length_um("\u03bcm"), length_um("nm"), length_um("pixel")
    (1.0, 1.0, 0.001, None)
    """
    text = unit.strip().replace("\u00b5", "\u03bc").replace("\\u00b5", "\\u03bc")
    text = text.replace("\u00c5", "\u00e5").replace("\u212b", "\u00e5")  # capital A with ring, and the angstrom sign
    return _UM.get(text, _UM.get(text.lower()))
