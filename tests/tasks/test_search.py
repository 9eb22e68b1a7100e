"""Search among embeddings: exact answers, filters, the model that made the table, the measured loss of an index."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import saccade
from saccade.base.places import located_origin
from saccade.cli.app import app
from saccade.data.synthetic.images import TissueSource
from saccade.errors import DataError, MissingDependency, ModelError, StorageError, UsageError
from saccade.evaluation.knn import vote_label
from saccade.features import filters, lancedb_store, stores
from saccade.features import table as store
from saccade.features.table import FeatureTable, MemoryStore
from saccade.features.thumbnails import Pictures
from saccade.tasks.search import SearchOptions

MODEL = "random:resnet10_w8"
ODD = 'it\'s <b>"odd"</b>; DROP TABLE features --'


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Twenty-four tiles with a table of columns, one class of which has a name that is no word."""
    folder = tmp_path_factory.mktemp("search") / "tiles"
    folder.mkdir()
    source = TissueSource(24, size_px=32, seed=0, groups=6)
    rows = ["path,label,split,group,site"]
    for i, record in enumerate(source.records):
        Image.fromarray(source.read(i).pixels.transpose(1, 2, 0)).save(folder / f"{i:02d}.png")
        label = f'"{ODD.replace(chr(34), 2 * chr(34))}"' if i % 8 == 0 else record.label
        rows.append(f"{i:02d}.png,{label},{record.split},{record.group},{'north' if i % 2 else ''}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def parquet(tiles):
    place = tiles.parent / "features.parquet"
    saccade.embed(MODEL, tiles, out=place)
    return place


@pytest.fixture(scope="module")
def lancedb():
    return pytest.importorskip("lancedb", reason='these tests need pip install "saccade[search]"')


def brute_force(table, query, k, keep):
    """Ids of the nearest rows by a full sort."""
    features = table.features / np.linalg.norm(table.features, axis=1, keepdims=True)
    similar = features @ (query / np.linalg.norm(query))
    order = [i for i in np.argsort(-similar, kind="stable") if keep(i)][:k]
    return [table.ids[i] for i in order], similar[order]


def random_table(rows, width=16, groups=7, seed=0):
    """Rows in clusters, with columns that hold quotes, nothing, and a name with spaces."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 60, rows)
    features = (rng.standard_normal((60, width))[cluster] + 0.5 * rng.standard_normal((rows, width))).astype(np.float32)
    labels = [ODD if c % 5 == 0 else f"class {c % 5}" for c in cluster]
    known = [None if i % 3 == 0 else str(i % 2) for i in range(rows)]
    names = [f"row-{i}" for i in range(rows)]
    about = {"spec": {}, "weights": "abc"}
    groups = [f"g{i % groups}" for i in range(rows)]
    return FeatureTable(
        features, names, labels, groups, ["train"] * rows, [None] * rows, "m", about, {"my site": known}
    )


FILTERS = [
    ("", lambda t, i: True),
    ("label='class 1','class 3'", lambda t, i: t.labels[i] in ("class 1", "class 3")),
    (f"label!='{ODD.replace(chr(39), 2 * chr(39))}' group=g1", lambda t, i: t.labels[i] != ODD and t.groups[i] == "g1"),
    ("'my site'=", lambda t, i: t.extras["my site"][i] is None),
    ("'my site'!=1", lambda t, i: t.extras["my site"][i] != "1"),
]


@pytest.mark.parametrize(("where", "keep"), FILTERS)
def test_exact_search_is_a_full_sort(where, keep):
    table = random_table(700)
    query = table.features[3] + 0.1
    answer = MemoryStore("m", table).nearest_rows(query, 9, filters.parse(where))
    names, similar = brute_force(table, query, 9, lambda i: keep(table, i))
    assert [hit["id"] for hit in answer.hits] == names and answer.recall is None
    np.testing.assert_allclose(answer.similarities, similar, atol=1e-6)


def test_lance_answers_like_memory(tmp_path, lancedb):
    table = random_table(700)
    stores.write(tmp_path / "db" / "f.lance", table)
    opened = stores.open_store(tmp_path / "db" / "f.lance")
    query = table.features[3] + 0.1
    for where, keep in FILTERS:
        answer = opened.nearest_rows(query, 9, filters.parse(where))
        names, similar = brute_force(table, query, 9, lambda i, keep=keep: keep(table, i))
        assert [hit["id"] for hit in answer.hits] == names
        np.testing.assert_allclose(answer.similarities, similar, atol=1e-5)
    again = opened.load()
    assert np.array_equal(again.features, table.features) and again.columns == table.columns
    assert again.about == table.about and opened.load([5, 2]).ids == ["row-2", "row-5"]
    assert not opened.indexed and opened.columns == tuple(table.columns)
    with pytest.raises(DataError, match="has no index"):
        stores.approximates(opened, True)


def in_parts(place, table, size=500):
    """The table in a Parquet file, a group of rows after another, as slides are written."""
    with store.TableWriter(place) as writer:
        for start in range(0, len(table), size):
            writer.add(table.select(range(start, min(start + size, len(table)))))
    return place


def test_a_table_written_in_batches_is_the_same(tmp_path, monkeypatch, lancedb):
    monkeypatch.setattr(lancedb_store, "INDEX_ROWS", 1000)
    monkeypatch.setattr(lancedb_store, "PART", 300)
    table = random_table(1700)
    lancedb_store.save_lance_from(tmp_path / "f.lance", in_parts(tmp_path / "f.parquet", table))
    opened = stores.open_store(tmp_path / "f.lance")
    again = opened.load()
    assert np.array_equal(again.features, table.features) and again.columns == table.columns
    assert again.about == table.about and opened.indexed and opened.nearest_rows(table.features[7], 1).hits[0]["id"]
    stores.write(tmp_path / "whole.lance", table)
    assert opened._known[0].mean == pytest.approx(stores.open_store(tmp_path / "whole.lance")._known[0].mean, abs=0.02)


def test_an_interrupted_table_is_the_one_before_or_none(tmp_path, monkeypatch, lancedb):
    """Half of the rows is never a table: neither where one was, nor where none was."""
    monkeypatch.setattr(lancedb_store, "INDEX_ROWS", 1000)
    before, after = random_table(1200), random_table(1600, seed=1)
    stores.write(tmp_path / "old.lance", before)
    parquet = in_parts(tmp_path / "f.parquet", after)
    whole = lancedb_store.pq.ParquetFile.read_row_group

    def broken(file, number, *args):
        if number == 2:
            raise OSError("the disk is gone")
        return whole(file, number, *args)

    with monkeypatch.context() as patched:
        patched.setattr(lancedb_store.pq.ParquetFile, "read_row_group", broken)
        for name in ("old.lance", "new.lance"):
            with pytest.raises(StorageError, match=rf"{name}[\s\S]*the disk is gone"):
                lancedb_store.save_lance_from(tmp_path / name, parquet)
    assert np.array_equal(stores.open_store(tmp_path / "old.lance").load().features, before.features)
    assert stores.open_store(tmp_path / "old.lance").nearest_rows(before.features[0], 3, approximate=True).recall
    assert stores.read_metadata(tmp_path / "new.lance") is None
    with pytest.raises(DataError, match="is not a feature table"):
        stores.open_store(tmp_path / "new.lance")
    # All rows are there, the index is not: it is made when the table is asked for again.
    with monkeypatch.context() as patched:
        patched.setattr(lancedb_store, "complete", lambda place: None)
        lancedb_store.save_lance_from(tmp_path / "new.lance", parquet)
    assert not stores.open_store(tmp_path / "new.lance").indexed
    lancedb_store.complete(tmp_path / "new.lance")
    assert stores.open_store(tmp_path / "new.lance").indexed


def test_recall_is_that_of_the_answers(tmp_path, monkeypatch, lancedb):
    """The figure that is shown, against a comparison by hand of the same searches; filters have their own."""
    monkeypatch.setattr(lancedb_store, "INDEX_ROWS", 1000)
    monkeypatch.setattr(lancedb_store, "CELLS", (1,))
    table = random_table(3000)
    stores.write(tmp_path / "f.lance", table)
    opened = stores.open_store(tmp_path / "f.lance")
    assert opened.indexed and stores.approximates(opened, None) is False
    seen = {}
    for where in ("", "label='class 2'"):
        conditions = filters.parse(where)
        answer = opened.nearest_rows(table.features[0], 10, conditions, approximate=True)
        chosen, own = opened.sample()
        shares = []
        for query, row in zip(chosen, own):
            lists = [
                [hit["id"] for hit in opened.nearest_rows(query, 11, conditions, approximate=rough).hits]
                for rough in (True, False)
            ]
            rough, exact = ([name for name in names if name != f"row-{row}"][:10] for names in lists)
            shares.append(len(set(rough) & set(exact)) / len(exact))
        assert answer.recall.mean == pytest.approx(np.mean(shares), abs=1e-9) and answer.recall.queries == 100
        assert answer.recall.low <= answer.recall.mean <= answer.recall.high
        seen[where] = answer.recall.mean
    assert seen[""] < 1 and seen["label='class 2'"] < seen[""]  # one cell of 55: the loss is seen
    kept = stores.open_store(tmp_path / "f.lance")
    assert len(kept._known) >= 2 and kept._known[0] == opened._known[0]


def test_recall_of_a_table_that_is_written_again_is_measured_on_its_own_rows(tmp_path, monkeypatch, lancedb):
    """Lance goes on counting rows where a table is replaced."""
    monkeypatch.setattr(lancedb_store, "INDEX_ROWS", 1000)
    means = []
    for seed in (0, 1):
        stores.write(tmp_path / "f.lance", random_table(1500, seed=seed))
        means.append(stores.open_store(tmp_path / "f.lance")._known[0].mean)
    assert min(means) >= lancedb_store.GOAL


def test_as_many_cells_as_the_goal_asks_for(tmp_path, monkeypatch, lancedb):
    monkeypatch.setattr(lancedb_store, "INDEX_ROWS", 1000)
    table = random_table(3000)
    stores.write(tmp_path / "f.lance", table)
    opened = stores.open_store(tmp_path / "f.lance")
    recall = opened.nearest_rows(table.features[0], 10, approximate=True).recall
    assert recall.mean >= lancedb_store.GOAL and recall.cells > 1


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("label=class 1", "cannot parse the filter"),
        ("lable='class 1'", "unknown column"),
        ("label='class 9'", "no image has label=class 9"),
        ("label='open", "cannot parse the filter"),
    ],
)
def test_filters_that_fit_nothing_are_errors(where, said):
    with pytest.raises(UsageError, match=said):
        MemoryStore("m", random_table(100)).nearest_rows(np.ones(16, np.float32), 3, filters.parse(where))


def test_conditions_that_leave_nothing_have_an_empty_answer():
    found = MemoryStore("m", random_table(100)).nearest_rows(
        np.ones(16, np.float32), 3, filters.parse("group=g1 group=g2")
    )
    assert found.hits == [] and len(found.similarities) == 0


def test_names_that_are_no_text_are_spelt_out(tmp_path):
    """A file name may hold any bytes; its image is found all the same."""
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / name)
    Image.fromarray(np.full((16, 16, 3), 30, np.uint8)).save(tmp_path / "b.png")
    saccade.embed(MODEL, tmp_path, out=tmp_path / "f.parquet")
    table = store.load_table(tmp_path / "f.parquet")
    assert table.ids == ["b.png", "caf\\udce9.png"]
    origin = located_origin(table.about, tmp_path / "f.parquet")
    assert Pictures(origin).pixels(table.ids[1], table.hashes[1])[0, 0, 0] == 90


def test_votes():
    found = vote_label([("a", 0.9), ("b", 0.9), ("a", 0.83), (None, 1.0)])
    one = np.exp(-0.07 / 0.07)
    assert found.label == "a" and found.counts == {"a": 2, "b": 1}
    assert found.fractions["a"] == pytest.approx((1 + one) / (2 + one))
    assert vote_label([(None, 1.0)]) is None


# --- the command -----------------------------------------------------------------------------------


def test_an_image_finds_itself_and_its_filters(parquet, tiles, tmp_path):
    found = saccade.search(MODEL, tiles / "03.png", store=parquet, options=SearchOptions(k=5))
    assert found.neighbours.hits[0]["id"] == "03.png" and found.same == [True] + [False] * 4
    assert found.neighbours.similarities[0] == pytest.approx(1, abs=1e-4)
    assert sum(found.guess.counts.values()) == 4  # no vote for the image itself
    filtered = SearchOptions(k=30, where=f"label='{ODD.replace(chr(39), 2 * chr(39))}' site=")
    hits = saccade.search(MODEL, tiles / "03.png", store=parquet, options=filtered).neighbours.hits
    assert [hit["label"] for hit in hits] == [ODD] * 3 and {hit["site"] for hit in hits} == {None}
    out = tmp_path / "sheets" / "sheet.png"
    assert found.save_sheet(out) == [] and Image.open(out).width > 500


def test_the_command_prints_a_table_or_json(parquet, tiles, tmp_path):
    words = ["search", MODEL, str(tiles / "03.png"), "--in", str(parquet), "--k", "3", "--where", "split=train"]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert shown.exit_code == 0 and "(the query itself)" in shown.output and "; exact" in shown.output
    sheet = str(tmp_path / "s.png")
    result = json.loads(CliRunner().invoke(app, [*words, "--json", "--out", sheet], catch_exceptions=False).output)
    assert [hit["rank"] for hit in result["hits"]] == [1, 2, 3] and result["exact"] and result["sheet"] == sheet
    assert {hit["split"] for hit in result["hits"]} == {"train"}


def test_another_model_is_refused(parquet, tiles):
    with pytest.raises(ModelError, match="made by another model"):
        saccade.search("random:resnet10_w16", tiles / "03.png", store=parquet)


def test_an_older_table_says_what_to_do(tmp_path, tiles):
    table = saccade.embed(MODEL, tiles)
    store.save_table(tmp_path / "old.parquet", FeatureTable(table.features, *list(table.columns.values())[:5]))
    with pytest.raises(DataError, match="does not state which weights"):
        saccade.search(MODEL, tiles / "03.png", store=tmp_path / "old.parquet")


def test_images_that_moved_or_changed_are_said(parquet, tiles, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tiles.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    table = store.load_table(parquet)
    about = table.about | {"data": str(tmp_path / "gone")}
    gone = Pictures(about)
    assert "no such file" in gone.missing()
    with pytest.raises(DataError, match="cannot open the images"):
        gone.pixels(table.ids[0], table.hashes[0])
    there = Pictures(about, data=moved)
    assert there.missing() is None and there.pixels(table.ids[0], table.hashes[0]).shape == (3, 32, 32)
    (moved / table.ids[1]).write_bytes((tiles / "05.png").read_bytes())
    with pytest.raises(DataError, match="has changed"):
        there.pixels(table.ids[1], table.hashes[1])


def test_deep_images_are_shown_by_the_range_of_the_model(tmp_path):
    import imagecodecs

    for i in range(4):
        pixels = np.full((16, 16, 1), 1000 + 500 * i, np.uint16)
        pixels[:4] = 3000
        (tmp_path / f"{i}.png").write_bytes(imagecodecs.png_encode(pixels))
    table = saccade.embed(MODEL, tmp_path)
    shown = Pictures(table.about).pixels("0.png", table.hashes[0])
    assert shown.dtype == np.uint8 and shown[0, 0, 0] == 255 and shown[0, -1, 0] == 0


def test_a_missing_extra_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(MissingDependency, match=r'pip install "saccade\[search\]"'):
        stores.write(tmp_path / "f.lance", random_table(10))
    with pytest.raises(DataError, match="feature table not found"):
        stores.open_store(tmp_path / "nothing.parquet")
    assert not list(tmp_path.iterdir())
