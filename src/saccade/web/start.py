"""``saccade view``: lays out the desk, says where the page is and what that means, and serves it."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from saccade.errors import UsageError
from saccade.tables import open_store
from saccade.web.desk import Desk, lay_out
from saccade.web.folders import is_layered, is_run, read_layered, runs_below
from saccade.web.security import Keys
from saccade.web.server import create_app, listen, serve

ALWAYS = ("random:vit_small_patch16",)
OPEN_TO_OTHERS = """\
Others can reach this page: everybody on the network of {host} who has the address below sees the images, names and
figures of these runs and can make this machine compute. It is not encrypted. Safer: leave out --host and use
  ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"""


def view(
    named: Sequence[str],
    *,
    stores: Sequence[str] = (),
    host: str,
    port: int | None,
    open_browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C. ``named``: run folders, or other MODELs; ``stores``: feature tables. Raises UsageError."""
    desk = lay_out_named(named, stores)
    sock = listen(host, port)
    keys = Keys(host, sock.getsockname()[1])
    if not keys.local:
        say(OPEN_TO_OTHERS.format(host=host, port=keys.port))
    say(keys.url)
    if open_browser:
        # Opened once the server answers: the socket listens already, so the browser waits for it.
        threading.Thread(target=webbrowser.open, args=[keys.url], daemon=True).start()
    serve(create_app(desk, keys), sock)


def lay_out_named(named: Sequence[str], stores: Sequence[str] = ()) -> Desk:
    """Run folders and other models by name; without a name, the runs below the current folder."""
    tables = [store if "://" in store else str(Path(store).resolve()) for store in stores]
    for table in tables:
        open_store(table)  # a misspelt name is said now, not in the browser
    if not named:
        return lay_out(runs_below(Path.cwd()), ALWAYS, tables)
    folders, models = [], []
    for name in named:
        path = Path(name)
        if is_layered(path):
            read_layered(path)  # one that cannot be read is said now, not in the browser
            folders.append(path)
        elif is_run(path):
            folders.append(path)
        elif path.exists() or name.startswith(("random:", "timm:")):
            models.append(name)
        else:
            raise UsageError(
                "no such run",
                got=name,
                hint="a run folder holds config.yaml or hierarchy.yaml; or random:NAME, timm:NAME",
            )
    return lay_out(folders, (*models, *ALWAYS), tables)
