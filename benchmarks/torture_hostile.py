"""Two hundred folders that try to run code or to write elsewhere, opened by fusemix under an audit hook.

python benchmarks/torture_hostile.py [--every N] [--keep FOLDER]

A process opens one folder after the other through `load_encoder`, `read_pairs` and `extract`, `FuseMix.load`,
`open_latents` and `open_index`, and encodes with what it gets. A hook in it and in all its children records code of
these folders that is compiled, executed or imported, every unpickled name, started program, connection and file
opened for writing outside of the output folder. Independently, every payload leaves a mark if it runs, all files are
compared before and after, and a server counts who calls. At last, the same folders are given to loaders known to be
unsafe: the hook must catch each of them, or its silence means nothing.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from goals import leave, result
from hostile_folders import AUTO, Bait, Case, Payload, all_cases, edit, make_healthy, scatter

HOOK = """
import os, sys
if os.environ.get("HOSTILE_LOG"):
    _fd = os.open(os.environ["HOSTILE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _root, _out = os.environ["HOSTILE_ROOT"], os.environ["HOSTILE_OUT"]
    _busy = []
    _always = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "pickle.find_class"}
    _calls = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "http.client.connect"}
    _changes = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
                "os.chown", "os.utime", "shutil.copyfile", "shutil.move", "shutil.rmtree", "shutil.unpack_archive"}
    _own = ["-m", "fusemix.data.worker"]

    def _within(path, folder):
        return isinstance(path, str) and (os.path.realpath(path) + "/").startswith(folder + "/")

    def _foreign(code):
        return _within(code.co_filename, _root) or "FOREIGN_CODE" in repr((code.co_names, code.co_consts))

    def _writes(event, args):
        if event == "open":
            path, mode, flags = args
            changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            paths = [path] if isinstance(flags, int) and flags & changing else []
        else:
            paths = args[:2] if event in ("os.rename", "os.link", "shutil.copyfile", "shutil.move") else args[:1]
            paths = [args[1]] if event in ("os.symlink", "shutil.copyfile", "shutil.unpack_archive") else paths
        paths = [os.fsdecode(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]
        return [path for path in paths if path != "/dev/null" and not _within(path, _out)]

    def _verdict(event, args):
        if event in _always:
            return "code", args
        if event in _calls:
            return "connection", args
        if event == "open" or event in _changes:
            outside = _writes(event, args)
            return ("write", outside) if outside else None
        if event == "subprocess.Popen" and list(args[1])[1:] != _own:
            return "code", args[:2]
        if event == "exec" and hasattr(args[0], "co_filename") and _foreign(args[0]):
            return "code", args
        if event == "compile" and (_within(args[1], _root) or "FOREIGN_CODE" in repr(args[0])):
            return "code", args[1]
        if event == "import" and "evil" in str(args[0]):
            return "code", args[0]
        if event == "ctypes.dlopen" and _within(args[0], _root):
            return "code", args
        if event == "marshal.loads" and b"FOREIGN_CODE" in bytes(args[0]):
            return "code", event
        return None

    def _hook(event, args):
        case = os.environ.get("HOSTILE_CASE")
        if not case or _busy:
            return
        _busy.append(1)
        try:
            found = _verdict(event, args)
            if found:
                what, detail = found
                os.write(_fd, (what + "\\t" + case + "\\t" + event + "\\t" + repr(detail)[:300] + "\\n").encode())
        finally:
            _busy.pop()

    sys.addaudithook(_hook)
"""


# ---- opening ---------------------------------------------------------------------------------------------------------


def sample(kind: str) -> list[Any]:
    """Two items for an encoder."""
    import numpy as np
    from PIL import Image

    from fusemix.sound import Sound

    made = {"text": ["a red kite", ""], "image": [Image.new("RGB", (20, 20))] * 2,
            "audio": [Sound(np.zeros(2000, np.float32), 16_000)] * 2}  # fmt: skip
    return made[kind]


def count_items(items: list[Any]) -> list[list[float]]:
    """A harmless encoder of anything."""
    return [[float(len(str(item))), 1.0] for item in items]


def open_encoder(place: Any, kind: str, out: Path) -> None:
    """Load an encoder and use it."""
    from fusemix.encoders import load_encoder

    load_encoder(str(place), kind).encode(sample(kind))


def open_pairs(place: Any, kind: str, out: Path) -> None:
    """Read a table or a folder and encode all there is."""
    import fusemix as fm

    path = next(iter(sorted(place.glob("table.csv"))), place) if place.is_dir() else place
    first = "sound" if path.suffix == ".csv" and path.read_bytes().startswith(b"sound") else "image"
    pairs = fm.read_pairs(path, **{first: first, "text": "text"})
    fm.extract(pairs, out=out, max_failed=1.0, **{first: count_items, "text": count_items})


def open_vectors(place: Any, kind: str, out: Path) -> None:
    """Take precomputed vectors from a file."""
    import fusemix as fm

    pairs = fm.read_pairs(place.parent / "table.csv", image="image", text="text")
    fm.extract(pairs, image=place, text=count_items, out=out)


def open_model(place: Any, kind: str, out: Path) -> None:
    """Open a saved model and give it a text."""
    import fusemix as fm

    fm.FuseMix.load(place).embed(["a red kite"], "text")


def open_saved_index(place: Any, kind: str, out: Path) -> None:
    """Open a saved index and search in it."""
    import fusemix as fm

    fm.open_index(place).search("a red kite", modality="text")


def open_saved_latents(place: Any, kind: str, out: Path) -> None:
    """Open latents and read them."""
    import fusemix as fm

    latents = fm.open_latents(place)
    print(*(float(latents[name].latents.sum()) for name in latents), file=sys.stderr)


WAYS: dict[str, Callable[[Any, str, Path], None]] = {
    "encoder": open_encoder, "pairs": open_pairs, "tar": open_pairs, "vectors": open_vectors, "model": open_model,
    "index": open_saved_index, "latents": open_saved_latents,
}  # fmt: skip


def unsafe_ways(folder: Path, bait: Bait) -> dict[str, Callable[[], Any]]:
    """Loaders that are known to run what they read: what the hook must not miss."""
    import numpy as np
    import torch
    import transformers as hf

    bait.copy("text", folder)
    scatter(folder, bait)
    (folder / "pytorch_model.bin").write_bytes(bait.pickle())
    edit(folder / "config.json", auto_map=AUTO, model_type="evil")
    np.save(folder / "objects.npy", np.array([Payload(bait.code())], dtype=object), allow_pickle=True)
    with tarfile.open(folder / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../../outside/unpacked.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))

    def unpack() -> None:
        with tarfile.open(folder / "evil.tar") as tar:
            tar.extractall(folder, filter="fully_trusted")

    def from_path() -> None:
        sys.path.insert(0, str(folder))
        try:
            __import__("evil")
        finally:
            sys.path.remove(str(folder))
            sys.modules.pop("evil", None)

    host, port = bait.address.split(":")
    return {
        "pickle.load": lambda: pickle.loads(bait.pickle()),
        "torch.load": lambda: torch.load(folder / "pytorch_model.bin", weights_only=False),
        "numpy.load": lambda: np.load(folder / "objects.npy", allow_pickle=True),
        "transformers that trusts code": lambda: hf.AutoConfig.from_pretrained(folder, trust_remote_code=True),
        "tar.extractall": unpack,
        "import": from_path,
        "exec": lambda: exec((folder / "evil.py").read_text(), {}),
        "torch.load of weights only": lambda: torch.load(io.BytesIO(b""), weights_only=True),
        "os.system": lambda: os.system("true"),
        "subprocess": lambda: subprocess.run(["true"], check=True),
        "a connection": lambda: socket.create_connection((host, int(port))).close(),
        "a file elsewhere": lambda: (bait.outside / "written.txt").write_text("evil"),
        "a folder elsewhere": lambda: (bait.outside / "made").mkdir(),
    }


# ---- the process that opens ------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    found = [path for path in folder.rglob("*") if not path.is_symlink() and path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def open_all(root: Path, address: str, every: int, first: int, unsafe: bool) -> None:
    """Open the folders from number `first` on; print one line of JSON for each."""
    bait, out = Bait(root, address), Path(os.environ["HOSTILE_OUT"])
    if not (root / "healthy").exists():
        make_healthy(root / "healthy")
    watch_torch_load()
    if unsafe:
        (root / "hostile" / "unsafe").mkdir(parents=True)
        bait.name = "unsafe"
        tasks = unsafe_ways(root / "hostile" / "unsafe", bait)
    else:
        tasks = {}
        for number, case in list(enumerate(all_cases()))[::every][first:]:
            folder = root / "hostile" / f"{number:03d}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            bait.name = f"{number:03d}"
            place = case.make(folder, bait) or folder
            tasks[f"{number:03d} {case.name}"] = _task(case, place, out / f"{number:03d}")
    print(json.dumps({"started": len(tasks)}), flush=True)
    before = tree(root / "hostile") | tree(bait.outside)
    for name, task in tasks.items():
        os.environ["HOSTILE_CASE"] = name
        ending = _ending(task)
        os.environ["HOSTILE_CASE"] = ""
        print(json.dumps({"case": name, "ending": ending}), flush=True)
    after = tree(root / "hostile") | tree(bait.outside)
    print(json.dumps({"changed": sorted(path for path in before | after if before.get(path) != after.get(path))}))


def watch_torch_load() -> None:
    """Record every call of torch.load: what it reads is a pickle, whatever it promises."""
    import torch

    unsafe = torch.load

    def load(file: Any, *args: Any, **options: Any) -> Any:
        with Path(os.environ["HOSTILE_LOG"]).open("a") as log:
            log.write(f"code\t{os.environ['HOSTILE_CASE']}\ttorch.load\t{file}\n")
        return unsafe(file, *args, **options)

    torch.load = load


def _task(case: Case, place: Any, out: Path) -> Callable[[], None]:
    return lambda: WAYS[case.way](place, case.kind, out)


def _ending(task: Callable[[], Any]) -> str:
    from fusemix.errors import FusemixError

    try:
        task()
    except FusemixError as error:
        return f"refused: {type(error).__name__}: {error}"
    except Exception as error:
        return f"raised: {type(error).__name__}: {error}"
    return "opened"


# ---- the process that watches ----------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What one run came to: endings by case, events as [what, case, event, detail], files changed, calls, deaths."""

    endings: dict[str, str]
    events: list[list[str]]
    changed: list[str]
    marks: list[str]
    calls: int
    deaths: int


def watch(root: Path, every: int, unsafe: bool = False) -> Found:
    """Open the folders in another process; a death costs one folder."""
    hook, out, log = root / "hook", root / "out", root / "out" / "log"
    for folder in (hook, out / "tmp"):
        folder.mkdir(parents=True)
    (hook / "sitecustomize.py").write_text(HOOK)
    log.touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[Any] = []
        threading.Thread(target=_count, args=(server, calls), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        paths = [str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "HOSTILE_CASE": "",
            "TMPDIR": str(out / "tmp"), "HOME": str(root / "home"), "HF_HOME": str(root / "home" / "hf"),
            "HOSTILE_ROOT": str(root / "hostile"), "HOSTILE_OUT": str(out), "HOSTILE_LOG": str(log),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)  # a connection must be tried to be seen
        command = [sys.executable, __file__, "--open", str(root), "--address", address, "--every", str(every)]
        command += ["--unsafe"] if unsafe else []
        lines: list[dict[str, Any]] = []
        deaths = 0
        while not any("changed" in line for line in lines):
            opened = sum("case" in line for line in lines)
            done = subprocess.run(
                [*command, "--first", str(opened + deaths)], env=environment, cwd=out, stdout=subprocess.PIPE,
                stderr=(root / "stderr").open("wb"), text=True, check=False,
            )  # fmt: skip
            found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            if not found:
                raise RuntimeError((root / "stderr").read_text()[-3000:])
            lines += found
            deaths += done.returncode != 0
    endings = {line["case"]: line["ending"] for line in lines if "case" in line}
    changed = [path for line in lines for path in line.get("changed", ())]
    events = [line.split("\t", 3) for line in log.read_text(errors="replace").splitlines()]
    marks = sorted(path.name for path in (root / "marks").iterdir())
    return Found(endings, events, changed, marks, len(calls), deaths)


def _count(server: socket.socket, calls: list[Any]) -> None:
    while True:
        try:
            calls.append(server.accept())
        except OSError:
            return


def main() -> None:
    """Run both parts and print a RESULT line per goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1, help="only every Nth folder")
    parser.add_argument("--keep", type=Path, help="work in this new folder and keep it")
    for name in ("--open", "--address"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--unsafe", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        open_all(Path(given.open), given.address, given.every, given.first, given.unsafe)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = (given.keep or Path(temporary)).resolve()
        safe = watch(root / "safe", given.every)
        (root / "unsafe").mkdir()
        (root / "unsafe" / "healthy").symlink_to(root / "safe" / "healthy")
        report(safe, watch(root / "unsafe", 1, unsafe=True), given.every)


def report(safe: Found, unsafe: Found, every: int) -> None:
    """Print what was found."""
    for name, ending in safe.endings.items():
        print(f"{name}: {ending.splitlines()[0][:160] if ending else ''}")
    for event in safe.events:
        print("EVENT", *event)
    wanted = 200 // every
    of = {what: [event for event in safe.events if event[0] == what] for what in ("code", "write", "connection")}
    raised = [name for name, ending in safe.endings.items() if ending.startswith("raised")]
    caught = {event[1] for event in unsafe.events}
    missed = [name for name in unsafe.endings if name not in caught]
    print("untyped errors:", *raised, sep="\n  ")
    print("missed by the hook:", missed, "changed:", safe.changed, "marks:", safe.marks)
    result("hostile: folders opened", len(safe.endings), f">= {wanted}", lambda v: v >= wanted)
    result("hostile: foreign code run", len(of["code"]) + len(safe.marks), "0", lambda v: v == 0)
    result("hostile: files written outside", len(of["write"]) + len(safe.changed), "0", lambda v: v == 0)
    result("hostile: connections", len(of["connection"]) + safe.calls, "0", lambda v: v == 0)
    result("hostile: process deaths", safe.deaths, "0", lambda v: v == 0)
    result("hostile: errors without a type of ours", len(raised), "0", lambda v: v == 0)
    result(
        "hostile: unsafe loaders that the hook missed", len(missed), "0 of 13", lambda v: v == 0 and len(caught) >= 13
    )


if __name__ == "__main__":
    main()
    leave()
