"""The documentation site: MyST Markdown, the furo theme, tables made from the code."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_ext")]

import raftcore  # noqa: E402 - found through the line above

project = "Guardian"
author = "the Guardian developers"
project_copyright = "2026, the Guardian developers"
version = release = raftcore.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "tables_from_code",
]
exclude_patterns = ["_build", "_ext"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "Guardian"
html_static_path: list[str] = []
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpicky = True
# Signatures may name what has no page of its own: the standard library, and types inside the
# library that users only pass on.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections|pathlib|random|typing|enum|builtins|Path|Self)(\..*)?"),
    (r"py:.*", r"raftcore\.(core|storage|transport|workers|node|runtime|status)\..*"),
    (r"py:.*", r"raftcore\.(sessions|testing)\..*"),
    (r"py:.*", r"raftcore\.(operations|members|metrics|trace)\..*"),
    (r"py:.*", r"(fx|ev|waiters)\..*"),
    (r"py:.*", r"[A-Za-z_]+"),
    (r"py:.*", r"os\.PathLike"),
    (r"py:.*", r".* .*"),  # napoleon takes "what: more" of an attribute's docstring for a type
]
