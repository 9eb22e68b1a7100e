"""Tables as spreadsheets, pandas, R and BIDS write them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from saccade.api import show
from saccade.cli.app import app
from saccade.data.open import open_data, open_source
from saccade.errors import DataError
from saccade.study.design import StudyConfig
from saccade.study.images import prepare


def folder_of(tmp_path, count: int):
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("missing", ["n/a", "NA", "nan", "NaN", "<NA>", ""])
def test_missing_values_are_no_class_and_no_patient(tmp_path, missing):
    folder = folder_of(tmp_path, 4)
    rows = [f"{n}.png\t{missing if n == 0 else 'ab'[n % 2]}\t{missing if n % 2 else f's{n}'}" for n in range(4)]
    (folder / "labels.csv").write_text("\n".join(["path\tlabel\tgroup", *rows]))
    records = open_source(folder).records
    assert [record.label for record in records] == [None, "b", "a", "b"]
    assert [record.group for record in records] == ["s0", None, "s2", None]


def test_a_class_that_is_called_na_is_kept_where_asked(tmp_path):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_text("path,label,group\n0.png,NA,s0\n1.png,,n/a\n")
    records = open_source(folder, keep_na=True).records
    assert [(record.label, record.group) for record in records] == [("NA", "s0"), (None, "n/a")]
    settings = {"source": str(folder), "keep_na": True}
    assert open_data(settings).records[0].label == "NA" and show(folder, keep_na=True).labels == {"NA": 1}
    assert open_data(settings | {"keep_na": False}).records[0].label is None and show(folder).labels == {}


def test_embed_and_compare_keep_na_too(tmp_path):
    folder = folder_of(tmp_path, 4)
    (folder / "labels.csv").write_text("path,label\n0.png,NA\n1.png,b\n2.png,NA\n3.png,b\n")
    for keep_na, labels in ((False, [None, "b", None, "b"]), (True, ["NA", "b", "NA", "b"])):
        out = tmp_path / f"{keep_na}.parquet"
        command = ["embed", "random:resnet10_w8", str(folder), "--out", str(out), *(["--keep-na"] if keep_na else [])]
        assert CliRunner().invoke(app, command).exit_code == 0
        assert pq.read_table(out)["label"].to_pylist() == labels
    study = StudyConfig(data=str(folder), keep_na=True, size_px=16)
    prepare(tmp_path / "study", study, lambda done, total: None)
    assert {record["label"] for record in json.loads((tmp_path / "study/data/images.json").read_text())["records"]} == {
        "NA",
        "b",
    }


def test_floats_of_a_column_of_whole_numbers_are_their_numbers(tmp_path):
    folder = folder_of(tmp_path, 4)
    columns = {"path": [f"{n}.png" for n in range(4)], "label": [0.0, 1.0, None, 0.0], "group": [7.0, 7.0, 8.0, None]}
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    records = open_source(folder).records
    assert [record.label for record in records] == ["0", "1", None, "0"]
    assert [record.group for record in records] == ["7", "7", "8", None]


def test_fractions_and_leading_zeros_stay_as_they_are(tmp_path):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_text("path;label;group\n0.png;0.0;007\n1.png;0.5;7\n")
    records = open_source(folder).records
    assert [(record.label, record.group) for record in records] == [("0.0", "007"), ("0.5", "7")]


def test_utf_16_is_read_and_windows_1252_is_refused_with_the_remedy(tmp_path):
    folder = folder_of(tmp_path, 1)
    (folder / "labels.csv").write_bytes("path\tlabel\n0.png\tMüller\n".encode("utf-16"))
    assert open_source(folder).records[0].label == "Müller"
    (folder / "labels.csv").write_bytes("path,label\n0.png,Müller\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"not in UTF-8[\s\S]*CSV UTF-8"):
        open_source(folder)
