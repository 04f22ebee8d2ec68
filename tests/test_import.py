"""`import evenkeel` costs next to nothing over `import torch`: the heavy modules wait until they are used."""

import subprocess
import sys

LOADED = "import sys, torch; before = set(sys.modules); import evenkeel; print(*set(sys.modules) - before)"
HEAVY = {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.testing"}


def test_import_loads_nothing_heavy_over_torch():
    command = [sys.executable, "-c", LOADED]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "evenkeel" in loaded
    assert loaded & HEAVY == set()
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names <= {"evenkeel", "torch"}
