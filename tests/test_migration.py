"""A gallery goes from one encoder to another by a rotation; what it keeps is measured on items it has not seen."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

import fusemix as fm
from fusemix.data.latents import Latents
from fusemix.errors import DataError
from fusemix.migration import Rotation, kept
from test_cli import fusemix
from test_transport import shared


def encoders(count, seed=0, noise=0.05):
    """Latents of the same items by two encoders, and of their texts."""
    x, y = shared(count, seed=seed, noise=1.0)
    turn = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(1)))[0]
    other = 3 * (x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))) @ turn + 7
    return x, other, y


def test_the_rotation_is_scipys():
    old, new, _ = encoders(80)
    found = Rotation.fit(old, new)
    a, b = (side.double().numpy() - side.double().numpy().mean(0) for side in (old, new))
    turn, scale = orthogonal_procrustes(a, b)
    np.testing.assert_allclose(found.turn.numpy(), turn * scale / (a**2).sum(), atol=1e-4)
    torch.testing.assert_close(
        found(old), torch.from_numpy(a @ turn * scale / (a**2).sum()).float() + new.mean(0), atol=1e-3, rtol=1e-3
    )


def test_spaces_of_other_widths_are_turned_too():
    old, new, _ = encoders(200)
    wide = torch.cat([new, torch.zeros(200, 5)], dim=1)
    assert Rotation.fit(old, wide)(old).shape == (200, 65)
    narrow = 2 * old[:, :20]
    fitted = Rotation.fit(old, narrow)
    centred = old - old.mean(dim=0)
    best = [float(((s * (fitted(old) - fitted.offset) - 2 * centred[:, :20]) ** 2).sum()) for s in (0.9, 1.0, 1.1)]
    assert best[1] == min(best)  # the scale is that of least squares


def test_a_gallery_is_migrated_and_what_is_kept_is_said():
    old, new, text = encoders(400)
    train = Latents.from_arrays("train", image=new[:250].numpy(), text=text[:250].numpy())
    model = fm.FuseMix(adapter="cca").fit(train)
    ids = [f"{row}.png" for row in range(400)]
    before = named(old, ids, text)
    after = named(new[200:], ids[200:], text[200:])
    found = fm.migrate(before.items["image"], after.items["image"])
    assert found.shared == 200 and len(found.held[0]) == 40 and found.found > 0.9
    seen = np.setdiff1d(np.arange(200), found.held[1])
    torch.testing.assert_close(found.trial.turn, Rotation.fit(old[200:][seen], new[200:][seen]).turn)
    torch.testing.assert_close(found.rotation.turn, Rotation.fit(old[200:], new[200:]).turn)
    recall = kept(model, found, after)
    for encoded, moved in recall.values():
        assert moved > encoded - 15 and encoded > 50
    # What the trial gives is of the pairs themselves, in their order.
    native, mapped = found.held_out(after)
    for pairs, latents in ((native, new[200:][found.held[1]]), (mapped, found.trial(old[found.held[0]]))):
        torch.testing.assert_close(pairs["image"].latents.float(), latents)
    assert len(found.items()) == 400 and found.items().rows.shape == (400, 60)


def named(latents, ids, text):
    from dataclasses import replace

    import pyarrow as pa

    from fusemix.data.latents import LateTable

    pairs = Latents.from_arrays("val", image=latents.numpy(), text=text.numpy())
    table = pa.table({"id": ids, "value": ids})
    return replace(pairs, items={**pairs.items, "image": replace(pairs.items["image"], late=LateTable(lambda: table))})


def test_too_few_shared_items_are_told():
    old, new, text = encoders(30)
    before = named(old, [f"a{row}" for row in range(30)], text)
    after = named(new, [f"a{row}" if row < 3 else f"b{row}" for row in range(30)], text)
    with pytest.raises(DataError, match="3 items have latents by both encoders, at least 10 are wanted.*extract some"):
        fm.migrate(before.items["image"], after.items["image"])


def test_the_command_writes_an_index_of_all_items(tmp_path):
    old, new, text = encoders(120)
    lines = ["id,image,text,split", *(f"{i},{i},{i},{'train' if i < 60 else 'test'}" for i in range(120))]
    (tmp_path / "whole.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "some.csv").write_text("\n".join([lines[0], *lines[21:]]) + "\n")
    for name, array in (("old", old), ("new", new[20:]), ("text", text), ("few", text[20:])):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    fusemix("extract", "whole.csv", "--image", "image=old.npy", "--text", "text=text.npy", "-o", "old", cwd=tmp_path)
    fusemix("extract", "some.csv", "--image", "image=new.npy", "--text", "text=few.npy", "-o", "new", cwd=tmp_path)
    fusemix("fit", "new", "--adapter", "cca", "-o", "model", cwd=tmp_path)
    done = fusemix("migrate", "model", "old", "new", "--modality", "image", "-o", "index", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert facts["items"] == 120 and facts["encoded"] == facts["shared"] == 100
    assert set(facts["R@1"]) == {"text->image", "image->text"}
    assert len(fm.open_index(tmp_path / "index")) == 120
    said = fusemix("migrate", "model", "old", "new", "-o", "index", cwd=tmp_path).stdout
    assert "120 image items, 100 of them encoded by the new encoder" in said and "migrated, " in said
    wrong = fusemix("migrate", "model", "old", "new", "--modality", "imag", "-o", "i", cwd=tmp_path, code=2)
    assert "old holds no 'imag'; found: image, text; did you mean 'image'?" in wrong.stderr
