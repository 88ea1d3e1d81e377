"""The documentation site: the repository's own pages where they lie, and the reference from the docstrings.

The source folder is the repository, so that a link from one page to another is the same on the site and on a file
browser; only what `include_patterns` names becomes a page.
"""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
os.environ["COLUMNS"] = "100"  # of the help texts
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore", DeprecationWarning)  # of trainers that are imported for their types

from latephase import __version__  # noqa: E402

project = "latephase"
author = "The latephase authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "inventories",
    "mathml",
    "public_names",
    "repository_links",
    "commands",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "results/README.md",
    "results/*/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "src",
    "tests",
    "benchmarks",
    "robustness",
    "tools",
    "runs",
    "examples",
    "docs/_*",
]
source_suffix = {".md": "markdown"}
nitpicky = True

# Types in signatures that are no public names: type variables, and what users get and hand on without taking it apart.
nitpick_ignore_regex = [
    ("py:class", r"(latephase\.[\w.]*\.)?(Model|AnyOptimizer|Self|typing\.Self)"),
    ("py:class", r"latephase\.(parallel\.ParallelModule|nqp\.moments\.Moments|nqp\.descent\.Descent)"),
    ("py:class", r"(lightning|transformers)\..*"),
    ("py:class", r"Array"),  # a file's own short name for an array of float64
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = ["toc.empty_glob"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
default_role = "py:obj"  # `name` in a docstring is a link where it is a public name, else code

templates_path = []
html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"latephase {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#b3402a", "color-brand-content": "#a33823"},
    "dark_css_variables": {"color-brand-primary": "#ff8a6b", "color-brand-content": "#ff9d83"},
}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
