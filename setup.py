"""Give PyPI the README with links that lead somewhere from there; all else stands in setup.cfg."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def absolute_links(readme: str, source: str) -> str:
    """Lead links into the repository to its address; those within the page, and others, stay."""
    raw = source.replace("//github.com", "//raw.githubusercontent.com") + "/main/"
    readme = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\g<1>{raw}", readme)
    return re.sub(r"(?<!!)(\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{source}/blob/main/", readme)


if __name__ == "__main__":
    source = re.search(r"Source = (.*)", (HERE / "setup.cfg").read_text("utf-8"))[1]
    readme = (HERE / "README.md").read_text("utf-8")
    setup(long_description=absolute_links(readme, source))
