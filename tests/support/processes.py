"""Work in other processes, each of which leaves what it found: started by torchrun, or forked.

What is forked comes from a process that has imported torch and done nothing else, so that torch is imported once.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import torch
from paths import ROOT, SUPPORT
from torch import distributed

multiprocessing.set_forkserver_preload(["torch"])


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


def forked(work, *arguments, folder, processes=1, timeout=280):
    """What `work(*arguments)` returns in each process, as JSON; several are the ranks of one group."""
    context = torch.multiprocessing.start_processes(
        _leave, (processes, Path(folder), work, arguments), processes, join=False, start_method="forkserver"
    )
    late = threading.Timer(timeout, lambda: [process.kill() for process in context.processes])
    late.start()
    try:
        while not context.join():
            pass
    finally:
        late.cancel()
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]


def _leave(rank, processes, folder, work, arguments):
    torch.set_num_threads(1)
    if processes > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    Path(folder, f"{rank}.json").write_text(json.dumps(work(*arguments)))
    if processes > 1:
        distributed.destroy_process_group()
