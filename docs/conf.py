"""Sphinx's settings for the site: bash .ci/docs FOLDER."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import anatpaste_aug

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # order.py, and the examples that pages show
REPOSITORY = "https://github.com/anatpaste-aug/anatpaste-aug"

project = "anatpaste-aug"
author = "The anatpaste-aug authors"
copyright = author
version = release = anatpaste_aug.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "myst_parser",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "illustrated", "_templates"]
templates_path = ["_templates"]
default_role = "autolink"  # `lung_mask` in a docstring: a link where there is such a thing
nitpicky = True
# Other projects' names, which lead nowhere without a network; names of fields and of modules.
nitpick_ignore_regex = [
    ("py:obj", r"(torch|torchvision|tv_tensors)(\..*)?"),
    ("py:obj", "needs_lungs|sampler|titles|anatpaste|cutpaste|opacity"),
]

# Pages in Markdown.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Docstrings.
autosummary_generate = True
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"
autodoc_mock_imports = ["monai"]  # large, and nothing of it is shown
numpydoc_show_class_members = False

# Illustrated pages: scripts that are run by the build, and draw their own pictures.
sphinx_gallery_conf = {
    "examples_dirs": "illustrated",
    "gallery_dirs": "auto_illustrated",
    "filename_pattern": r"\.py",
    "within_subsection_order": "order.Reading",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "capture_repr": (),
    "image_srcset": ["2x"],
}

html_theme = "pydata_sphinx_theme"
html_title = "anatpaste-aug"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "github_url": REPOSITORY,
    "navbar_align": "left",
    "show_prev_next": True,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


# What pages show of the repository: links to it lead to the page.
PAGES = {"examples/README.md": "reproduce.md", "examples/RESULTS.md": "results.md"}


def lead_out(app: object, relative: Path, parent: str, content: list[str]) -> None:
    """Make the links of an included file lead to the page of that file, or into the repository."""
    included = (HERE / relative).resolve()
    root = HERE.parent

    def absolute(link: re.Match[str]) -> str:
        target = (included.parent / link[2]).resolve()
        name = target.relative_to(root).as_posix()
        if target.parent == HERE:  # a page or a picture of this folder
            return f"{link[1]}/{target.name}{link[3]}"
        if name in PAGES:
            return f"{link[1]}/{PAGES[name]}{link[3]}"
        return f"{link[1]}{REPOSITORY}/blob/main/{name}{link[3]}"

    if HERE not in included.parents:
        pattern = r"(\]\()(?!https?:|#)([^)#\s]+)((?:#[^)]*)?\))"
        content[0] = re.sub(pattern, absolute, content[0])


def frame(app: object, name: str, template: str, context: dict[str, str], tree: object) -> None:
    """Put each picture of several that a script drew into a frame of its own, which can scroll."""
    pattern = r'<img [^>]*alt="[^"]*, [^>]*"sphx-glr-single-img"/>'
    context["body"] = re.sub(pattern, r'<div class="picture">\g<0></div>', context.get("body", ""))


def setup(app: object) -> None:
    """Connect what happens to included files, and to pages."""
    app.connect("include-read", lead_out)  # type: ignore[attr-defined]
    app.connect("html-page-context", frame)  # type: ignore[attr-defined]
