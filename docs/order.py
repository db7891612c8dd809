"""The order of the illustrated pages."""

from __future__ import annotations

PAGES = ["first_steps", "stages", "options", "opacities", "masks", "sizes", "head", "ct"]


class Reading:
    """Sort keys for sphinx-gallery: pages as they are to be read."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, name: str) -> int:
        """Return a page's place."""
        return PAGES.index(name.removesuffix(".py"))
