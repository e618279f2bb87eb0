"""The programs in benchmarks/ import each other by name, so that folder is on the path of these tests as well."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
