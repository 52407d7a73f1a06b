"""Sphinx configuration: sphinx-build -W --keep-going -b html docs docs/_build"""

import pyguide

project = "pyguide"
copyright = "the pyguide contributors"
version = release = pyguide.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "figures"]

myst_heading_anchors = 3

# Optional, and large.
autodoc_mock_imports = ["lightning", "torchmetrics", "transformers"]
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
# The docstrings give shapes and dtypes, which annotations do not.
autodoc_typehints = "none"
napoleon_google_docstring = False

# Every reference must have an end, but for the types in docstrings, which are prose, and for
# modules that are not public.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!pyguide\.).*"), ("py:mod", r"pyguide\.ops")]

html_theme = "furo"
html_title = f"pyguide {release}"
