"""The report: what a user's own words could break."""

import numpy as np

from fusemix.report import Example, split_examples, write_report
from fusemix.search.hit import Hit


def test_captions_and_file_names_are_text_and_never_markup(model, latents, tmp_path):
    evil = '<script>alert("x")</script>'
    columns = {evil: evil}
    hits = [
        Hit(evil, 0.5, "image", f"/nowhere/{evil}.png", None, columns),
        Hit("t", 0.4, "text", None, evil, columns),
    ]
    path = tmp_path / "r.html"
    write_report(
        path,
        evil,
        model,
        model.evaluate(latents.only("test")),
        [Example(evil, hits, [evil, evil])],
        {"fit": 1.0},
        [evil],
    )
    html = path.read_text()
    assert "<script" not in html and html.count("&lt;script&gt;") >= 5


def test_examples_ask_texts_of_the_split_for_its_pictures(model, latents):
    test = latents.only("test")
    examples = split_examples(model, test)
    assert len(examples) == 5 and all(len(example.hits) == 6 for example in examples)
    assert {hit.id for example in examples for hit in example.hits} <= set(test["image"].ids)
    assert all(example.query in test["text"].values for example in examples)


def test_a_model_without_validation_is_drawn_too(tmp_path):
    import fusemix as fm
    from fusemix.data.latents import Latents

    x = np.random.default_rng(0).normal(size=(40, 4))
    model = fm.FuseMix(dim=4, epochs=2, recipe="scaled").fit(x, x)
    data = Latents.from_arrays("given", x=x, y=x)
    write_report(tmp_path / "r.html", "arrays", model, model.evaluate(data), split_examples(model, data), {})
    assert (tmp_path / "r.html").read_text().count("<svg") == 2
