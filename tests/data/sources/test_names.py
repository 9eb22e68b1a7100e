"""Names as Windows, macOS and spreadsheets write them."""

import io
import unicodedata
import zipfile
from collections import Counter

import numpy as np
from PIL import Image

from saccade.data.open import open_source


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_back_slashes_of_a_zip_are_folders(tmp_path):
    """Archives of old .NET and SharpZipLib (cpython#91036, libzip#291): else the test part would be learned from."""
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for number, (split, label) in enumerate((s, c) for s in ("train", "test") for c in "ab"):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = f"{split}\\{label}\\1.png", 0
            archive.writestr(info, png(number))
    source = open_source(tmp_path / "windows.zip")
    found = {(record.split, record.label): int(source.read(i).pixels.mean()) for i, record in enumerate(source.records)}
    assert found == {("train", "a"): 0, ("train", "b"): 1, ("test", "a"): 2, ("test", "b"): 3}


def test_unicode_forms_are_one_name(tmp_path):
    """A zip or folder of macOS (NFD) and a table of a spreadsheet (NFC)."""
    names = [f"Müller_{number}.png" for number in range(4)]
    (tmp_path / "scans").mkdir()
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for number, name in enumerate(names):
            decomposed = unicodedata.normalize("NFD", name)
            archive.writestr(decomposed, png(number))
            (tmp_path / "scans" / decomposed).write_bytes(png(number))
    table = tmp_path / "nfc.csv"
    rows = [f"{unicodedata.normalize('NFC', name)},{'ab'[number % 2]}" for number, name in enumerate(names)]
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    for place in ("mac.zip", "scans"):
        source = open_source(tmp_path / place, manifest=table)
        assert Counter(record.label for record in source.records) == {"a": 2, "b": 2}
        assert [int(source.read(index).pixels.mean()) for index in range(4)] == [0, 1, 2, 3]


def test_two_files_whose_names_differ_in_form_only_are_both_there(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        (tmp_path / unicodedata.normalize(form, "é.png")).write_bytes(png(number))
    source = open_source(tmp_path)
    assert sorted(int(source.read(index).pixels.mean()) for index in range(len(source))) == [0, 1]
