"""Growth under DistributedDataParallel, two processes on one machine."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import auxin
from auxin.errors import ConfigError, TraceError

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def train_and_grow(rank: int, folder: str, method: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{method}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    parallel = DistributedDataParallel(model)
    draw = torch.Generator().manual_seed(rank)
    x, y = torch.randn(16, 5, generator=draw), torch.randn(16, 2, generator=draw)
    loss_fn = nn.functional.mse_loss
    options = {"method": method, "trigger": auxin.every(2), "budget": auxin.count(3)}
    if method == "natural":
        draw.manual_seed(9)
        same = torch.randn(16, 5, generator=draw), torch.randn(16, 2, generator=draw)
        options = {"trigger": auxin.natural(tau=1.0, widen=3, data=[same])}
    grower = auxin.Grower(model, optimizer, x[:2], **options)
    for epoch in range(5):
        optimizer.zero_grad()
        loss_fn(parallel(x), y).backward()
        optimizer.step()
        if method == "natural":
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        if grower.step(epoch, [(x, y)] * 6, loss_fn):
            parallel = DistributedDataParallel(model)
    scores = torch.tensor([one.score for decision in grower.decisions for one in decision.proposals])
    torch.save([*(p.detach() for p in model.parameters()), scores], os.path.join(folder, f"{method}-{rank}.pt"))
    dist.barrier()  # neither leaves while the other still talks to it
    os._exit(0)  # gloo's threads do not always survive the end of the interpreter (SIGABRT, once in some dozen runs)


@pytest.mark.parametrize("method", ["random", "firefly", "natural"])
def test_processes_stay_equal_across_events(tmp_path: Path, method: str) -> None:
    torch.multiprocessing.spawn(train_and_grow, (str(tmp_path), method), nprocs=2)
    first, second = (torch.load(tmp_path / f"{method}-{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first[-1]) > 5 if method == "natural" else first[0].shape == (14, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_wrapper_itself_is_refused_with_what_to_do(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        with pytest.raises(ConfigError, match="wrap that anew after each event"):
            auxin.Grower(model, None, torch.randn(2, 3))
        assert [group.name for group in auxin.trace(model, torch.randn(2, 3)).growable()] == ["0"]
    finally:
        dist.destroy_process_group()


def test_sharded_parameters_are_refused_with_what_to_do(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    x = torch.randn(2, 3)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/shards", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for shard in (
            lambda model: parallelize_module(model, mesh, {"0": ColwiseParallel()}),
            lambda model: fully_shard(model, mesh=mesh),
            lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True),
        ):
            model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
            graph = auxin.trace(model, x)
            grower = auxin.Grower(model, None, x, trigger=auxin.every(1), budget=auxin.count(1), method="net2net")
            sharded = shard(model)
            for refused in (
                lambda sharded=sharded: auxin.trace(sharded, x),
                lambda sharded=sharded: auxin.Grower(sharded, None, x),
                lambda sharded=sharded, graph=graph: auxin.deepen(sharded, "1", graph=graph),
                lambda sharded=sharded, graph=graph: auxin.widen(sharded, "0", 1, graph=graph),
                lambda grower=grower: grower.step(0),
            ):
                with pytest.raises(TraceError, match=r"sharded .* grow the model before it is sharded"):
                    refused()
    finally:
        dist.destroy_process_group()
