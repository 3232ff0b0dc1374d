"""One of several processes, for test_cuda.py: device_process.py DEVICE FOLDER."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_cuda import separate, train

from norton_det.runtime.distributed import data_parallel, gather, processes, rank, sum_over_processes, world_size
from norton_det.runtime.given import unwrapped

if __name__ == "__main__":
    device, folder = sys.argv[1], Path(sys.argv[2])
    with processes(device, f"file://{folder / 'meeting'}") as local:
        made: dict[str, Any] = {"backend": dist.get_backend(), "separate": separate(local)}
        net = train("fasterrcnn_cpresnet50_fpn", local).model
        assert unwrapped(data_parallel(net, local)) is net
        made["detector"] = {name: parameter.detach().cpu() for name, parameter in net.named_parameters()}
        made["mean"] = (sum_over_processes(torch.tensor(float(rank()), device=local)) / world_size()).item()
        assert gather(rank()) == list(range(world_size()))
        torch.save(made, folder / f"{rank()}.pt")
