"""Scripts run by several processes of torchrun, each of which leaves what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT, SUPPORT


def launched(script, processes, folder, *arguments):
    """What each rank found: the script is given the arguments and the folder, and writes there RANK.json."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = os.pathsep.join(map(str, (ROOT, *sys.path)))
    done = subprocess.run(
        [*command, SUPPORT / script, *arguments, folder],
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]
