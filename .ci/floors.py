"""Print the lowest versions that setup.cfg allows, as constraints: ``pip install -c``."""

import configparser
import re
from pathlib import Path

config = configparser.ConfigParser()
config.read(Path(__file__).parents[1] / "setup.cfg")
needed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
floors = re.findall(r"^([\w-]+)>=([\d.]+)(?:,.*)?$", "\n".join(needed), re.M)
for name, floor in sorted(set(floors)):
    print(f"{name}=={floor}")
