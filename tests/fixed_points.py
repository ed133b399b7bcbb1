"""`python -m eomt_exp` whose losses read each mask at the same points, however it is batched."""

import pytest

from eomt_exp import cli
from tests.planted import fix_points

if __name__ == "__main__":
    fix_points(pytest.MonkeyPatch())
    cli.main()
