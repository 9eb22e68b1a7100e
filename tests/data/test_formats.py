"""The one table of formats, and the page that describes it."""

from pathlib import Path

import pytest

from saccade.data.formats import BUILT_IN, by_content, by_name, has_suffix, suffixes

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"


@pytest.mark.parametrize("card", BUILT_IN, ids=lambda card: card.name)
def test_every_format_is_on_the_page(card):
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {card.name} |"))
    assert card.kind in row and card.standard in row
    assert all(f"`{suffix}`" in row for suffix in card.suffixes)


def test_a_suffix_that_is_not_shared_belongs_to_one_format_of_a_kind():
    for card in BUILT_IN:
        for suffix in card.suffixes:
            same = [other for other in BUILT_IN if other.kind == card.kind and suffix in other.suffixes]
            assert same == [card]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.nii.gz", "volume", "NIfTI"),
        ("a.tar.gz", "archive", "archive"),
        ("A.SVS", "slide", "scanner slide"),
        ("a.tif", "image", "TIFF"),
        ("a.tif", "volume", "TIFF stack"),
        ("a.tif", "slide", "tiled TIFF"),
        ("a.gz", "archive", None),
    ],
)
def test_the_longest_suffix_of_a_kind_decides(name, kind, expected):
    card = by_name(name, kind)
    assert (card.name if card else None) == expected


def test_content_goes_before_the_name():
    assert by_content(b"\xff\xd8\xff\xe0", "image").name == "JPEG"
    assert by_content(b"no magic at all", "image") is None
    assert not has_suffix("a.tif", "volume", shared=False) and ".btf" in suffixes("slide")
