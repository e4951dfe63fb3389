"""Shows the notebook as a page of the site: Markdown with its stored outputs, which needs no script and no network."""

from __future__ import annotations

import json
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        cells = json.loads(file.content_string)["cells"]
        content = "\n\n".join(part for cell in cells for part in _parts(cell))
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to a notebook, which a repository's browser shows, lead to its page; show tables that fold."""
    return markdown.replace(".ipynb)", ".md)").replace("\n<details>\n", "\n<details markdown>\n")


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    return [f"```python\n{source}\n```", *map(_shown, cell["outputs"])]


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return "".join(data["text/html"])
    text = "".join(output.get("text") or data["text/plain"]).rstrip()
    return f"```text\n{text}\n```"
