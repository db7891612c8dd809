"""Check the links among the pages of a built site: ``python .ci/links.py FOLDER``."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, links and sources."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


site = Path(sys.argv[1]).resolve()
pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
bad, count = [], 0
for path, page in pages.items():
    for link in page.links:
        target = urlsplit(link)
        if target.scheme or target.netloc:
            continue
        count += 1
        file = (path.parent / unquote(target.path)).resolve() if target.path else path
        anchors = pages[file].anchors if file in pages else {unquote(target.fragment)}
        if not file.exists() or unquote(target.fragment) not in anchors:
            bad.append(f"{path.relative_to(site)}: {link}")
print("\n".join([*bad, f"{len(pages)} pages, {count} links among them, {len(bad)} lead nowhere"]))
sys.exit(bool(bad) or not count)
