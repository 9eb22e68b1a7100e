"""Names that are not UTF-8 in the JSON files of a run."""

from saccade.base.run_folder import read_json, write_json


def test_json_keeps_names_that_are_not_utf8(tmp_path):
    value = {"id": b"im\xff.png".decode("utf-8", "surrogateescape"), "group": "Jürgen"}
    write_json(tmp_path / "data.json", value)
    assert read_json(tmp_path / "data.json") == value
    (tmp_path / "data.json").read_bytes().decode("utf-8")
