"""Sphinx: `make docs` writes docs/_build/index.html."""

project = "afmol"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = "afmol"
exclude_patterns = ["_build", "study", "figure6"]
autodoc_typehints = "none"  # shapes stand in the docstrings; jaxtyping's strings are no links
