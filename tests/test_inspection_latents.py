"""Inspection of latents: planted faults are found beside brute force, and clean latents are clean."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fusemix as fm
from fusemix.errors import DataError
from fusemix.inspection import inspect, vectors

N, DIMS = 240, (48, 36)


def made(seed=0):
    """Latents (N, 48) and (N, 36) of a common cause (N, 24), in general position."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(N, 24))
    return [cause @ rng.normal(size=(24, d)) + 0.3 * rng.normal(size=(N, d)) for d in DIMS]


def extracted(folder, x, y, splits=None, groups=None):
    splits = splits or ["train"] * (N - 60) + ["val"] * 30 + ["test"] * 30
    table = {"x": [list(map(float, v)) for v in x], "y": [list(map(float, v)) for v in y], "split": splits}
    pq.write_table(pa.table({**table, "group": groups or [f"g{i}" for i in range(N)]}), folder / "t.parquet")
    pairs = fm.read_pairs(folder / "t.parquet", x="x", y="y", group="group")
    fm.extract(pairs, out=folder / "l", dtype="float32", shard_items=100)
    return folder / "l"


def copy(x, y, to, of):
    """Make one pair nearly another."""
    rng = np.random.default_rng(to)
    for latents in (x, y):
        latents[to] = latents[of] + 0.05 * rng.normal(size=latents.shape[1])


def faults(found):
    return {(f.kind, f.modality): f for f in found.findings if f.severity != "note"}


def rows(found, kind, modality="x"):
    return [row for row in found.table.to_pylist() if row["kind"] == kind and row["modality"] == modality]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return inspect(extracted(tmp_path_factory.mktemp("clean"), *made()))


def test_clean_latents_have_notes_only(clean):
    assert faults(clean) == {}
    assert {f.kind for f in clean.findings} == {"counts", "splits", "diversity", "coverage"}
    assert all(a.ok == a.items == N and not a.failed for a in clean.accounts.values())


def test_diversity_is_that_of_the_full_kernel(clean):
    figures = next(f.figures for f in clean.findings if f.kind == "diversity" and f.modality == "x")
    x = made()[0].astype(np.float32).astype(np.float64)
    for name, y in (("vendi_uncentred", x), ("vendi", x - x.mean(axis=0))):
        p = np.linalg.eigvalsh(unit(y) @ unit(y).T / N)
        p = p[p > 1e-12]
        assert figures[name] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    s = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    assert figures["effective_rank"] == pytest.approx(np.exp(-(s / s.sum() * np.log(s / s.sum())).sum()), rel=1e-4)


def test_near_duplicates_are_those_of_brute_force_in_clusters(tmp_path):
    x, y = made()
    for to, of in ((5, 2), (6, 2), (9, 8)):
        copy(x, y, to, of)
    found, kind = inspect(extracted(tmp_path, x, y)), "near duplicate"
    assert set(faults(found)) == {(kind, "x"), (kind, "y")}
    finding = faults(found)[kind, "x"]
    cosines = unit(x) @ unit(x).T
    np.fill_diagonal(cosines, -1)
    slow = {int(i) for i in np.flatnonzero(cosines.max(axis=1) >= finding.figures["threshold"])}
    assert slow == {2, 5, 6, 8, 9}
    assert (finding.count, finding.figures["clusters"], finding.figures["largest"]) == (5, 2, 3)
    told = {(row["row"] - 1, row["other_row"] - 1) for row in rows(found, kind)}
    assert {i for pair in told for i in pair} == slow
    for row in rows(found, kind):
        assert row["score"] == pytest.approx(cosines[row["row"] - 1, row["other_row"] - 1], abs=1e-5)


