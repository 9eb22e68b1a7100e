"""MkDocs hooks: pages that live outside docs/ (benchmark results, CHANGELOG, CONTRIBUTING) become part of the site."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live outside docs/, and a list of the benchmark results."""
    names = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks/results").glob("*.md"))]
    for target, source in PAGES.items() | {(name, name) for name in names}:
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    lines = ["# Benchmarks", "", "Each page has the machine, the versions and the commit.", ""]
    for name in names:
        title = (ROOT / name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"* [{title}]({name})")
    files.append(File.generated(config, "benchmarks.md", content="\n".join(lines) + "\n"))
    return files


def public_names() -> str:
    """One mkdocstrings block for each name that saccade exports, functions first."""
    lines = (ROOT / "src/saccade/__init__.pyi").read_text(encoding="utf-8").splitlines()
    imports = [line.split() for line in lines if line.startswith("from ")]
    names = sorted((name[0].isupper(), name.lower(), f"{module}.{name}") for _, module, _, name, *_ in imports)
    return "\n\n".join(f"::: {path}\n    options:\n      heading_level: 2" for _, _, path in names)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point relative links at the places that pages have in the site."""
    if page.file.src_uri == "reference/api.md":
        return markdown.replace("[PUBLIC NAMES]", public_names())
    if page.file.src_uri in PAGES:
        return markdown.replace("](docs/", "](")
    return markdown.replace("](../../benchmarks/", "](../benchmarks/")
