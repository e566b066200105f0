"""`fusemix classify`: items named by the class whose texts land nearest."""

import json
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fusemix.arguments import Decode, Json, OwnEncoder, Quiet, named
from fusemix.errors import DataError, EncoderError, StoreError, choices
from fusemix.verbs.index import Where

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from fusemix.progress import Progress
    from fusemix.search.index import Index
    from fusemix.search.space import Space
    from fusemix.zeroshot import Classification

FORMS = (".csv", ".parquet", ".jsonl")
PICTURES = (".png", ".svg")
ITEMS_PER_BLOCK = 256  # raw items that are in memory at a time


class Subject(NamedTuple):
    """What is classified.

    Attributes:
        space: embeds the names of the classes.
        items: columns modality, id and value, N rows.
        embeddings: (N, S).
        columns: of all items of an index; None for items that were named.
        rows: (N,) those of an index that are classified; None for all.
    """

    space: "Space"
    items: "pa.Table"
    embeddings: "Tensor"
    columns: "pa.Table | None" = None
    rows: "Tensor | None" = None


def classify(
    source: Annotated[
        Path,
        typer.Argument(metavar="INDEX_OR_MODEL", help="Folder of an index, for its items; or of a model, for ITEMS."),
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
    where: Where = None,
    names: Annotated[
        str | None, typer.Option(help="Modality that encodes the class names (default: the only one of texts).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Labels of every item: a .csv, .parquet or .jsonl file.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Picture of which class is taken for which: a .png or .svg file.")
    ] = None,
    encoder: OwnEncoder = None,
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
    templates = _templates(template)
    encoders, decoders = named("encoder", encoder), named("decode", decode)
    space, index = _open(source, items or [], [*(where or []), *([truth] if truth is not None else [])])
    for name in {**encoders, **decoders}:
        space.use_encoder(name, encoders.get(name), decode=decoders.get(name))
    asked = _part(index, where or [], modality) if index is not None else None
    given = _items(space, items or [], modality, encoders) if index is None else []
    true = _column(truth, asked) if truth is not None and asked is not None else None
    chosen, origin = _classes(classes, asked)
    reader = _reader(space, names)
    _check_encoder(space, reader, encoders)
    # Several models of one space have no common temperature.
    temperature = float(space.facts_["temperature"]) if len(space.models) == 1 else None
    with Bars(quiet) as bars:
        embedded = class_embeddings(space, chosen, templates, reader, bars)
        asked = asked or _embedded(space, given, bars)
    found = zero_shot(asked.embeddings, embedded, chosen, true, k=k, temperature=temperature)
    if true is not None:
        found = replace(found, notes=_seen(asked, true))
    labelled = _labelled(asked, true, found)
    _write(found, labelled, out, confusion)
    if as_json:
        about = {"source": str(source), "classes_from": origin, "templates": templates, "temperature": temperature}
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


def _open(source: Path, items: list[str], columns: list[str]) -> "tuple[Space, Index | None]":
    """Open an index, or a model for items that are named; only an index has columns to speak of."""
    import fusemix as fm
    from fusemix.search.space import Space

    if (source / "adapters.safetensors").is_file():
        if not items:
            raise DataError(f"{source} is a model: name the files or words to classify, or give an index instead")
        if columns:
            raise DataError(f"{columns[0]!r}: only an index has columns, and {source} is a model; see `fusemix index`")
        return Space([fm.FuseMix.load(source)]), None
    if not (source / "facts.json").is_file():
        raise StoreError(f"{source} holds neither an index nor a model; make one with `fusemix index` or `fusemix fit`")
    if items:
        raise DataError(f"{source} is an index, whose own items are classified; for {items[0]!r} give a model's folder")
    index = fm.open_index(source)
    return index.space, index


def _part(index: "Index", where: list[str], modality: str | None) -> Subject:
    """Return the items of an index that fulfil all conditions."""
    columns = index.columns
    for name in ("modality", "id", "value"):  # unless the user has such columns
        if name not in columns.column_names:
            columns = columns.append_column(name, index.items[name])
    rows = index.rows(where, modality)
    if rows is None:
        return Subject(index.space, index.items, index.embeddings, columns)
    if not len(rows):
        conditions = [*where, *([f"modality = {modality}"] if modality is not None else [])]
        raise DataError(f"none of the {len(index):,} items of the index fulfils {' and '.join(conditions)}")
    return Subject(index.space, index.items.take(rows.numpy()), index.embeddings[rows], columns, rows)


def _check_encoder(space: "Space", modality: str, encoders: Mapping[str, str]) -> None:
    """Say what to pass where a folder names code that it may not run."""
    from fusemix.encoders import runs_code

    source = space.sides_[modality].source
    if modality not in encoders and runs_code(source):
        raise EncoderError(
            f"{modality!r} was encoded by {source}; a saved model never runs code by itself: "
            f"name the encoder yourself, --encoder {modality}={source}"
        )


def _items(
    space: "Space", words: list[str], modality: str | None, encoders: Mapping[str, str]
) -> list[tuple[str | Path, str]]:
    """Say of each word what it is: a text or a file, and its modality."""
    from fusemix.queries import modality_of

    sides = space.sides_
    if modality not in (None, *sides):
        raise DataError(f"--from: the model has no modality {modality!r}; {choices(str(modality), sides)}")
    raw = [_raw(word, sides[modality].kind if modality is not None else None) for word in words]
    kinds = [modality or modality_of(item, sides) for item in raw]
    for kind in dict.fromkeys(kinds):
        _check_encoder(space, kind, encoders)
    return list(zip(raw, kinds, strict=True))


def _embedded(space: "Space", items: list[tuple[str | Path, str]], progress: "Progress") -> Subject:
    """Embed texts and files, those of one modality together."""
    import pyarrow as pa
    import torch

    found: dict[int, Any] = {}
    for kind in dict.fromkeys(kind for _, kind in items):
        rows = [row for row, (_, other) in enumerate(items) if other == kind]
        for start in range(0, len(rows), ITEMS_PER_BLOCK):
            block = rows[start : start + ITEMS_PER_BLOCK]
            found.update(zip(block, space.embed([items[row][0] for row in block], kind), strict=True))
            progress(f"embed {kind}", start + len(block), len(rows))
    embeddings = torch.stack([torch.as_tensor(found[row]) for row in range(len(items))])
    words, kinds = [str(raw) for raw, _ in items], [kind for _, kind in items]
    return Subject(space, pa.table({"modality": kinds, "id": words, "value": words}), embeddings)


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


def _reader(space: "Space", given: str | None) -> str:
    """Return the modality that encodes the names of classes."""
    texts = [name for name, side in space.sides_.items() if side.kind == "text"]
    if given is not None and given not in texts:
        raise DataError(f"--names {given}: the model has no modality of texts of this name; {choices(given, texts)}")
    if given is None and len(texts) != 1:
        known = ", ".join(f"{name} ({side.kind})" for name, side in space.sides_.items())
        step = "say which with --names" if texts else "classes need a model that was fitted on texts"
        raise DataError(f"cannot tell what encodes the names of the classes: the model has {known}; {step}")
    return str(given or texts[0])


def _classes(words: str, asked: Subject | None) -> tuple[list[str], str]:
    """Return the names of the classes, and where they come from: a file, else a column, else the words themselves."""
    from fusemix.data.media import is_file
    from fusemix.zeroshot import label_of

    path, table = Path(words), asked.columns if asked is not None else None
    columns = table.column_names if table is not None else []
    if is_file(path):
        column = ", not the values of that column" if words in columns else ""
        return _lines(path, "--classes"), f"the lines of the file {words}{column}"
    if table is not None and words in columns:
        found = {label_of(value) for value in table[words].to_pylist()} - {None}
        return sorted(str(name) for name in found), f"the values of the column {words!r}"
    if "," not in words:
        there = f"no column of the index ({', '.join(columns)})" if columns else "one name alone is no choice"
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
    assert asked.columns is not None
    if truth not in asked.columns.column_names:
        raise DataError(f"--truth: the index has no column {truth!r}; {choices(truth, asked.columns.column_names)}")
    column = asked.columns[truth]
    return list((column if asked.rows is None else column.take(asked.rows.numpy())).to_pylist())


def _seen(asked: Subject, true: list[Any]) -> list[str]:
    """Say how many of the judged items were trained on."""
    from fusemix.zeroshot import label_of, seen_notes

    judged = asked.items.filter([label_of(value) is not None for value in true])
    notes = [note for model in asked.space.models for note in seen_notes(model, judged)]
    return list(dict.fromkeys(notes))


def _labelled(asked: Subject, true: list[Any] | None, found: "Classification") -> "pa.Table":
    """Return what is written of every item: which it is, its truth where that was given, and its labels."""
    import pyarrow as pa

    from fusemix.zeroshot import label_of

    table = asked.items
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

    if asked.columns is not None:
        say(str(found))
    else:
        for row, word in enumerate(asked.items["value"].to_pylist()):
            best = zip(found.places[row].tolist(), found.scores[row].tolist(), strict=True)
            say(f"{word}: {', '.join(f'{found.names[place]} {score:.3f}' for place, score in best)}")
    if out is not None:
        say(f"labels of {len(found):,} items: {out}")
    elif asked.columns is not None:
        say("the labels of every item: -o labels.csv")
    if confusion is not None:
        say(f"confusions: {confusion}")
