"""``saccade view``: lays out the desk, says where the page is and what that means, and serves it."""

from __future__ import annotations

import shlex
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from saccade.errors import UsageError
from saccade.features.stores import open_store
from saccade.web.catalog import Desk, lay_out
from saccade.web.discover import is_layered, is_run, read_layered, runs_below
from saccade.web.security import Keys
from saccade.web.server import create_app, listen, serve

ALWAYS = ("random:vit_small_patch16",)
WEIGHTS = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt"})
NAMED = 6  # runs below a folder, in a hint
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
        elif name.startswith(("random:", "timm:")) or is_model(path):
            models.append(name)
        else:
            raise _neither(name)
    return lay_out(folders, (*models, *ALWAYS), tables)


def is_model(path: Path) -> bool:
    """Whether a path looks like a MODEL that is no run: a model folder, or a weights file (FILE@NAME as well)."""
    if path.is_dir():
        return (path / "config.json").is_file() or (path / "model" / "config.json").is_file()
    place = path if path.exists() else path.with_name(path.name.rpartition("@")[0] or path.name)
    return place.is_file() and not WEIGHTS.isdisjoint(place.suffixes)


def _neither(name: str) -> UsageError:
    """What is wrong with a name that is neither a run nor a model; runs one level below it are named."""
    path = Path(name)
    expected = "a run (config.yaml or hierarchy.yaml in it), a model folder, a weights file, random:NAME or timm:NAME"
    if not path.exists():
        return UsageError("no such run", got=name, expected=expected)
    if path.is_file():
        kinds = ", ".join(sorted(WEIGHTS))
        return UsageError("this file is no model", got=name, expected=expected, hint=f"weights files end in {kinds}")
    held = sum(1 for _ in path.iterdir())
    got = f"{name}, an empty folder" if not held else f"{name}, a folder with neither file among its {held:,} entries"
    below = sorted(runs_below(path, depth=1))
    words = " ".join(shlex.quote(str(one)) for one in below[:NAMED]) + (" ..." if len(below) > NAMED else "")
    hint = f"its runs: saccade view {words}" if below else "saccade pretrain DATA --out RUN makes a run"
    return UsageError("this folder is no run", got=got, expected=expected, hint=hint)
