"""`fusemix serve`."""

import os
from typing import Annotated

import typer

from fusemix.arguments import OwnEncoder, Quiet, named
from fusemix.errors import MissingExtraError
from fusemix.verbs.index import IndexFolder


def serve(
    folder: IndexFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; another one needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="FUSEMIX_TOKEN", help="What clients must bring to be let in.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which others call this machine; repeat it for several.")
    ] = None,
    encoder: OwnEncoder = None,
    quiet: Quiet = False,
) -> None:
    """Show an index as a page to search in, and as an HTTP API, until Ctrl-C.

    When `index`, `add` or `remove` write the folder again, the new index is served within a second or two; no search
    fails meanwhile.
    """
    from fusemix.terminal import say

    # Before Pillow is loaded, here and in the decoding processes: what a large picture took, in blocks above those that
    # the allocator keeps for later, goes back to the system when the picture goes.
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
    try:
        from fusemix.server.run import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "serving an index") from error

    def tell(address: str) -> None:
        if not quiet:
            say(f"serving {folder} at {address}{f'#token={token}' if token else ''}  (Ctrl-C ends it)")

    run(
        folder,
        host=host,
        port=port,
        token=token,
        allowed=allow_host or (),
        encoders=named("encoder", encoder),
        ready=tell,
    )
