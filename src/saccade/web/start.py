"""``saccade view``: collects runs and models, prints the address of the page and serves it."""

from __future__ import annotations

import contextlib
import html
import os
import shlex
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from saccade.errors import UsageError
from saccade.features.stores import open_store
from saccade.web.catalog import Catalog, build_catalog
from saccade.web.discover import is_layered, is_run, read_layered, runs_below
from saccade.web.security import Keys
from saccade.web.server import create_app, listen, serve

ALWAYS = ("random:vit_small_patch16",)
WEIGHTS = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt"})
NAMED = 6  # runs below a folder, in a hint
REDIRECT = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>saccade</title>
<meta http-equiv="refresh" content="0;url={url}"></head><body><a href="{url}">saccade view</a></body></html>
"""
OPEN_TO_OTHERS = """\
This page is reachable by others: anyone on the network of {host} who has the address below sees the images, names and
results of these runs and can run computations on this machine. It is not encrypted. Safer: leave out --host and use
  ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"""


def view(
    names: Sequence[str],
    *,
    stores: Sequence[str] = (),
    host: str,
    port: int | None,
    open_browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C.

    Parameters
    ----------
    names : sequence of str
        Run folders or other MODELs.
    stores : sequence of str
        Feature tables.
    host, port
        Listening address.
    open_browser : bool
        Open the page in a browser.
    say : callable
        Prints one line.

    Raises
    ------
    UsageError
        A name is neither a run nor a model, or the address cannot be listened on.
    """
    catalog = catalog_of_names(names, stores)
    sock = listen(host, port)
    keys = Keys(host, sock.getsockname()[1], announce=lambda url: say(f"for another browser: {url}"))
    if not keys.local:
        say(OPEN_TO_OTHERS.format(host=host, port=keys.port))
    say(keys.new_url())
    with contextlib.ExitStack() as stack:
        if open_browser:
            page = stack.enter_context(redirect_file(keys.new_url()))
            # Opened once the server answers: the socket listens already, so the browser waits for it.
            threading.Thread(target=webbrowser.open, args=[page.as_uri()], daemon=True).start()
        serve(create_app(catalog, keys), sock)


@contextlib.contextmanager
def redirect_file(url: str) -> Iterator[Path]:
    """A page that leads to ``url`` and that only its owner can read (mode 0600); removed at the end.

    The command line of a browser is in the list of processes, for every user of the machine. It gets the name of this
    file instead of an address with a token.
    """
    descriptor, name = tempfile.mkstemp(prefix="saccade-", suffix=".html")  # 0600 from the start
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(REDIRECT.format(url=html.escape(url, quote=True)))
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def catalog_of_names(names: Sequence[str], stores: Sequence[str] = ()) -> Catalog:
    """Run folders and other models by name; without names, the runs below the current folder."""
    tables = [store if "://" in store else str(Path(store).resolve()) for store in stores]
    for table in tables:
        open_store(table)  # a misspelt name is reported now, not in the browser
    if not names:
        return build_catalog(runs_below(Path.cwd()), ALWAYS, tables)
    folders, models = [], []
    for name in names:
        path = Path(name)
        if is_layered(path):
            read_layered(path)  # an unreadable one is reported now, not in the browser
            folders.append(path)
        elif is_run(path):
            folders.append(path)
        elif name.startswith(("random:", "timm:")) or is_model(path):
            models.append(name)
        else:
            raise _neither(name)
    return build_catalog(folders, (*models, *ALWAYS), tables)


def is_model(path: Path) -> bool:
    """Whether a path is a MODEL that is not a run: a model folder, or a weights file (also FILE@NAME)."""
    if path.is_dir():
        return (path / "config.json").is_file() or (path / "model" / "config.json").is_file()
    file = path if path.exists() else path.with_name(path.name.rpartition("@")[0] or path.name)
    return file.is_file() and not WEIGHTS.isdisjoint(file.suffixes)


def _neither(name: str) -> UsageError:
    """The error for a name that is neither a run nor a model; runs one level below it are suggested."""
    path = Path(name)
    expected = "a run (config.yaml or hierarchy.yaml in it), a model folder, a weights file, random:NAME or timm:NAME"
    if not path.exists():
        return UsageError("no such run", got=name, expected=expected)
    if path.is_file():
        kinds = ", ".join(sorted(WEIGHTS))
        return UsageError("this file is not a model", got=name, expected=expected, hint=f"weights files end in {kinds}")
    held = sum(1 for _ in path.iterdir())
    got = f"{name}, an empty folder" if not held else f"{name}, a folder with neither file among its {held:,} entries"
    below = sorted(runs_below(path, depth=1))
    words = " ".join(shlex.quote(str(run)) for run in below[:NAMED]) + (" ..." if len(below) > NAMED else "")
    hint = f"its runs: saccade view {words}" if below else "saccade pretrain DATA --out RUN creates a run"
    return UsageError("this folder is not a run", got=got, expected=expected, hint=hint)
