"""Programs in processes of their own that need not import everything anew: each is forked off one that has.

    python warm.py    # reads a JSON request a line, writes an exit code a line

A fresh process would spend three of its four seconds on imports. What a program has imported on its way, the next ones
find there. What is about a process itself (signals, imports, kills) is tested with `python -m fusemix`.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Thread


def run(words, cwd, env, before=""):
    """Run `fusemix WORDS`, after this code; return what `subprocess.run` would."""
    (done,) = _together([("fusemix", words, cwd, env)], before)
    return done


def python(words, cwd, env, before=""):
    """Run `python WORDS`, a script, or -c and code, with its arguments; the same."""
    (done,) = _together([("python", words, cwd, env)], before)
    return done


def ranks(kind, words, cwd, env, count=2):
    """Run `fusemix WORDS` or `python WORDS` in so many processes that find what torchrun would tell them.

    As with torchrun, a process that fails ends the others.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    each = [{**env, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return _together([(kind, words, cwd, one) for one in each])


STAND_IN = """#!{python} -IS
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as asked:
    asked.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    asked.shutdown(socket.SHUT_WR)
    code, out, err = json.load(asked.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@contextmanager
def stand_in(folder):
    """Put a `fusemix` for scripts into this folder: what they ask of it, a fork does."""

    def serve():
        while True:
            asked, _ = server.accept()
            with asked, asked.makefile("rw") as file:
                content = file.read()
                if not content:
                    return
                done = run(*json.loads(content))
                file.write(json.dumps([done.returncode, done.stdout, done.stderr]))

    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        thread = Thread(target=serve)
        thread.start()
        folder.mkdir()
        (folder / "fusemix").write_text(STAND_IN.format(python=sys.executable, port=place[1]))
        (folder / "fusemix").chmod(0o755)
        try:
            yield
        finally:
            socket.create_connection(place).close()
            thread.join()


def _together(programs, before=""):
    """Run these programs, all at a time."""
    with ExitStack() as stack:
        files = [[stack.enter_context(NamedTemporaryFile("w+")) for _ in range(3)] for _ in programs]
        requests = [
            {"kind": kind, "words": list(map(str, words)), "cwd": str(cwd), "env": env, "before": before}
            | {"files": [file.name for file in pair]}
            for (kind, words, cwd, env), pair in zip(programs, files, strict=True)
        ]
        server = _server()
        server.stdin.write(json.dumps(requests) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        return [
            subprocess.CompletedProcess(request["words"], code, *(Path(file.name).read_text() for file in pair[:2]))
            for request, code, pair in zip(requests, codes, files, strict=True)
        ]


@cache
def _server():
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdout.close)
    atexit.register(server.wait)  # last in, first out: it ends when nothing can come any more
    atexit.register(server.stdin.close)
    return server


def serve():
    """Import what commands need, then fork a process for each request."""
    import fusemix
    import fusemix.cli

    for name in fusemix.__all__:
        getattr(fusemix, name)
    import_module("torch._dynamo")  # the first step of an optimiser would, for a second and in every fork
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        children, requests = [], json.loads(line)
        for request in requests:
            child = os.fork()
            if not child:
                become(request)
                exec(request["before"], {})
                code = _leave(fusemix.cli.main if request["kind"] == "fusemix" else _python)
                Path(request["files"][2]).write_text("\n".join(filter(_lasting, list(sys.modules))))
                os._exit(code)
            children.append(child)
        codes = _wait(children)
        names = [name for request in requests for name in Path(request["files"][2]).read_text().split()]
        answers.write(json.dumps(codes) + "\n")
        answers.flush()
        for name in names:
            with suppress(Exception):
                import_module(name)


def _lasting(name):
    """Tell whether a module is of Python or an installed library, or ours, and no file of a test."""
    file = getattr(sys.modules[name], "__file__", None) or ""
    return name.startswith("fusemix.") or (file.startswith((sys.prefix, sys.base_prefix)) and name != "__main__")


def _wait(children):
    """Return the exit codes of processes; one that fails ends the others."""
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - codes.keys():
                os.kill(other, signal.SIGTERM)
    return [codes[child] for child in children]


def _python():
    """Do what `python` does with the words of a command line."""
    if sys.argv[0] != "-c":
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    code = sys.argv.pop(1)
    sys.path[0] = ""
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _leave(main):
    """Run a program, and what is done at its end; return its exit code. To let go of all memory would take a second."""
    try:
        main()
        code = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def become(request):
    """Take the folder, environment, arguments and files of a request."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for place, name in enumerate([os.devnull, *request["files"][:2]]):
        os.dup2(os.open(name, os.O_RDONLY if place == 0 else os.O_WRONLY), place)
    sys.argv = ["fusemix", *request["words"]] if request["kind"] == "fusemix" else request["words"]
    sys.path[0] = str(Path.cwd())  # as `python -m` has it


if __name__ == "__main__":
    serve()
