"""Where images come from: a procedural radiograph, and files."""

from anatpaste_aug.data.files import SUFFIXES, read_image
from anatpaste_aug.data.phantom import phantom_radiograph

__all__ = ["SUFFIXES", "phantom_radiograph", "read_image"]
