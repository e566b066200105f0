"""Commands in processes of their own that need not import everything anew: each is forked off one that has.

    python warm.py    # reads a JSON request a line, writes an exit code a line

A fresh process would spend three of its four seconds on imports. What is about a process itself (signals, imports,
kills) is tested with `python -m fusemix`, as are the commands of the README.
"""

import atexit
import json
import os
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile


def run(words, cwd, env):
    """Run `fusemix WORDS`; return what `subprocess.run` would."""
    with NamedTemporaryFile("w+") as out, NamedTemporaryFile("w+") as err:
        request = {"words": words, "cwd": str(cwd), "env": env, "out": out.name, "err": err.name}
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


@cache
def _server():
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.wait)  # last in, first out: it ends when nothing can come any more
    atexit.register(server.stdin.close)
    return server


def serve():
    """Import what commands need, then fork a process for each request."""
    import fusemix
    import fusemix.cli

    for name in fusemix.__all__:
        getattr(fusemix, name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(json.loads(line))
            os._exit(_leave(fusemix.cli.main))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(f"{code}\n")
        answers.flush()


def _leave(main):
    """Run a command, and what is done at its end; return its exit code. To let go of all memory would take a second."""
    try:
        main()
        code = 0
    except SystemExit as stop:
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
    for place, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        os.dup2(os.open(name, os.O_RDONLY if place == 0 else os.O_WRONLY), place)
    sys.argv = ["fusemix", *request["words"]]
    sys.path[0] = str(Path.cwd())  # as `python -m` has it


if __name__ == "__main__":
    serve()
