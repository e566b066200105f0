"""`fusemix classify`: items named by the class whose texts land nearest."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fusemix.arguments import Decode, Json, Quiet, named
from fusemix.errors import DataError, StoreError, choices

if TYPE_CHECKING:
    import pyarrow as pa

    from fusemix.model import FuseMix
    from fusemix.progress import Progress
    from fusemix.zeroshot import Classification

FORMS = (".csv", ".parquet", ".jsonl")
PICTURES = (".png", ".svg")
ITEMS_PER_BLOCK = 256  # raw items that are in memory at a time


class Subject(NamedTuple):
    """What is classified.

    Attributes:
        model: embeds the names of the classes: a FuseMix, or what an index has in its place.
        items: N rows: modality, id, value and, of an index, the user's columns.
        embeddings: (N, S).
        whole: whether they are an index.
    """

    model: Any
    items: "pa.Table"
    embeddings: Any
    whole: bool


def classify(
    source: Annotated[
        Path, typer.Argument(metavar="INDEX_OR_MODEL", help="Folder of an index, all of it; or of a model, for ITEMS.")
    ],
    classes: Annotated[
        str, typer.Option(help="dog,cat,...; or a file with a name on each line; or a column of the index.")
    ],
    items: Annotated[list[str] | None, typer.Argument(help="Files or words to classify with a model.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='As "a photo of a {}"; several are averaged; @FILE has one on each line.')
    ] = None,
    truth: Annotated[str | None, typer.Option(help="Column of the index with the true classes.")] = None,
    k: Annotated[int, typer.Option("-k", help="Best labels to keep of each item.", min=1)] = 5,
    modality: Annotated[
        str | None, typer.Option("--from", help="What the items are (default: by their type); of an index only those.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Modality that encodes the class names (default: the only one of texts).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Labels of every item: a .csv, .parquet or .jsonl file.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Picture of which class is taken for which: a .png or .svg file.")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY=ENCODER", help="What encodes it, if it is your own code.")
    ] = None,
    decode: Decode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Name items by the class whose name lands nearest: no labels are trained on.

    With --truth also how often that is right, in all and class by class, beside chance and the most frequent class.
    """
    from fusemix.terminal import Bars, say
    from fusemix.zeroshot import class_embeddings, zero_shot

    _check_files(out, confusion, truth)
    with Bars(quiet) as bars:
        asked = _open(source, items or [], modality, named("encoder", encoder), named("decode", decode), bars)
        chosen, origin = _classes(classes, asked)
        templates = _templates(template)
        true = _column(truth, asked) if truth is not None else None
        embedded = class_embeddings(asked.model, chosen, templates, _reader(asked.model, names), bars)
        temperature = _temperature(asked.model)
        found = zero_shot(asked.embeddings, embedded, chosen, true, k=k, temperature=temperature)
    if true is not None:
        found.notes.extend(_seen(asked, true))
    labelled = _labelled(asked, true, found)
    about = {"source": str(source), "classes_from": origin, "templates": templates, "temperature": temperature}
    _write(found, labelled, out, confusion)
    if as_json:
        predictions = {} if out else {"predictions": labelled.to_pylist()}
        say(json.dumps({**about, **found.to_dict(), **predictions}, indent=2, ensure_ascii=False))
        return
    shown = f"{len(templates):,} templates" if len(templates) > 1 else f"template {templates[0]!r}"
    say(f"{len(chosen):,} classes: {origin}; {shown}")
    _show(found, asked, out, confusion)


def _check_files(out: Path | None, confusion: Path | None, truth: str | None) -> None:
    """Refuse what cannot be written before anything is computed."""
    if out is not None and out.suffix.lower() not in FORMS:
        raise DataError(f"-o {out}: wanted a name that ends in {', '.join(FORMS)}")
    if confusion is not None:
        from fusemix.curves import new_figure

        if confusion.suffix.lower() not in PICTURES:
            raise DataError(f"--confusion {confusion}: wanted a name that ends in {' or '.join(PICTURES)}")
        if truth is None:
            raise DataError(f"--confusion {confusion}: nothing is confused without --truth COLUMN, the true classes")
        new_figure(1, 1)  # raises where matplotlib is not installed


