"""Every relative link of what people read leads somewhere."""
import json
import re
import subprocess
from urllib.parse import unquote

import pytest

from ikmlib import config

TRACKED = subprocess.run(["git", "ls-files", "--", "*.md", "*.ipynb", "*.html"], cwd=config.ROOT, capture_output=True,
                         text=True, check=False).stdout.split("\n")[:-1]


def links(path):
    """The targets of links and pictures in a Markdown file, the Markdown cells of a notebook, or a web page."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)
    found += re.findall(r"<(?:a|img|source)[^>]*?(?:href|src|srcset)=\"([^\"]+)\"", text)
    return {unquote(link.partition("#")[0]) for link in found if not re.match(r"[a-z]+:|#|//", link)} - {""}


@pytest.mark.parametrize("name", TRACKED)
def test_every_relative_link_leads_somewhere(name):
    path = config.ROOT / name
    assert [link for link in sorted(links(path)) if not (path.parent / link).exists()] == []