def test_copies_of_everything_are_found_too(tmp_path):
    x, y = made()
    x[N // 2 :] = x[: N // 2] + 1e-3 * np.random.default_rng(1).normal(size=(N // 2, DIMS[0]))
    found = inspect(extracted(tmp_path, x, y, ["train"] * N))
    assert faults(found)["near duplicate", "x"].count == N


def test_a_held_out_item_like_one_of_train_is_a_leak_unless_it_is_of_its_group(tmp_path):
    x, y = made()
    copy(x, y, N - 1, 3)
    copy(x, y, N - 2, 4)
    groups = [f"g{i}" for i in range(N)]
    groups[N - 2] = "g4"
    found = inspect(extracted(tmp_path, x, y, groups=groups))
    assert {key[0] for key in faults(found)} == {"leak", "near duplicate", "straddling group"}
    (leak,) = rows(found, "leak")
    assert (leak["row"], leak["other_row"]) == (N, 4) and leak["message"] == "in test, like one of train"


def test_outliers(tmp_path):
    rng = np.random.default_rng(0)
    x, y = made()
    x = np.abs(rng.normal(size=DIMS[0])) * 6 + x  # encoders give latents with a common part
    x[17] = -x[17]
    found = inspect(extracted(tmp_path, x, y))
    first, *more = rows(found, "outlier")
    assert first["row"] == 18 and len(more) <= 3 and all(row["score"] < first["score"] / 1.5 for row in more)
    distance = np.log(1 - np.sort(unit(x) @ unit(x).T, axis=1)[:, -11:-1].mean(axis=1))
    z = (distance - np.median(distance)) / (1.4826 * np.median(abs(distance - np.median(distance))))
    assert first["score"] == pytest.approx(z[17], rel=1e-3)


def test_swapped_pairs_come_first(tmp_path):
    x, y = made()
    y[:30] = np.roll(y[:30], 1, axis=0)
    found = inspect(extracted(tmp_path, x, y))
    finding = faults(found)["mislabelled", "x+y"]
    told = [row["row"] - 1 for row in rows(found, "mislabelled")]
    assert set(told) <= set(range(30)) and len(told) >= 8
    scores = [concern.score for concern in finding.concerns]
    assert scores == sorted(scores) and finding.figures["tells"] > 0.9
    assert finding.concerns[0].item == ("x", told[0]) and finding.concerns[0].other[0] == "y"


def test_an_alignment_that_tells_nothing_gives_no_verdict(tmp_path):
    found = inspect(extracted(tmp_path, made()[0], made(9)[1]))
    verdict = next(f for f in found.findings if f.kind == "mislabelled")
    assert verdict.severity == "note" and not verdict.concerns and "no verdict" in verdict.sentence


def test_bad_shared_and_constant_latents(tmp_path):
    x, y = made()
    x[:, 4] = 0
    x[:, 5] = 1.5
    x[30] = 0
    found = inspect(extracted(tmp_path, x, y))
    assert rows(found, "bad latent")[0]["row"] == 31
    assert ("constant dimension", "x") not in faults(found)  # one of 48 is a note; the row of zeros makes 5 vary
    note = next(f for f in found.findings if f.kind == "constant dimension")
    assert note.count == 1 and "1 of them dead" in note.sentence


def test_held_out_data_where_no_training_data_are(tmp_path):
    x, y = made()
    far = np.zeros(DIMS[0])
    far[0] = 60
    x[-60:] += far
    found = inspect(extracted(tmp_path, x, y))
    coverage = faults(found)["coverage", "x"]
    assert coverage.figures["coverage"] < 0.5 < coverage.figures["expected"]


def test_of_too_many_items_some_are_looked_at(tmp_path, monkeypatch):
    x, y = made()
    copy(x, y, 5, 2)
    monkeypatch.setattr(vectors, "MOST", 40)
    found = inspect(extracted(tmp_path, x, y))
    assert faults(found) == {}
    monkeypatch.setattr(vectors, "MOST", N - 1)
    finding = faults(inspect(tmp_path / "l"))["near duplicate", "x"]
    assert "239 of 240 items looked at" in finding.sentence


def test_what_failed_is_accounted_for_and_its_rows_are_known(world, tmp_path):
    import shutil

    from conftest import encode_image, encode_text

    for path in world.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "004.png").write_bytes(b"broken")
    (tmp_path / "007.png").unlink()
    pairs = fm.read_pairs(tmp_path / "table.csv", image="photo", text="title", group="photo")
    fm.extract(pairs, image=encode_image, text=encode_text, out=tmp_path / "l")
    found = inspect(tmp_path / "l", out=tmp_path / "report")
    account = found.accounts["image"]
    assert (account.items, account.ok, account.failed, account.skipped) == (120, 118, 2, 0)
    told = [
        (row["row"], row["id"]) for row in rows(found, "broken item", "image") + rows(found, "missing file", "image")
    ]
    assert told == [(9, "004.png"), (15, "007.png")]
    for row in rows(found, "near duplicate", "image"):  # numbers of items survive what failed
        assert found.pairs.items["image"].ids[found.pairs.rows["image"][row["row"] - 1]] == row["id"]
    assert "data:image/jpeg" in (tmp_path / "report/report.html").read_text()


def test_what_is_settled_cannot_be_given_again(tmp_path):
    folder = extracted(tmp_path, *made())
    with pytest.raises(DataError, match="leave out group"):
        inspect(folder, group="group")
    with pytest.raises(DataError, match="leave out image"):
        inspect(folder, image="x")


def test_clusters_are_the_connected_parts():
    a, b = np.array([7, 3, 9, 1, 4]), np.array([3, 5, 1, 9, 4])
    label = vectors._clusters(10, a, b)
    assert label[[7, 3, 5]].tolist() == [3, 3, 3] and label[[9, 1]].tolist() == [1, 1]
    assert label[[0, 2, 4, 6, 8]].tolist() == [0, 2, 4, 6, 8]
    chain = np.arange(999)
    assert not vectors._clusters(1000, chain, chain + 1).any()