def _open(
    source: Path, items: list[str], modality: str | None, encoders: Mapping[str, str], decoders: Mapping[str, str],
    progress: "Progress",
) -> Subject:  # fmt: skip
    """Open an index, or a model and embed the items with it."""
    import fusemix as fm

    if (source / "adapters.safetensors").is_file():
        if not items:
            raise DataError(f"{source} is a model: name the files or words to classify, or give an index instead")
        fitted = fm.FuseMix.load(source)
        _use(fitted, encoders, decoders)
        return _embedded(fitted, items, modality, progress)
    if not (source / "facts.json").is_file():
        raise StoreError(f"{source} holds neither an index nor a model; make one with `fusemix index` or `fusemix fit`")
    index = fm.open_index(source)
    if items:
        raise DataError(f"{source} is an index, and all of it is classified; for {items[0]!r} give a model's folder")
    _use(index.model, encoders, decoders)
    if modality is None:
        return Subject(index.model, index.items, index.embeddings, True)
    kinds = index.items["modality"].to_pylist()
    keep = [row for row, kind in enumerate(kinds) if kind == modality]
    if not keep:
        raise DataError(f"--from {modality}: the index has no such items; {choices(modality, sorted(set(kinds)))}")
    return Subject(index.model, index.items.take(keep), index.embeddings[keep], True)


def _use(model: Any, encoders: Mapping[str, str], decoders: Mapping[str, str]) -> None:
    for name in {**encoders, **decoders}:
        model.use_encoder(name, encoders.get(name), decode=decoders.get(name))


def _embedded(model: "FuseMix", words: list[str], modality: str | None, progress: "Progress") -> Subject:
    """Embed files and words, those of one modality together."""
    import numpy as np
    import pyarrow as pa

    from fusemix.queries import modality_of

    sides = model.sides_
    if modality not in (None, *sides):
        raise DataError(f"--from: the model has no modality {modality!r}; {choices(str(modality), sides)}")
    raw = [_raw(word, sides[modality].kind if modality is not None else None) for word in words]
    kinds = [modality or modality_of(item, sides) for item in raw]
    embeddings = np.empty((len(raw), model.config_.dim), dtype=np.float32)
    for kind in dict.fromkeys(kinds):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        for start in range(0, len(rows), ITEMS_PER_BLOCK):
            block = rows[start : start + ITEMS_PER_BLOCK]
            embeddings[block] = model.embed([raw[row] for row in block], kind)
            progress(f"embed {kind}", start + len(block), len(rows))
    return Subject(model, pa.table({"modality": kinds, "id": words, "value": words}), embeddings, False)


def _raw(word: str, kind: str | None) -> str | Path:
    """Return a word as a text or as a file; one that looks like the name of a file is one also where there is none."""
    from fusemix.data.items import SUFFIXES
    from fusemix.data.media import is_file

    path = Path(word)
    meant = " " not in word and path.suffix.lower() in SUFFIXES
    text = kind == "text" if kind is not None else not (is_file(path) or meant)
    if text and not word.strip():
        raise DataError("nothing to classify: one of the words is empty")
    return word if text else path


def _models(model: Any) -> list["FuseMix"]:
    """Return the models of a space, which an index can have several of; a model alone is its own."""
    return list(getattr(model, "models", [model]))


def _temperature(model: Any) -> float | None:
    """Return the temperature of the one fit that made the space; several have no common one."""
    models = _models(model)
    return float(models[0].facts_["temperature"]) if len(models) == 1 else None


def _reader(model: Any, given: str | None) -> str:
    """Return the modality that encodes the names of classes."""
    texts = [name for name, side in model.sides_.items() if side.kind == "text"]
    if given is not None and given not in texts:
        raise DataError(f"--names {given}: no modality of texts in this model; {choices(given, texts)}")
    if given is None and len(texts) != 1:
        known = ", ".join(f"{name} ({side.kind})" for name, side in model.sides_.items())
        step = "say which with --names" if texts else "classes need a model that was fitted on texts"
        raise DataError(f"cannot tell what encodes the names of the classes: the model has {known}; {step}")
    return str(given or texts[0])


