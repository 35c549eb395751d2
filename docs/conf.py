"""The documentation as a site: `make docs` builds it into build/site, and warnings are errors."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from colorcore import __version__  # noqa: E402

project = "colorcore"
author = "the colorcore authors"
copyright = f"{author}, Apache-2.0"  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "from_code",
]
root_doc = "index"
exclude_patterns = ["_ext"]
suppress_warnings = ["misc.highlighting_failure"]

# Pages are read on the code host, too: plain Markdown, with links from file to file.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
smartquotes = False  # which would make a dash of the two hyphens of --option
# A test runs the notebook; the site shows what is stored in it.
nb_execution_mode = "off"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autodoc_mock_imports: list[str] = []
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"colorcore {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
