"""Give a transformer more heads, wider feed-forward blocks and more layers, save it, and load it without pickle.

The model is an ordinary one written for this file; nothing in it knows auxin.

Run: python examples/transformer.py        (torch, auxin and safetensors only; a few seconds)
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import auxin


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(y.reshape(batch, tokens, -1))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.blocks = nn.Sequential(Block(32, 4), Block(32, 4))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


def main() -> float:
    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(2, 7, 12)
    before = model(x)
    graph, history = auxin.trace(model, x), auxin.History()
    print(graph)
    for group in graph.growable():
        by = 1 if "num_heads" in group.name else 64
        event = auxin.widen(model, group, by, graph=graph, method="net2net")
        history.append(event)
        print(event)
    for site in [site for site in graph.sites if site.neutral]:  # residual blocks: a copy that adds nothing yet
        event = auxin.deepen(model, site, graph=graph)
        history.append(event)
        print(event)
    change = float((model(x) - before).detach().abs().max())
    heads = [module.num_heads for module in model.modules() if isinstance(module, Block)]
    print(f"heads of each layer: {heads}, max |Δ output| {change:.1e}")

    with tempfile.TemporaryDirectory() as folder:
        save_file(model.state_dict(), Path(folder) / "model.safetensors")
        (Path(folder) / "history.json").write_text(json.dumps(history.to_json()))

        loaded = Classifier()
        auxin.History.from_json(json.loads((Path(folder) / "history.json").read_text())).replay(loaded)
        loaded.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    assert torch.equal(loaded(x), model(x))
    return change


if __name__ == "__main__":
    main()