def _classes(words: str, asked: Subject) -> tuple[list[str], str]:
    """Return the names of the classes, and where they come from: a file, else a column, else the words themselves."""
    from fusemix.data.media import is_file
    from fusemix.zeroshot import label_of

    path, columns = Path(words), asked.items.column_names if asked.whole else []
    if is_file(path):
        also = f" (the file {words}, not the column of that name)" if words in columns else f" of the file {words}"
        return _lines(path, "--classes"), f"the lines{also}"
    if words in columns:
        found = {label_of(value) for value in asked.items[words].unique().to_pylist()} - {None}
        return sorted(str(name) for name in found), f"the values of the column {words!r}"
    if "," not in words:
        there = f"no column of the index ({', '.join(columns)})" if asked.whole else "one name alone is no choice"
        raise DataError(f"--classes {words}: no such file, and {there}; write names with commas between: dog,cat")
    return [word.strip() for word in words.split(",") if word.strip()], "as given"


def _templates(given: list[str] | None) -> list[str]:
    """Read templates; @FILE is a file with one on each line."""
    found: list[str] = []
    for word in given or ["{}"]:
        found += _lines(Path(word[1:]), f"--template {word}") if word.startswith("@") else [word]
    return found


def _lines(path: Path, option: str) -> list[str]:
    """Return the lines of a file that are not empty."""
    from fusemix.data.media import is_file

    if not is_file(path):
        raise DataError(f"{option}: there is no file {path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{option}: {path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    if not any(lines):
        raise DataError(f"{option}: {path} is empty; write one on each line")
    return [line for line in lines if line]


def _column(truth: str, asked: Subject) -> list[Any]:
    """Return the true classes."""
    if not asked.whole:
        raise DataError(f"--truth {truth}: only an index has columns; make one with `fusemix index`")
    if truth not in asked.items.column_names:
        raise DataError(f"--truth: the index has no column {truth!r}; {choices(truth, asked.items.column_names)}")
    return list(asked.items[truth].to_pylist())


def _seen(asked: Subject, true: list[Any]) -> list[str]:
    """Say how many of the judged items the model was trained on."""
    from fusemix.zeroshot import label_of, seen_notes

    judged = asked.items.filter([label_of(value) is not None for value in true])
    notes = [note for model in _models(asked.model) for note in seen_notes(model, judged)]
    return list(dict.fromkeys(notes))


def _labelled(asked: Subject, true: list[Any] | None, found: "Classification") -> "pa.Table":
    """Return what is written of every item: which it is, its truth where that was given, and its labels."""
    import pyarrow as pa

    from fusemix.zeroshot import label_of

    own = [name for name in ("modality", "id", "value") if name in asked.items.column_names]
    table = asked.items.select(own)
    if true is not None:
        table = table.append_column("truth", pa.array([label_of(value) for value in true], pa.string()))
    for name, column in zip(found.table().column_names, found.table().columns, strict=True):
        table = table.append_column(name, column)
    return table


def _write(found: "Classification", labelled: "pa.Table", out: Path | None, confusion: Path | None) -> None:
    """Write the labels and the picture, each where it was asked for."""
    from fusemix import durable
    from fusemix.curves import rendered
    from fusemix.judgement import draw_confusion

    if out is not None:
        durable.write(out, _file(labelled, out.suffix.lower()))
    if confusion is not None:
        assert found.judgement is not None
        figure = draw_confusion(found.judgement)
        durable.write(confusion, rendered(figure, confusion.suffix.lower().removeprefix(".")))


def _file(table: "pa.Table", form: str) -> bytes:
    import pyarrow.csv
    import pyarrow.parquet

    if form == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()
    sink = BytesIO()
    (pyarrow.csv.write_csv if form == ".csv" else pyarrow.parquet.write_table)(table, sink)
    return sink.getvalue()


def _show(found: "Classification", asked: Subject, out: Path | None, confusion: Path | None) -> None:
    """Print the labels of items that were named, or how many items of an index have each; and what was written."""
    from fusemix.terminal import say

    if asked.whole:
        say(str(found))
    else:
        for row, word in enumerate(asked.items["value"].to_pylist()):
            best = zip(found.places[row].tolist(), found.scores[row].tolist(), strict=True)
            say(f"{word}: {', '.join(f'{found.names[place]} {score:.3f}' for place, score in best)}")
    if out is not None:
        say(f"labels of {len(found):,} items: {out}")
    elif asked.whole:
        say("the labels of every item: -o labels.csv")
    if confusion is not None:
        say(f"confusions: {confusion}")
